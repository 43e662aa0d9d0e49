"""Float kernels of schedules, against torch in float64; every level sums in the same order and gives the same bits."""

import os
from unittest import mock

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from binarize.kernels import steps
from binarize.kernels.compiled import native
from binarize.kernels.schedule import Draft, dense_level, why_not_compiled

INFINITY = float("inf")
NAN = float("nan")

pytestmark = pytest.mark.skipif(why_not_compiled() is not None, reason="no kernels are compiled")
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def levels():
    """Yield inside each level that runs here."""
    kernels = {"avx512": "avx512_vnni", "avx2": "avx2", "scalar": "scalar"}
    for index, (name, runs) in enumerate(native.dense_levels()):
        if runs:
            with mock.patch.dict(os.environ, BINARIZE_KERNEL=kernels[name]):
                assert dense_level() == index
                yield name


def on_each_level(build, *tensors):
    """Return what ``build(draft, *values)`` computes, the same bits on each level."""
    seen = []
    for _ in levels():
        draft = Draft()
        values = [draft.value(x.shape, channels_last=x.dim() == 4 and not x.is_contiguous()) for x in tensors]
        seen += draft.finish(values, [build(draft, *values)]).run(tensors)
    for other in seen[1:]:
        torch.testing.assert_close(other, seen[0], rtol=0, atol=0, equal_nan=True)
    return seen[0]


def image(shape, layout, seed=0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=layout)


def check_conv(conv, x, limits=(-INFINITY, INFINITY)):
    with torch.no_grad():
        seen = on_each_level(lambda d, v: steps.dense_conv2d(d, conv, conv.padding, v, limits), x)
        window = conv.stride, conv.padding, conv.dilation, conv.groups
        bias = None if conv.bias is None else conv.bias.double()
        wanted = F.conv2d(x.double(), conv.weight.double(), bias, *window)
        size = F.conv2d(x.double().abs(), conv.weight.double().abs(), None if bias is None else bias.abs(), *window)
    # One rounding of half an ulp for each product that is added, of a partial sum no larger than all magnitudes.
    bound = size * conv.weight[0].numel() * 2**-24
    assert seen.shape == wanted.shape
    assert ((seen.double() - wanted.clamp(*limits)).abs() <= bound).all()


@layouts
@settings(max_examples=60, deadline=None)
@given(
    channels=st.integers(1, 40),
    outputs=st.integers(1, 70),
    groups=st.sampled_from((1, 1, 1, 2)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    size=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 30)),
    limits=st.sampled_from(((-INFINITY, INFINITY), (0.0, INFINITY), (-0.5, 0.5))),
    bias=st.booleans(),
)
def test_any_convolution_is_right_within_its_roundings(
    layout, channels, outputs, groups, kernel, stride, padding, dilation, size, limits, bias
):
    n, h, w = size
    assume(all(s + 2 * p > d * (k - 1) for s, p, d, k in zip((h, w), padding, dilation, kernel, strict=True)))
    torch.manual_seed(channels * 100 + outputs)
    conv = nn.Conv2d(channels * groups, outputs * groups, kernel, stride, padding, dilation, groups, bias)
    check_conv(conv, image((n, channels * groups, h, w), layout), limits)


@layouts
@settings(max_examples=25, deadline=None)
@given(
    channels=st.integers(2, 70),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    size=st.tuples(st.integers(1, 3), st.integers(9, 20), st.integers(9, 20)),
)
def test_depthwise_convolutions_are_right_within_their_roundings(layout, channels, kernel, stride, dilation, size):
    torch.manual_seed(channels)
    padding = tuple(k // 2 for k in kernel)
    conv = nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels)
    check_conv(conv, image((size[0], channels, *size[1:]), layout), (0.0, 6.0))


@pytest.mark.parametrize(
    ("conv", "size"),
    [
        (nn.Conv2d(3, 64, 7, 2, 3, bias=False), (1, 60, 64)),
        (nn.Conv2d(70, 300, 1), (2, 33, 41)),  # flattened, more than one chunk of pixels
        (nn.Conv2d(512, 30, 3, padding=1), (1, 7, 7)),  # few rows: threads share the blocks
        (nn.Conv2d(1, 40, 3, padding=1), (1, 28, 28)),
        (nn.Conv2d(4, 8, 3, padding=(40, 0)), (1, 2, 9)),  # rows of nothing but padding
    ],
)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_work_without_changing_a_bit(conv, size, threads):
    x = image((size[0], conv.in_channels, *size[1:]), torch.channels_last)
    torch.set_num_threads(1)
    with torch.no_grad():
        build = lambda d, v: steps.dense_conv2d(d, conv, conv.padding, v, (0.0, INFINITY))  # noqa: E731
        alone = on_each_level(build, x)
        torch.set_num_threads(threads)
        assert torch.equal(on_each_level(build, x), alone)
    torch.set_num_threads(1)
    check_conv(conv, x)


@layouts
@settings(max_examples=50, deadline=None)
@given(
    channels=st.integers(1, 40),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.integers(1, 2),
    size=st.tuples(st.integers(1, 2), st.integers(7, 16), st.integers(7, 16)),
    seed=st.integers(0, 99),
)
def test_the_largest_of_a_window_is_torchs_nan_included(layout, channels, kernel, stride, dilation, size, seed):
    padding = tuple(k // 2 for k in kernel)
    x = image((size[0], channels, *size[1:]), layout, seed)
    x[x > 2] = NAN
    x[x < -2] = -INFINITY
    window = (*kernel, *stride, *padding, dilation, dilation)

    seen = on_each_level(lambda d, v: steps.pool(d, v, window, largest=True), x)

    wanted = F.max_pool2d(x, kernel, stride, padding, dilation)
    torch.testing.assert_close(seen, wanted, rtol=0, atol=0, equal_nan=True)


@layouts
@settings(max_examples=40, deadline=None)
@given(
    channels=st.integers(1, 40),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    counts=st.booleans(),
    divisor=st.sampled_from((None, 5)),
)
def test_the_mean_of_a_window_is_torchs(layout, channels, kernel, stride, counts, divisor):
    padding = tuple(k // 2 for k in kernel)
    x = image((2, channels, 9, 11), layout)
    taps = kernel[0] * kernel[1]
    chosen = divisor if divisor is not None else taps if counts else 0

    seen = on_each_level(
        lambda d, v: steps.pool(d, v, (*kernel, *stride, *padding, 1, 1), largest=False, divisor=chosen), x
    )

    options = {"count_include_pad": counts, "divisor_override": divisor}
    wanted = F.avg_pool2d(x.double(), kernel, stride, padding, **options)
    # A rounding for each of at most 16 values and the division, of sums no larger than 16 times 5.
    torch.testing.assert_close(seen.double(), wanted, rtol=0, atol=17 * 80 * 2**-24)


@layouts
def test_sums_clamp_and_keep_nan(layout):
    a, b = image((2, 5, 7, 3), layout), image((2, 5, 7, 3), layout, seed=1)
    a[0, 0, 0, 0], b[1, 1, 1, 1] = NAN, NAN

    seen = on_each_level(lambda d, x, y: d.sum(x, y, -0.5, 0.75), a, b)

    torch.testing.assert_close(seen, (a + b).clamp(-0.5, 0.75), rtol=0, atol=0, equal_nan=True)
    assert seen.isnan().sum() == 2


@settings(max_examples=30, deadline=None)
@given(shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(1, 5)))
def test_the_order_of_memory_changes_and_no_value(shape):
    x = image(shape, torch.contiguous_format)

    last = on_each_level(lambda d, v: d.sum(d.channels_last(v), None, -9.0, 9.0), x)
    back = on_each_level(lambda d, v: d.sum(d.plain(d.channels_last(v)), None, -9.0, 9.0), x)

    assert torch.equal(last, x)
    assert torch.equal(back, x)
    assert back.is_contiguous()
