"""What a schedule may hold: the calls of each kernel, added to a `Draft`. Values in, values out; addresses stay inside.

Packed calls compute what the op of the same name in `binarize.kernels.ops` computes, bit for bit. Float calls sum by
fused multiply-add in one order, the same at every level: bias, then kernel rows, kernel columns, channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from binarize.errors import ModelError, NoKernelError
from binarize.kernels.codes import depth
from binarize.kernels.compiled import Compiled, geometry
from binarize.kernels.dispatch import choose
from binarize.kernels.format import BLOCK, words
from binarize.kernels.problem import Conv2dProblem, UniformCode
from binarize.kernels.schedule import Draft, Value, dense_level

__all__ = ["conv2d", "conv2d_threshold", "dense_conv2d", "dense_weight", "pack", "pool", "why_not_conv2d"]

_VALUES, _CODES, _DIGITS = 0, 1, 2  # Form of native/schedule.h
_UNCODED = (0, 0.0, 0.0, 1)


def _level(problem: Conv2dProblem | None = None) -> int:
    kernels = choose(problem)
    if not isinstance(kernels, Compiled):
        raise NoKernelError(problem or "packing", {"reference": "is plain torch, and no part of a schedule"})
    return kernels.index


def why_not_conv2d(problem: Conv2dProblem) -> str | None:
    """Return why no compiled kernel runs ``problem`` here, or None."""
    try:
        _level(problem)
    except NoKernelError as error:
        return "; ".join(dict.fromkeys(error.reasons.values()))
    return None


def pack(
    draft: Draft,
    x: Value,
    *,
    codes: bool,
    bits: int,
    groups: int,
    low: float = 0.0,
    inverse_step: float = 0.0,
    thresholds: Tensor | None = None,
) -> Value:
    """Add `ops.pack_uniform`, `pack_thresholds`, `encode_uniform` or `encode_thresholds` of an image."""
    n, c, h, w = x.shape
    if codes:
        per_group, strips = depth(c // groups) // 4, 1 if thresholds is None else bits
        out = draft.value((n, h, w, groups, strips, 4 * per_group), torch.uint8)
    else:
        per_group = words(c // groups)
        out = draft.value((n, h, w, groups, bits, per_group), torch.int32)
    level = _level()
    numbers = low, inverse_step, draft.keep(thresholds), thresholds is not None and thresholds.shape[1] == 1
    pooled = draft.pooling_of(x) if x.channels_last else None
    if pooled is not None:
        fixed = *pooled.numbers, level, codes, [n, h * w, c], groups, bits, per_group, *numbers
        source, floats = pooled.x, pooled.out
        return draft.also(lambda to, at: to.pool_pack(*fixed, at(source), at(floats), at(out)), out)
    layout = [n, h * w, c], groups, bits, per_group, x.channels_last
    return draft.call(
        lambda to, at: to.pack(level, codes, *layout, *numbers, at(x), at(out)), [x], out
    )  # fmt: skip


def conv2d(
    draft: Draft,
    problem: Conv2dProblem,
    x: Value,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    classes: tuple[Tensor | None, Tensor | None],
    residual: Value | None,
    limits: tuple[float, float],
    code: UniformCode | None = None,
) -> Value:
    """Add `ops.conv2d`, or with ``code`` `ops.conv2d_codes`; x are planes or codes, the residual an image.

    The channels of a group of ``code`` must be a multiple of 4 where there are several groups.
    """
    size, shape = _sizes(problem, x)
    if code is None:
        out, cleared, coding, form = draft.value(shape, channels_last=True), 0, _UNCODED, _VALUES
    else:
        per_group = shape[1] // code.groups
        full = depth(per_group)
        out = draft.value((shape[0], *shape[2:], code.groups, 1, full), torch.uint8)
        cleared, form = 0 if full == per_group else out.bytes, _CODES
        coding = code.groups * full, code.low, code.inverse_step, code.bits
    residual = None if residual is None else draft.channels_last(residual)
    tables = [draft.keep(scale), draft.keep(bias), 0, *map(draft.keep, classes)]
    fixed = _level(problem), geometry(problem, weight), size, draft.keep(weight), tables, bias.shape[0], *limits, form
    return draft.call(
        lambda to, at: to.conv2d(*fixed, *coding, at(x), at(residual), at(out), cleared), [x, residual], out
    )  # fmt: skip


def conv2d_threshold(
    draft: Draft,
    problem: Conv2dProblem,
    x: Value,
    weight: Tensor,
    thresholds: Tensor,
    flip: Tensor,
    classes: tuple[Tensor | None, Tensor | None],
) -> Value:
    """Add `ops.conv2d_threshold`."""
    size, shape = _sizes(problem, x)
    out = draft.value((shape[0], *shape[2:], 1, 1, words(problem.out_channels)), torch.int32)
    tables = [0, draft.keep(thresholds), draft.keep(flip), *map(draft.keep, classes)]
    fixed = _level(problem), geometry(problem, weight), size, draft.keep(weight), tables, thresholds.shape[0], 0.0, 0.0
    return draft.call(
        lambda to, at: to.conv2d(*fixed, _DIGITS, *_UNCODED, at(x), at(None), at(out), out.bytes), [x], out
    )  # fmt: skip


def _sizes(problem: Conv2dProblem, x: Value) -> tuple[list[int], tuple[int, int, int, int]]:
    n, h, w = x.shape[:3]
    oh, ow = problem.checked_size(h, w)
    return [n, h, w, oh, ow], (n, problem.out_channels, oh, ow)


def dense_weight(conv: nn.Conv2d) -> Tensor:
    """Return the weight of a float convolution in the order in which the kernels read it.

    Float32 ``(groups, blocks, taps, c / groups, 32)``, filled up with zeros; of a depthwise one ``(taps, groups)``.
    """
    weight, groups = conv.weight.detach(), conv.groups
    outputs, channels = weight.shape[0] // groups, weight.shape[1]
    by_tap = weight.reshape(groups, outputs, channels, -1).permute(0, 3, 2, 1)  # (groups, taps, c, o)
    if is_depthwise(conv):
        depthwise: Tensor = by_tap.reshape(groups, -1).t().contiguous()
        return depthwise
    blocks = -(-outputs // BLOCK)
    filled = nn.functional.pad(by_tap, (0, blocks * BLOCK - outputs))
    ordered: Tensor = filled.unflatten(-1, (blocks, BLOCK)).permute(0, 3, 1, 2, 4).contiguous()
    return ordered


def is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether each channel is convolved by itself."""
    return conv.groups == conv.in_channels == conv.out_channels and conv.groups > 1


def dense_conv2d(draft: Draft, conv: nn.Conv2d, padding: Sequence[int], x: Value, limits: tuple[float, float]) -> Value:
    """Add a float convolution with zero padding ``(rows, columns)`` and a clamp."""
    n, _, h, w = x.shape
    if x.channels_last or conv.groups > 1 or conv.in_channels > 4:
        x = draft.channels_last(x)
    window = [*map(int, (*conv.kernel_size, *conv.stride, *padding, *conv.dilation))]
    out = draft.value((n, conv.out_channels, *_window_size((h, w), window)), channels_last=True)
    bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().float().contiguous()
    channels = conv.groups, conv.in_channels // conv.groups, conv.out_channels // conv.groups
    size, source = [n, h, w, *out.shape[2:]], x
    tables = draft.keep(dense_weight(conv)), draft.keep(bias)
    fixed = dense_level(), size, window, *channels, source.channels_last, *tables, *limits
    return draft.call(
        lambda to, at: to.dense(*fixed, at(source), at(out)), [source], out
    )  # fmt: skip


def pool(
    draft: Draft, x: Value, window: Sequence[int], *, largest: bool, divisor: int = 0, size: Sequence[int] | None = None
) -> Value:
    """Add the largest value, or the mean, of each window.

    Args:
        draft: Where to.
        x: Image ``(n, c, h, w)``.
        window: Kernel, stride, padding and dilation, each rows before columns.
        largest: Whether the largest value is asked for.
        divisor: Of a mean; 0 divides by the taps inside the image.
        size: Rows and columns of the output where they are not what the window gives.
    """
    n, c, h, w = x.shape
    source = draft.channels_last(x)
    shape = _window_size((h, w), window) if size is None else tuple(size)
    if min(shape) < 1:
        raise ModelError(f"cannot pool an image of {h}x{w} by windows {tuple(window[:2])}: it is too small")
    out = draft.value((n, c, *shape), channels_last=True)
    fixed = dense_level(), [n, h, w, *shape], list(window), c, largest, divisor
    return draft.pool(lambda to, at: to.pool(*fixed, at(source), at(out)), fixed, source, out)


def _window_size(size: tuple[int, int], window: Sequence[int]) -> tuple[int, int]:
    found = []
    for axis in (0, 1):
        kernel, stride, padding, dilation = window[axis::2]
        found.append((size[axis] + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1)
    return found[0], found[1]
