"""The first normalisation layer tells whether images are prepared as in training."""

import re

import pytest
import torch
from torch import nn

import binarize
from binarize.calibration.prepared import ImageStatistics, Prepared, compare_prepared
from binarize.record import record_of

MEAN, STD = torch.tensor([0.4, 0.5, 0.6]).reshape(3, 1, 1), torch.tensor([0.1, 0.2, 0.3]).reshape(3, 1, 1)


def images(count=64):
    """Pixels in [0, 1], as they lie in files; not prepared."""
    return (MEAN + STD * torch.randn(count, 3, 8, 8)).clamp(0, 1)


@pytest.fixture
def trained():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, momentum=None), nn.ReLU(), nn.Conv2d(8, 8, 3),
                        nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))  # fmt: skip
    for _ in range(8):
        net((images() - MEAN) / STD)
    return net.eval()


def test_images_prepared_as_in_training_give_no_reason(trained):
    found = compare_prepared(trained, [((images() - MEAN) / STD,)])

    assert found.layer == "1"
    # 32 images of 64 pixels: means within a tenth of a deviation, variances within a tenth
    assert found.variance == pytest.approx(1, abs=0.1)
    assert found.shift < 0.1
    assert found.why_not() is None


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda x: x, r"1 sees 0.\d+ times the variance"),
        (lambda x: x - MEAN, r"1 sees 0.\d+ times the variance"),
        (lambda x: 255 * x, r"1 sees \d\.?\d*e\+03 times the variance"),
        (lambda x: x / STD, r"1 sees means that lie \d\.\d deviations"),
    ],
    ids=["plain", "not divided", "bytes", "not centred"],
)
def test_images_prepared_in_another_way_are_noticed(trained, prepare, reason):
    assert re.match(reason, compare_prepared(trained, [(prepare(images()),)]).why_not())


def test_it_looks_at_batches_until_there_are_enough(trained):
    taken = []

    def batches():
        for _ in range(20):
            taken.append(1)
            yield ((images(10) - MEAN) / STD,)

    assert compare_prepared(trained, batches()).why_not() is None
    assert len(taken) == 4


@pytest.mark.parametrize(("count", "run"), [(100, 32), (7, 7)])
def test_it_runs_no_more_images_than_it_needs_and_judges_no_few(trained, count, run):
    seen = []
    trained.register_forward_pre_hook(lambda module, arguments: seen.append(len(arguments[0])))
    found = compare_prepared(trained, [(images(count),)])

    assert seen == [run]
    assert (found is None) == (count < 8)


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
    ],
    ids=["no layer", "not trained", "no memory"],
)
def test_without_a_memory_nothing_is_said(net):
    net.register_forward_pre_hook(lambda *_: pytest.fail("there is nothing to see by running it"))
    assert compare_prepared(net.eval(), [(images(),)]) is None


def test_images_that_are_not_finite_are_for_others_to_refuse(trained):
    assert compare_prepared(trained, [(torch.full((4, 3, 8, 8), torch.inf),)]) is None


def test_limits_are_those_of_the_reason():
    assert Prepared("bn", 2.4, 0.9).why_not() is None
    assert Prepared("bn", 1 / 2.4, 0.9).why_not() is None
    assert Prepared("bn", 1 / 2.6, 0.0).why_not() == "bn sees 0.38 times the variance that it learnt"
    assert Prepared("bn", 1.0, 1.1).why_not() == "bn sees means that lie 1.1 deviations from those that it learnt"


def test_a_summary_warns_and_hooks_are_gone(trained):
    wrong = binarize.convert(trained, scheme="encoding:w=4,a=4", data=[images()])
    right = binarize.convert(trained, scheme="encoding:w=4,a=4", data=[(images() - MEAN) / STD])

    assert any(line.startswith("warning: the images look unlike those of training: 1 sees") for line in lines(wrong))
    assert not any("warning" in line for line in lines(right))
    assert not any(module._forward_pre_hooks for module in trained.modules())


def lines(net):
    return binarize.summary(net).closing()


def test_images_of_calibration_are_kept_and_compared(trained):
    net = binarize.convert(trained, scheme="encoding:w=4,a=4", data=[(images() - MEAN) / STD])
    kept = ImageStatistics.read(record_of(net).calibration["images"])

    # 32 images of 64 pixels of the same distribution
    assert kept.means == pytest.approx([0, 0, 0], abs=0.1)
    assert kept.deviations == pytest.approx([1, 1, 1], abs=0.1)
    assert kept.why_not(ImageStatistics.of([((images() - MEAN) / STD,)])) is None


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (ImageStatistics((0.0, 0.0), (0.6, 0.6)), "they have 0.36 times the variance"),
        (ImageStatistics((0.0, 0.0), (1.6, 1.6)), "they have 2.6 times the variance"),
        (ImageStatistics((0.9, -0.9), (0.7, 1.5)), None),
        (ImageStatistics((1.0, -1.2), (1.0, 1.0)), "their means lie 1.1 deviations from those"),
        (ImageStatistics((9.0,), (9.0,)), None),
    ],
    ids=["narrow", "wide", "alike", "shifted", "other channels"],
)
def test_limits_of_images_are_those_of_the_reason(seen, reason):
    assert ImageStatistics((0.0, 0.0), (1.0, 1.0)).why_not(seen) == reason


@pytest.mark.parametrize(
    "batch",
    [images(7), torch.zeros(9, 3, 8, 8), torch.full((9, 3, 8, 8), torch.nan), torch.ones(9, 4),
     torch.ones(9, 3, 8, 8).long(), [torch.rand(3, 8, 8)] * 5 + [torch.rand(1, 8, 8)] * 5],
    ids=["few", "black", "not finite", "features", "indices", "mixed channels"],
)  # fmt: skip
def test_what_has_no_statistics_has_none(batch):
    assert ImageStatistics.of([(batch,)]) is None


def test_images_of_many_sizes_have_statistics():
    assert ImageStatistics.of([([torch.rand(3, 8 + k, 8) for k in range(9)],)]) is not None


@pytest.mark.parametrize("kind", [Prepared, ImageStatistics])
@pytest.mark.parametrize(
    "values",
    [None, 3, {}, {"layer": "1", "variance": "x", "shift": 0.0}, {"layer": "1", "variance": -1.0, "shift": 0.0},
     {"means": [0.0], "deviations": [0.0]}, {"means": [0.0], "deviations": []}, {"means": 1, "deviations": 1},
     {"means": ["a"], "deviations": [1.0]}],
)  # fmt: skip
def test_a_record_that_holds_something_else_says_nothing(kind, values):
    assert kind.read(values) is None
