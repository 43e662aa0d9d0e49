"""Normalisation, PReLU and concatenation in schedules: what torch gives for them, in either order of memory."""

import pytest
import torch
from schedules import by_nodes
from torch import nn

import binarize
from binarize.kernels.schedule import why_not_compiled
from binarize.passes.schedule import coverage

pytestmark = pytest.mark.skipif(why_not_compiled() is not None, reason="no kernels are compiled")

IMAGES = torch.randn(3, 8, 9, 7, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Two convolutions, the second of which reads what ``between`` makes of the first's output and of the input."""

    def __init__(self, between, channels=12):
        super().__init__()
        self.a, self.between = nn.Conv2d(8, 12, 3, padding=1), between
        self.b = nn.Conv2d(channels, 5, 3)

    def forward(self, x):
        return self.b(self.between(self.a(x), x))


class Norm(nn.Module):
    """Between a ReLU and another, so that no convolution takes it in."""

    def __init__(self, **options):
        super().__init__()
        self.norm = nn.BatchNorm2d(12, **options)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)
        if self.norm.affine:
            nn.init.normal_(self.norm.weight)
            nn.init.normal_(self.norm.bias)

    def forward(self, y, x):
        return torch.relu(self.norm(torch.relu(y)))


class Slopes(nn.Module):
    """A PReLU whose output is read twice."""

    def __init__(self, count):
        super().__init__()
        self.prelu = nn.PReLU(count)
        nn.init.uniform_(self.prelu.weight, -0.5, 0.9)

    def forward(self, y, x):
        y = self.prelu(y)
        return y + torch.relu(y)


class Joined(nn.Module):
    """What convolutions give, channel by channel within a pixel, beside the input, which lies otherwise."""

    def __init__(self, axis=1, parts=3):
        super().__init__()
        self.axis, self.parts = axis, parts

    def forward(self, y, x):
        parts = [torch.relu(y), y, x][: self.parts]
        return torch.cat(parts, dim=self.axis)


CASES = {
    "normalisation": (Norm(), 12),
    "normalisation without weights": (Norm(affine=False), 12),
    "one slope": (Slopes(1), 12),
    "a slope for each channel": (Slopes(12), 12),
    "maps of two orders": (Joined(), 32),
    "maps of one order": (Joined(parts=2), 24),
}


def packed(between, channels):
    torch.manual_seed(0)
    recipe = binarize.Recipe("encoding:w=3,a=3", convert=("*",), keep_first=False, keep_last=False, smallest=0)
    return binarize.pack(binarize.convert(Net(between, channels).eval(), IMAGES, recipe=recipe))


@torch.no_grad()
def both(net, x, monkeypatch):
    return net(x), by_nodes(net, x, monkeypatch=monkeypatch)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_one_native_call_holds_them(case, monkeypatch):
    net = packed(*case)

    for x in (IMAGES, IMAGES[:1], IMAGES.contiguous(memory_format=torch.channels_last)):
        found, wanted = both(net, x, monkeypatch)
        # normalisation rounds once where torch may round twice, and a code that this moves moves an output
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert (coverage(net).stretches, coverage(net).left) == (1, {})


@pytest.mark.parametrize("level", ["avx512", "avx2", "scalar"])
def test_every_level_gives_the_same_bits(level, monkeypatch):
    kernels = {"avx512": "avx512_vnni", "avx2": "avx2", "scalar": "scalar"}
    net = packed(Norm(), 12)
    wanted = both(net, IMAGES, monkeypatch)[0]
    if dict(binarize.kernels.levels())[kernels[level]] is not None:
        pytest.skip(f"no {level} here")
    monkeypatch.setenv("BINARIZE_KERNEL", kernels[level])
    monkeypatch.setenv("BINARIZE_ROUTE", "int8")

    assert torch.equal(both(net, IMAGES, monkeypatch)[0], wanted)


@torch.no_grad()
def test_changed_numbers_are_seen(monkeypatch):
    net = packed(Norm(), 12)
    before = both(net, IMAGES, monkeypatch)[0]

    net.get_submodule("between.norm").running_mean.add_(1.0)

    found, wanted = both(net, IMAGES, monkeypatch)
    assert not torch.equal(found, before)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda net: net.get_submodule("between.norm").train(), "it takes the statistics of its batch"),
        (lambda net: net.get_submodule("between.norm").double(), "its numbers are not float32 on the CPU"),
    ],
    ids=["in training", "in float64"],
)
def test_what_has_no_kernel_is_left_to_torch(change, reason):
    net = packed(Norm(), 12)
    change(net)

    assert reason in coverage(net).left.values()


def test_other_axes_are_left_to_torch(monkeypatch):
    class Tall(nn.Module):
        def forward(self, y, x):
            return torch.cat([y, torch.relu(y)], dim=2)

    net = packed(Tall(), 12)

    found, wanted = both(net, IMAGES, monkeypatch)
    assert torch.equal(found, wanted)
    assert list(coverage(net).left.values()) == ["it joins along another axis than the channels"]
