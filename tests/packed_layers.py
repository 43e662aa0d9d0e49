"""Packed layers by hand, for tests of what exports and runs them: any geometry, random weights, chosen levels."""

import torch
from hypothesis import strategies as st
from torch import nn

from binarize.export.stand_ins import with_stand_ins
from binarize.layers.packed import Geometry, PackActivation, PackedConv2d
from binarize.schemes.base import Levels


def arrays_of(layer, **more):
    """The node's inputs in order: what `more` puts first, the weight, what comes after it."""
    first = {name: more.pop(name).numpy() for name in ("codes",)}
    weight = {name: getattr(layer, name).numpy() for name in ("bits", "scale", "bias")}
    return {**first, **weight, **{name: value.numpy() for name, value in more.items()}}


def stand_in(layer):
    return with_stand_ins(nn.Sequential(layer))[0]


def levels(low, step, threshold=None):
    return Levels(torch.tensor(low), torch.tensor([step]), threshold)


@st.composite
def geometries(draw, linear=False):
    groups = 1 if linear else draw(st.integers(1, 3))
    pairs = {
        name: (1, 1) if linear else (draw(st.integers(*span)), draw(st.integers(*span)))
        for name, span in {"kernel": (1, 5), "stride": (1, 3), "padding": (0, 4), "dilation": (1, 3)}.items()
    }
    if linear:
        pairs["padding"] = (0, 0)
    return Geometry(
        groups * draw(st.integers(1, 20)), groups * draw(st.integers(1, 6)), groups=groups, **pairs,
        weight_terms=tuple(draw(st.lists(st.integers(0, 8), min_size=1, max_size=3).filter(any))),
        activation_terms=(draw(st.integers(1, 8)),),
    )  # fmt: skip


def random_odd(geometry):
    shape = (geometry.out_channels, geometry.channels // geometry.groups, *geometry.kernel)
    return torch.stack([
        2 * torch.randint(0, 2**bits, shape) - (2**bits - 1) if bits else torch.ones(shape, dtype=torch.int64)
        for bits in geometry.weight_terms
    ])  # fmt: skip


def layer_of(geometry, low, step, kind=PackedConv2d):
    layer = kind(geometry, PackActivation(geometry.activation_terms, levels(low, step)), "by-hand")
    layer.activation.groups, outputs, odd = geometry.groups, geometry.out_channels, random_odd(geometry)
    layer.set_weight(odd, torch.randn(len(odd), outputs), torch.randn(outputs))
    layer.minimum, layer.maximum = -3.0, 40.0
    return layer


def image(geometry, low, step):
    spans = [d * (k - 1) + 1 for d, k in zip(geometry.dilation, geometry.kernel, strict=True)]
    size = [max(1, span - 2 * pad) + 5 for span, pad in zip(spans, geometry.padding, strict=True)]
    return torch.randn(2, geometry.channels, *size) * step * 2 ** geometry.activation_terms[0] / 2 + low / 2


def several(count, rows=False, columns=1):
    found = Levels(torch.randn(()), torch.randn(count), torch.randn(count, columns).sort(0).values)
    return PackActivation((1,) * count, found, rows=rows)


def layer_of_terms(geometry, kind=PackedConv2d):
    """A layer on activations of as many terms as the geometry has, the unit of its weight, and its odd integers."""
    rows = kind is not PackedConv2d
    layer = kind(geometry, several(len(geometry.activation_terms), rows), "by-hand")
    layer.activation.groups = geometry.groups
    odd = random_odd(geometry)
    unit, step = torch.randn(len(odd), geometry.out_channels), torch.tensor(layer.activation.step)
    layer.set_weight(odd, (unit.unsqueeze(1) * step.reshape(1, -1, 1)).flatten(0, 1), torch.randn(len(unit[0])))
    return layer, unit, odd
