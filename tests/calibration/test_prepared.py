"""The first normalisation layer tells whether images are prepared as in training."""

import re

import pytest
import torch
from torch import nn

import binarize
from binarize.calibration.prepared import Prepared, compare_prepared

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
