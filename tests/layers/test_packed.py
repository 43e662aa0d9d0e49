"""Packed layers against the training form, which is the definition: random geometry, every basis, every epilogue."""

import copy

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from binarize.kernels import ops
from binarize.layers.binary import BinaryActivation, BinaryConv2d, BinaryLinear
from binarize.layers.packed import PackActivation, PackedConv2d, PackedLinear
from binarize.passes.pack import pack_layer
from binarize.schemes.base import Levels
from binarize.schemes.presets import build_scheme

SCHEMES = [
    "xnor-net", "xnor-net:shift=channel", "encoding:w=1,a=1", "encoding:w=3,a=2", "encoding:w=8,a=8",
    "residual:m=3,a=2", "abc-net:m=3,n=2", "pa-net:m=2,n=3",
]  # fmt: skip


@st.composite
def convolutions(draw):
    """A random Conv2d and an input that it accepts."""
    groups = draw(st.integers(1, 3))
    channels, outputs = groups * draw(st.integers(1, 130 // groups)), groups * draw(st.integers(1, 12))
    kernel, stride, dilation, padding = (
        (draw(st.integers(least, most)), draw(st.integers(least, most)))
        for least, most in ((1, 7), (1, 3), (1, 3), (0, 4))
    )
    spans = [dilation[axis] * (kernel[axis] - 1) + 1 for axis in (0, 1)]
    size = [draw(st.integers(max(1, spans[axis] - 2 * padding[axis]), 9 + spans[axis])) for axis in (0, 1)]
    torch.manual_seed(draw(st.integers(0, 2**31)))
    conv = nn.Conv2d(channels, outputs, kernel, stride, padding, dilation, groups, bias=draw(st.booleans()))
    x = torch.randn(draw(st.integers(1, 3)), channels, *size)
    return conv, x.relu() if draw(st.booleans()) else x


def binary(conv, x, scheme):
    scheme = build_scheme(scheme)
    activation = BinaryActivation(scheme.activation)
    activation.set_levels(scheme.activation.fit(x))
    kind = BinaryLinear if isinstance(conv, nn.Linear) else BinaryConv2d
    return kind.from_float(conv, scheme, activation).eval()


def rounding(layer, x):
    """How far float32 sums of k products of the largest size may differ: k + 4 roundings on either side."""
    weight, value = layer.weight_value().detach(), layer.activation(x).detach()
    depth = weight[0].numel()
    return 2 * (depth + 4) * 2.0**-24 * float(weight.abs().amax() * value.abs().amax() * depth + 1.0)


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(deadline=None, max_examples=15)
@given(drawn=convolutions())
def test_packed_convolution_equals_the_training_form(scheme, drawn):
    conv, x = drawn
    layer = binary(conv, x, scheme)
    packed = pack_layer(layer)
    with torch.no_grad():
        planes = packed.activation(x)
        whole = ops.conv2d_integer(planes, packed.prepared(planes.dtype), *packed.geometry.arguments())
        out, wanted = packed(x), layer(x)

    codes, odd = layer.activation.codes(x).double(), layer.odd().double()
    exact = [
        F.conv2d(code, term, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        for term in odd
        for code in codes
    ]
    assert torch.equal(whole.permute(3, 0, 4, 1, 2), torch.stack(exact).to(torch.int32))
    torch.testing.assert_close(out, wanted, rtol=0, atol=rounding(layer, x))
    torch.testing.assert_close(packed(planes), out, rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_that_is_not_zeros_pads_the_image(mode):
    conv = nn.Conv2d(5, 4, 3, padding=(1, 2), padding_mode=mode)
    x = torch.randn(2, 5, 8, 7)
    layer = binary(conv, x, "encoding:w=8,a=8")

    torch.testing.assert_close(pack_layer(layer)(x), layer(x).detach(), rtol=0, atol=rounding(layer, x))
    torch.testing.assert_close(layer(x), conv(x), rtol=0, atol=0.05)  # 8-bit steps of about 0.03 on both sides


@pytest.mark.filterwarnings("ignore:Using padding=.same.")  # of the float convolution compared with
@pytest.mark.parametrize("kernel", [(3, 3), (2, 4), (1, 2)])
def test_same_padding_with_an_uneven_total_keeps_the_size(kernel):
    conv = nn.Conv2d(6, 4, kernel, padding="same", dilation=(1, 3))
    x = torch.randn(2, 6, 9, 9)
    layer = binary(conv, x, "encoding:w=8,a=8")

    assert layer(x).shape == conv(x).shape
    torch.testing.assert_close(pack_layer(layer)(x), layer(x).detach(), rtol=0, atol=rounding(layer, x))
    torch.testing.assert_close(layer(x), conv(x), rtol=0, atol=0.05)


@pytest.mark.parametrize("leading", [(3,), (2, 5), (1, 2, 3), (0,)])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_packed_linear_equals_the_training_form(leading, scheme):
    x = torch.randn(*leading, 37)
    layer = binary(nn.Linear(37, 11), torch.randn(64, 37), scheme)
    packed = pack_layer(layer)
    residual = torch.randn(*leading, 11)

    torch.testing.assert_close(packed(x), layer(x).detach(), rtol=0, atol=rounding(layer, torch.randn(9, 37)))
    torch.testing.assert_close(packed(packed.activation(x)), packed(x), rtol=0, atol=0)
    torch.testing.assert_close(packed(x, residual), packed(x) + residual, rtol=0, atol=0)


@pytest.mark.parametrize("dilation", [6, 20])
def test_borders_are_exact_where_the_dilated_kernel_is_larger_than_the_image(dilation):
    conv = nn.Conv2d(4, 3, 3, padding=dilation, dilation=dilation)
    x = torch.randn(1, 4, 7, 7)
    layer = binary(conv, x, "xnor-net")

    torch.testing.assert_close(pack_layer(layer)(x), layer(x).detach(), rtol=0, atol=rounding(layer, x))


@settings(deadline=None, max_examples=40)
@given(drawn=convolutions(), seed=st.integers(0, 2**31), reader=st.sampled_from(["xnor-net", "encoding:w=1,a=1"]))
def test_integer_thresholds_give_the_digits_of_the_float_output(drawn, seed, reader):
    conv, x = drawn
    assume(conv.out_channels > 0)
    torch.manual_seed(seed)
    packed = pack_layer(binary(conv, x, "xnor-net"))
    gain = torch.randn(conv.out_channels) * (torch.rand(conv.out_channels) > 0.2)  # some gains are 0: a constant
    packed.multiply(gain, torch.randn(conv.out_channels))
    packed.minimum = 0.0 if seed % 2 else packed.minimum
    y = packed(x)
    basis = build_scheme(reader).activation
    levels = basis.fit(y)
    if levels.threshold is not None and seed % 3 == 0:
        levels = Levels(levels.low, levels.step, levels.threshold.expand(1, conv.out_channels).contiguous())
    following = PackActivation(basis.terms, levels)
    fused = copy.deepcopy(packed)
    fused.reader = following

    assert torch.equal(fused(x), following(y))


def test_epilogue_adds_then_clamps():
    conv = nn.Conv2d(8, 4, 3, padding=1)
    x, residual = torch.randn(2, 8, 6, 6), torch.randn(2, 4, 6, 6)
    packed = pack_layer(binary(conv, x, "encoding:w=4,a=4"))
    plain = packed(x)
    packed.minimum, packed.maximum = 0.0, 6.0

    assert torch.equal(packed(x, residual), (plain + residual).clamp(0.0, 6.0))


def test_a_residual_that_has_to_be_broadcast_is_added_all_the_same():
    conv = nn.Conv2d(8, 4, 3, padding=1)
    x, residual = torch.randn(2, 8, 6, 6), torch.randn(1, 4, 1, 1)
    packed = pack_layer(binary(conv, x, "encoding:w=4,a=4"))
    plain = packed(x)
    packed.minimum = 0.0

    assert torch.equal(packed(x, residual), (plain + residual).relu())


def test_stored_bits_hold_the_odd_integers():
    layer = binary(nn.Conv2d(7, 5, 3), torch.randn(1, 7, 9, 9), "residual:m=3,a=2")

    assert torch.equal(pack_layer(layer).odd(), layer.odd().to(torch.int64))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_configuration_rebuilds_the_layer(scheme):
    conv = nn.Conv2d(8, 6, (3, 2), padding="same", padding_mode="zeros")
    x = torch.randn(2, 8, 7, 7)
    for layer in (binary(conv, x, scheme), binary(nn.Linear(8, 6), torch.randn(9, 8), scheme)):
        packed = pack_layer(layer)
        packed.minimum = 0.5
        kind = PackedConv2d if isinstance(packed, PackedConv2d) else PackedLinear
        rebuilt = kind.from_config(packed.config())
        rebuilt.load_state_dict(packed.state_dict())
        given_x = x if kind is PackedConv2d else x.permute(0, 2, 3, 1)

        assert torch.equal(rebuilt(given_x), packed(given_x))
