"""Calibration of whole networks, towards their teachers."""

import copy

import models
import pytest
import torch
from torch import nn

from binarize.calibrate import CalibrationSettings, calibrate
from binarize.layers.binary import BinaryConv2d, binary_layers
from binarize.passes.capture import capture
from binarize.passes.decompose_layers import DecomposeLayers, decompose
from binarize.passes.graph import put
from binarize.schemes.presets import build_scheme


def images(n=48, side=12):
    """Smooth random images, as correlated as photographs."""
    coarse = torch.randn(n, 3, side // 3, side // 3)
    return nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")


def lively(net):
    """Return the network in evaluation mode with statistics and affine parameters of a trained one."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
            module.momentum = None
    with torch.no_grad():
        net.train()(images())
    return net.eval()


def pair(net, scheme, names):
    """Return the training form with the named layers binary, and the teacher."""
    teacher, made = lively(net), build_scheme(scheme)
    student = copy.deepcopy(teacher)
    for name in names:
        put(student, name, decompose(student.get_submodule(name), made))
    return student, teacher


BLOCKS = ["block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2", "block2.shortcut"]


@torch.no_grad()
def relative_error(student, teacher, x):
    y = teacher(x)
    return float((student(x) - y).square().mean() / (y - y.mean(0)).square().mean())


def test_eight_bits_are_practically_lossless():
    student, teacher = pair(models.Residual(), "encoding:w=8,a=8", BLOCKS)
    x = images(288)

    record = calibrate(student, teacher, [(x[:192],)])

    assert list(record.layers) == BLOCKS
    assert all(fit.error < 1e-3 for fit in record.layers.values())
    assert relative_error(student, teacher, x[192:]) < 2e-3


@pytest.mark.parametrize("scheme", ["encoding:w=2,a=3", "residual:m=2,a=3", "xnor-net", "pa-net:m=4,n=3"])
def test_fitting_to_outputs_beats_fitting_ranges_on_images_not_seen(scheme):
    student, teacher = pair(models.Residual(), scheme, BLOCKS)
    ranges, x = copy.deepcopy(student), images(512)

    calibrate(student, teacher, [(x[:256],)])
    for (_, layer), (_, plain) in zip(binary_layers(student), binary_layers(ranges), strict=True):
        plain.activation.set_levels(layer.activation.levels)

    assert relative_error(student, teacher, x[256:]) < 0.7 * relative_error(ranges, teacher, x[256:])


@torch.no_grad()
def test_mean_outputs_equal_the_teachers_after_calibration():
    student, teacher = pair(models.Residual(), "encoding:w=2,a=2", BLOCKS)
    x, seen = images(), {}

    calibrate(student, teacher, [(x,)])
    for net in (student, teacher):
        for name in BLOCKS:
            hook = lambda m, a, y, key=(net, name): seen.__setitem__(key, y)  # noqa: E731
            net.get_submodule(name).register_forward_hook(hook)
        net(x)

    for name in BLOCKS:  # all places are drawn on images this small, so the means are exact but for rounding
        ours, theirs = seen[student, name], seen[teacher, name]
        drift = (ours - theirs).mean((0, 2, 3)).abs().max()
        assert drift < 1e-4 * theirs.std()


def test_the_same_seed_gives_the_same_bits():
    student, teacher = pair(models.Residual(), "encoding:w=3,a=3", BLOCKS)
    other, x = copy.deepcopy(student), images(40, 24)

    for net in (student, other):
        calibrate(net, teacher, [(x[:32],), (x[32:],)], settings=CalibrationSettings(seed=7))

    ours, theirs = student.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


class Head(nn.Module):
    """One convolution on two feature maps of very different size, in a loop that no tracer can unroll alike."""

    def __init__(self):
        super().__init__()
        self.stem, self.shared = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x):
        y = torch.relu(self.stem(x))
        return torch.cat([self.shared(z).mean((2, 3)) for z in (0.05 * y, 10 * nn.functional.avg_pool2d(y, 2))], 1)


def test_a_layer_called_twice_is_fitted_to_both_of_its_inputs():
    student, teacher = pair(Head(), "encoding:w=8,a=8", ["shared"])
    x = images()

    record = calibrate(student, teacher, [(x,)])

    assert list(record.layers) == ["shared"]
    step = record.layers["shared"].step[0]
    largest = 10 * float(torch.relu(teacher.stem(x)).detach().max())
    assert 0.3 * largest < 255 * step <= 1.05 * largest
    assert relative_error(student, teacher, x) < 1e-3


def test_a_network_captured_by_parts_is_calibrated_through_its_own_python():
    teacher = lively(models.ControlFlow())
    captured = capture(copy.deepcopy(teacher))
    scheme = build_scheme("encoding:w=8,a=8")
    path, gm = next(iter(captured.graphs.items()))
    DecomposeLayers({"1": scheme})(gm)
    put(captured.root, "loose", decompose(captured.root.get_submodule("loose"), scheme))
    x = images() + 1

    record = calibrate(captured.root, teacher, [(x,)])

    assert (path, list(record.layers)) == ("body", ["body.1", "loose"])
    assert relative_error(captured.root, teacher, x) < 1e-3


def test_readers_of_one_tensor_share_its_levels():
    teacher = lively(models.Residual())
    student = capture(copy.deepcopy(teacher)).root
    scheme = build_scheme("encoding:w=4,a=4")
    DecomposeLayers(dict.fromkeys(("block2.conv1", "block2.shortcut"), scheme))(student)

    record = calibrate(student, teacher, [(images(),)])

    first, second = record.layers.values()
    assert (first.low, first.step) == (second.low, second.step)


def test_a_layer_that_never_runs_is_reported():
    student, teacher = pair(models.Auxiliary(), "encoding:w=4,a=4", ["aux", "head"])

    record = calibrate(student, teacher, [(images(),)])

    assert (list(record.layers), list(record.skipped)) == (["head"], ["aux"])
    assert "not called" in record.skipped["aux"]


def test_layers_without_bias_get_one_and_progress_is_told():
    student, teacher = pair(models.Residual(), "encoding:w=4,a=4", BLOCKS)
    told = []

    record = calibrate(student, teacher, [(images(),)], progress=lambda *args: told.append(args))

    assert all(layer.bias is not None for _, layer in binary_layers(student) if isinstance(layer, BinaryConv2d))
    assert told == [("calibrate", i + 1, len(BLOCKS)) for i in range(len(BLOCKS))]
    assert record.samples == 48
    assert record.to_dict()["layers"]["block1.conv1"]["rows"] == 48 * 12 * 12


def test_layers_too_wide_for_a_gram_matrix_are_scaled_to_the_teachers_outputs(monkeypatch):
    monkeypatch.setattr("binarize.calibrate.MOST_INPUTS", 100)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3))
    student, teacher = pair(net, "encoding:w=8,a=8", ["2", "4"])
    x = images()
    assert student.get_submodule("2").weight[0].numel() < 100

    record = calibrate(student, teacher, [(x,)])

    assert record.layers["4"].error < 1e-3
    assert relative_error(student, teacher, x) < 1e-3


def test_no_more_images_are_held_than_fit_the_memory(monkeypatch):
    student, teacher = pair(models.Residual(), "encoding:w=4,a=4", BLOCKS)
    image = 8 * 12 * 12 * 4  # bytes of a map at the first block: two inputs, an output, and half as much again
    monkeypatch.setattr("binarize.calibrate.MEMORY", int(20 * 4.5 * image))

    record = calibrate(student, teacher, [(images(12),), (images(12),), (images(12),)])

    assert record.samples == 20


def test_a_head_without_any_input_is_reported_and_left_usable():
    class Rare(models.Auxiliary):
        def forward(self, x):
            x = self.stem(x)
            return self.head(x), self.aux(x[x.mean((1, 2, 3)) > 1e9])

    student, teacher = pair(Rare(), "encoding:w=4,a=4", ["head", "aux"])

    record = calibrate(student, teacher, [(images(),)])

    assert record.skipped == {"aux": "its input was empty on every calibration image"}
    assert all(value.isfinite().all() for value in student.state_dict().values())


class Proposals(nn.Module):
    """A head on regions whose order, and number, hang on the last bits of what came before."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 16, 3), nn.Linear(16, 32)

    def forward(self, x):
        regions = self.body(x).permute(0, 2, 3, 1).flatten(0, 2)
        score = regions[:, 0]
        return self.head(regions[score.argsort()[: int((score > 0).sum()) + 1]])


def test_a_head_on_regions_that_its_teacher_did_not_propose_is_fitted_to_itself():
    torch.manual_seed(4)
    teacher = Proposals().eval()
    net = copy.deepcopy(teacher)
    scheme = build_scheme("encoding:w=4,a=2")
    net.body = decompose(net.body, scheme)
    net.head = decompose(net.head, build_scheme("encoding:w=8,a=8"))
    record = calibrate(net, teacher, [(torch.randn(4, 3, 12, 12),) for _ in range(3)])
    x = torch.randn(50, 16)

    assert set(record.layers) == {"body", "head"}
    assert (net.head(x) - teacher.head(x)).square().mean() < 0.01 * teacher.head(x).var()
