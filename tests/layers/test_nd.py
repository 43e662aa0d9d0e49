"""Convolutions of one and three dimensions and transposed ones: against torch, and packed against the training form."""

import copy

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from binarize.kernels import dispatch
from binarize.layers.binary import BinaryActivation
from binarize.layers.binary_nd import BinaryConvNd, outputs_first, outputs_second
from binarize.layers.packed import ROUTES
from binarize.layers.taps import Axis
from binarize.passes.pack import pack_layer
from binarize.passes.route import why_not
from binarize.schemes.presets import build_scheme

KINDS = (nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# One term of many planes; thresholds per channel; a low that is not 0, several terms on either side.
SCHEMES = ["xnor-net", "xnor-net:shift=channel", "encoding:w=3,a=4", "residual:m=2,a=2", "abc-net:m=2,n=2"]


@st.composite
def convolutions(draw, kind):
    """A random convolution and an input that it accepts, however small against its dilation."""
    axes = int(kind.__name__[-2])
    numbers = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(axes))  # noqa: E731
    groups = draw(st.integers(1, 3))
    channels, outputs = groups * draw(st.integers(1, 70 // groups)), groups * draw(st.integers(1, 4))
    kernel, stride, padding, dilation = numbers(1, 4), numbers(1, 3), numbers(0, 5), numbers(1, 4)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if kind.__name__.startswith("ConvT"):
        extra = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
        options["output_padding"] = tuple(extra)
    elif draw(st.booleans()):
        options |= {"padding": "same", "stride": 1}
    torch.manual_seed(draw(st.integers(0, 2**31)))
    conv = kind(channels, outputs, kernel, bias=draw(st.booleans()), **options)
    x = torch.randn(draw(st.integers(1, 2)), channels, *numbers(1, 6))
    try:
        assume(conv(x).numel() > 0)
    except RuntimeError:  # the output would have no size
        assume(False)
    return conv, x.relu() if draw(st.booleans()) else x


def binary(conv, x, scheme):
    scheme = build_scheme(scheme)
    activation = BinaryActivation(scheme.activation)
    activation.set_levels(scheme.activation.fit(x.flatten()))
    return BinaryConvNd.from_float(conv, scheme, activation).eval()


def rounding(layer, x):
    """How far float32 sums of k products of the largest size may differ: k + 4 roundings on either side."""
    weight, value = layer.weight_value().detach(), layer.activation(x).detach()
    depth = weight[0].numel()
    return 2 * (depth + 4) * 2.0**-24 * float(weight.abs().amax() * value.abs().amax() * depth + 1.0)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch's own copy is slow
@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_the_packed_form_equals_the_training_form_on_both_routes(kind, data):
    conv, x = data.draw(convolutions(kind))
    layer = binary(conv, x, data.draw(st.sampled_from(SCHEMES)))

    with torch.no_grad():
        wanted = layer(x)
        packed = pack_layer(layer)
        for route in ("popcount", "int8"):
            packed.activation.route = route
            got = packed(x)

            assert got.shape == wanted.shape
            # both sum the same products in float32, in different orders
            assert (got - wanted).abs().max() <= rounding(layer, x)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=10)
@given(data=st.data())
def test_in_full_precision_it_is_the_original(kind, data):
    conv, x = data.draw(convolutions(kind))

    with torch.no_grad():
        got = binary(conv, x, "encoding:w=2,a=2").original(x)

    # the same convolution of the same numbers; "same" padding may be copied first, which changes no sum
    torch.testing.assert_close(got, conv(x).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("level", [name for name, why in dispatch.levels() if why is None])
def test_every_level_gives_the_same_bits(level, monkeypatch):
    torch.manual_seed(0)
    conv, x = nn.ConvTranspose2d(40, 6, 4, 2, 1), torch.randn(2, 40, 5, 7)
    packed = pack_layer(binary(conv, x, "encoding:w=2,a=3"))
    wanted = packed(x)

    monkeypatch.setenv("BINARIZE_KERNEL", level)
    forms = [route for route in ROUTES if why_not(packed.geometry, route) is None]

    assert forms
    for route in forms:
        again = copy.deepcopy(packed)
        again.activation.route = route
        assert torch.equal(again(x), wanted)


@pytest.mark.parametrize("mode", ["circular", "replicate", "reflect"])
def test_a_signal_may_be_padded_by_itself(mode):
    torch.manual_seed(0)
    conv, x = nn.Conv1d(5, 4, 3, padding=2, padding_mode=mode), torch.randn(2, 5, 9)
    layer = binary(conv, x, "encoding:w=3,a=4")

    with torch.no_grad():
        wanted, got = layer(x), pack_layer(layer)(x)

    torch.testing.assert_close(layer.original(x), conv(x), rtol=0, atol=1e-6)
    assert (got - wanted).abs().max() <= rounding(layer, x)


def test_gradients_reach_weight_unit_levels_and_input():
    torch.manual_seed(0)
    layer = binary(nn.ConvTranspose3d(4, 6, 3, 2, 1, 1, groups=2), torch.randn(2, 4, 3, 4, 5), "encoding:w=2,a=2")
    x = torch.randn(2, 4, 3, 4, 5, requires_grad=True)

    layer.train()(x).square().mean().backward()

    grads = [x.grad, layer.weight.grad, layer.unit.grad, layer.activation.step.grad]
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads)


@given(groups=st.integers(1, 3), inputs=st.integers(1, 3), outputs=st.integers(1, 3))
def test_turning_a_transposed_weight_and_back_changes_nothing(groups, inputs, outputs):
    weight = torch.randn(groups * inputs, outputs, 2, 3)

    turned = outputs_first(weight, groups)

    assert turned.shape == (groups * outputs, inputs, 2, 3)
    assert torch.equal(outputs_second(turned, groups), weight)


@settings(deadline=None, max_examples=200)
@given(
    kernel=st.integers(1, 5), stride=st.integers(1, 4), padding=st.integers(0, 6), dilation=st.integers(1, 5),
    extra=st.integers(0, 3), size=st.integers(1, 8),
)  # fmt: skip
def test_phases_read_what_a_transposed_convolution_reads(kernel, stride, padding, dilation, extra, size):
    axis = Axis(kernel, stride, padding, padding, dilation, extra, transposed=True)
    out = axis.out(size)
    assume(out > 0)
    sums = torch.zeros(out, dtype=torch.int64)
    for source in range(size):
        for tap in range(kernel):
            place = source * stride - padding + tap * dilation
            if 0 <= place < out:
                sums[place] += (source + 1) * 10**tap

    taps = axis.taps(size)
    assert ((taps + 1) * 10 ** torch.arange(kernel)).sum(1).tolist() == sums.tolist()
    for phase in axis.phases():
        part = taps[phase.first :: phase.every]
        assert len(part) == phase.outputs(out)
        untouched = [tap for tap in range(kernel) if tap not in phase.taps]
        assert (part[:, untouched] == -1).all()
        for index in range(len(part)):
            for number, tap in enumerate(phase.taps):
                source = phase.start + index * phase.stride + number * phase.dilation
                assert part[index, tap] == (source if 0 <= source < size else -1)
