"""Who owns the memory in schedules: writing in place, two names of one tensor, either order of the axes."""

import pytest
import torch
from schedules import by_nodes, programs
from torch import nn

import binarize
from binarize.kernels.schedule import why_not_compiled
from binarize.passes.schedule import coverage

pytestmark = pytest.mark.skipif(why_not_compiled() is not None, reason="no kernels are compiled")


def test_in_place_operations_write_over_nothing_that_others_read(monkeypatch):
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x):
            y = self.a(x)
            z = self.relu(y)
            return self.b(z) + y

    torch.manual_seed(0)
    x = torch.randn(2, 8, 7, 7)
    recipe = binarize.Recipe("encoding:w=4,a=4", convert=("*",), keep_first=False, keep_last=False, smallest=0)
    net = binarize.pack(binarize.convert(InPlace().eval(), x, recipe=recipe))
    given = x.clone()
    with torch.no_grad():
        assert torch.equal(net(given), by_nodes(net, x.clone(), monkeypatch=monkeypatch))
    assert torch.equal(given, x)


class Aliases(nn.Module):
    """Dropout, which in evaluation gives the tensor that it received: read again, written over, given back."""

    def __init__(self, kind):
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.drop, self.kind = nn.Dropout(), kind

    def forward(self, x):
        y = self.a(x)
        if self.kind == "written over":
            return self.b(torch.relu_(self.drop(y))) + y
        if self.kind == "an input written over":
            return self.b(y), torch.relu_(x)
        return self.b(y), y, self.drop(y), self.drop(x)


@pytest.mark.parametrize("kind", ["written over", "an input written over", "given back"])
def test_two_names_of_one_tensor_hold_what_torch_gives_them(kind, monkeypatch):
    torch.manual_seed(0)
    x = torch.randn(2, 8, 7, 7)
    recipe = binarize.Recipe("encoding:w=4,a=4", convert=("*",), keep_first=False, keep_last=False, smallest=0)
    net = binarize.pack(binarize.convert(Aliases(kind).eval(), x.clone(), recipe=recipe))
    ours, theirs = x.clone(), x.clone()

    with torch.no_grad():
        found, wanted = net(ours), by_nodes(net, theirs, monkeypatch=monkeypatch)

    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert torch.equal(ours, theirs)
    assert torch.equal(ours, x) is (kind != "an input written over")
    assert None not in programs(net)


def test_what_is_added_may_lie_in_either_order(monkeypatch):
    class Added(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            return self.b(torch.relu(self.a(x)) + x) + x

    torch.manual_seed(0)
    x = torch.randn(2, 8, 7, 7)
    recipe = binarize.Recipe("encoding:w=4,a=4", convert=("*",), keep_first=False, keep_last=False, smallest=0)
    net = binarize.pack(binarize.convert(Added().eval(), x, recipe=recipe))

    with torch.no_grad():
        for given in (x, x.contiguous(memory_format=torch.channels_last)):
            assert torch.equal(net(given), by_nodes(net, given, monkeypatch=monkeypatch))
    assert coverage(net).left == {}
