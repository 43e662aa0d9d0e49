"""Gradients through functions that have none: forward is exact, backward is the estimator that the docstring states."""

from collections.abc import Callable
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor
from torch.autograd import Function

from binarize.schemes.base import below, per_output, rows

__all__ = ["SLOPES", "STES", "CodedActivation", "CodedWeight", "Ste", "ThresholdActivation"]

Ste = Literal["clipped", "identity", "polynomial", "tanh"]
"""Straight-through estimators of one jump, by name."""
STES: tuple[Ste, ...] = get_args(Ste)
TINY = 1e-12  # half of a jump of height 0
HALVES = (torch.bfloat16, torch.float16)
PORTION = 1 << 18  # elements, 1 MB: of fewer the calls take longer than the work
OddIntegers = Callable[[Tensor, Tensor], Tensor]
"""From some outputs of a weight ``(o, ...)`` and their units ``(t, o)`` to the odd integers ``(t, o, ...)``."""


def _clipped(t: Tensor, _: float) -> Tensor:
    """1 on ``|t| <= 1`` (Rastegari et al., XNOR-Net, ECCV 2016, arXiv:1603.05279, section 3.1)."""
    return t.abs_().le_(1)


def _identity(t: Tensor, _: float) -> Tensor:
    """1 everywhere (Bengio et al., Estimating or Propagating Gradients, arXiv:1308.3432)."""
    return t.fill_(1)


def _polynomial(t: Tensor, _: float) -> Tensor:
    """``2 - 2 |t|`` on ``|t| < 1`` (Liu et al., Bi-Real Net, ECCV 2018, arXiv:1808.00278; its published code)."""
    return t.abs_().mul_(-2).add_(2).clamp_min_(0)


def _tanh(t: Tensor, temperature: float) -> Tensor:
    """``max(T, 1) / T * (1 - tanh(t / T)^2)``: the identity at large T, the jump itself as T goes to 0.

    The form of AdaBin (Tu et al., ECCV 2022; its published code, with 1 / T for its sharpness).
    """
    return t.div_(temperature).tanh_().square_().sub_(1).mul_(-max(temperature, 1.0) / temperature)


SLOPES: dict[Ste, Callable[[Tensor, float], Tensor]] = {
    "clipped": _clipped,
    "identity": _identity,
    "polynomial": _polynomial,
    "tanh": _tanh,
}
"""From an estimator's name to the slope of a jump: of the distance in half heights, overwritten, and a temperature."""


@final
class CodedWeight(Function):
    """``value = sum_t unit[t] * odd[t]``; the weight gets the identity, inside the range where there is one.

    With ``limit`` (the largest odd integer of a single uniform term) the weight's gradient stops outside
    ``|w| <= limit * unit`` and the unit's is the learnt-step one, ``odd - w / unit`` inside and ``odd`` outside
    (Esser et al., Learned Step Size Quantization, ICLR 2020, equation 3). Without it the unit gets ``odd``.

    The odd integers are computed again in backward, some outputs at a time: kept, they would take m times the weight's
    memory for m planes, and the time to write and read it.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, unit: Tensor, odd: OddIntegers, limit: float | None) -> Tensor:
        """Map weight ``(o, ...)`` and unit ``(t, o)`` to ``(o, ...)``; ``odd`` is `WeightBasis.odd` of some outputs."""
        ctx.save_for_backward(weight, unit)
        ctx.odd, ctx.limit = odd, limit
        value = torch.empty_like(weight)
        for part in portions(weight):
            terms, scale = odd(weight[part], unit[:, part]), per_output(unit[:, part], value.unsqueeze(0))
            total = torch.mul(scale[0], terms[0], out=value[part])
            for term in range(1, len(terms)):
                total.addcmul_(scale[term], terms[term])
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Return the gradients of weight and unit."""
        weight, unit = ctx.saved_tensors
        grad = grads[0]
        to_weight = grad if ctx.limit is None else torch.empty_like(weight)
        to_unit = torch.empty_like(unit)
        for part in portions(weight):
            some, passing, own = weight[part], grad[part], unit[:, part]
            for term, odd in enumerate(ctx.odd(some, own)):
                to_unit[term, part] = _row_dots(passing, odd)
            if ctx.limit is not None:
                bound = per_output(own[0].abs() * ctx.limit, some)
                inside = torch.abs(some, out=to_weight[part]).le_(bound).mul_(passing)
                to_unit[0, part] -= _row_dots(inside, some) / own[0]
        return to_weight, to_unit, None, None


@final
class CodedActivation(Function):
    """``value = low + step * clamp(floor((x - low) / step + 0.5), 0, top)`` with the learnt-step gradients.

    x gets the identity inside the range and 0 outside; step gets ``code - (x - low) / step`` inside, ``code`` outside;
    low gets 0 inside and 1 outside.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, step: Tensor, top: int) -> Tensor:
        """Map ``x`` ``(n, ...)``, with scalar ``low`` and ``step``, to the same shape."""
        ctx.save_for_backward(x, low, step)
        ctx.top = top
        value = torch.empty_like(x)
        for part in portions(x):
            total = _wide_or_new(value[part])
            torch.mul(code_of(_wide(x[part]), low, step, top), step, out=total).add_(low)
            _keep(total, value[part])
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Return the gradients of x, low and step."""
        x, low, step = ctx.saved_tensors
        grad, inverse = grads[0], 1.0 / step
        to_x, to_step, to_low = torch.empty_like(x), torch.zeros_like(step), torch.zeros_like(low)
        for part in portions(x):
            passing = _wide(grad[part])
            ratio = torch.sub(_wide(x[part]), low, out=_wide_or_new(to_x[part])).mul_(inverse)
            cut = ratio.clamp(0, ctx.top)
            passed = ratio.eq_(cut).mul_(passing)
            _keep(passed, to_x[part])
            to_low += passing.sum() - passed.sum()
            to_step -= _dot(passed, cut)  # outside, where nothing passes, the code is the cut ratio itself
            to_step += _dot(passing, cut.add_(0.5).floor_())
        return to_x, to_low, to_step, None


@final
class ThresholdActivation(Function):
    """``value = low + sum_j step_j * [not x < threshold_j]``, each jump spread over a window by an estimator.

    A jump of height d at v is taken for a slope over ``|x - v| <= d / 2``, which has the right area: with the clipped
    estimator and contiguous windows the staircase passes the gradient of x on unchanged between its ends. Then

        dA/dx = sum_j slope((x - v_j) / (d_j / 2)),  dA/dv_j = -slope(...),  dA/dd_j = [x >= v_j],  dA/dlow = 1.

    With ``low = -1, step = 2, threshold = 0`` this is sign(x) with the estimators as published for it.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, low: Tensor, step: Tensor, threshold: Tensor, ste: Ste, temperature: float
    ) -> Tensor:
        """Map ``x`` ``(n, c, ...)``, scalar low, step ``(t,)`` and threshold ``(t, ...)`` to the shape of ``x``."""
        ctx.save_for_backward(x, step, threshold)
        ctx.slope = SLOPES[ste]
        ctx.temperature = temperature
        value = torch.empty_like(x)
        for part in portions(x):
            some, total = _wide(x[part]), _wide_or_new(value[part]).copy_(low)
            for height, at in zip(step, threshold, strict=True):
                total.addcmul_(below(some, at).sub_(1), -height)  # minus 1 where it is reached, 0 elsewhere
            _keep(total, value[part])
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Return the gradients of x, low, step and threshold."""
        x, step, threshold = ctx.saved_tensors
        grad, to_x, to_threshold = grads[0], torch.empty_like(x), torch.zeros_like(threshold)
        to_step, to_low = torch.zeros_like(step), torch.zeros_like(step[0])
        half, turn = step.abs().clamp_min(TINY) / 2, step.sign()
        for part in portions(x):
            some, passing, moved = _wide(x[part]), _wide(grad[part]), _wide_or_new(to_x[part]).zero_()
            to_low += passing.sum()
            for j, at in enumerate(threshold):
                passed = ctx.slope((some - at).div_(half[j]), ctx.temperature).mul_(passing)
                moved.addcmul_(passed, turn[j])
                to_step[j] -= _dot(passing, below(some, at))
                to_threshold[j] -= passed.sum_to_size(at.shape) * turn[j]
            _keep(moved, to_x[part])
        return to_x, to_low, to_step + to_low, to_threshold, None, None


def portions(x: Tensor) -> list[slice]:
    """Return slices of the first axis of ``x`` whose elements, and a few temporaries as large, stay in a CPU's cache.

    Element by element the functions here would wait for memory, most of all where every temporary is fresh. Elsewhere,
    and while tracing, there is one slice.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling() or x.numel() <= PORTION:
        return [slice(None)]
    length = max(PORTION * len(x) // x.numel(), 1)
    return [slice(start, start + length) for start in range(0, len(x), length)]


def _wide(x: Tensor) -> Tensor:
    """Return ``x``, in float32 where it is a half float: levels are float32, and not to be rounded to its few digits.

    A processor also takes ten times as long over operands of two types.
    """
    return x.float() if x.dtype in HALVES else x


def _wide_or_new(x: Tensor) -> Tensor:
    """Return ``x`` to write to, or a new float32 tensor in place of a half float one; see `_keep`."""
    return torch.empty_like(x, dtype=torch.float32) if x.dtype in HALVES else x


def _keep(found: Tensor, place: Tensor) -> None:
    """Round ``found`` into ``place``, unless it is that already."""
    if found.dtype != place.dtype:
        place.copy_(found)


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Return the sum of the products of two tensors of one shape, without a third where their memory allows."""
    alike = one.dtype == other.dtype == torch.float32 and one.stride() == other.stride()
    if alike and (one.is_contiguous() or (one.dim() == 4 and one.is_contiguous(memory_format=torch.channels_last))):
        return torch.dot(one.as_strided((one.numel(),), (1,)), other.as_strided((one.numel(),), (1,)))
    return (one * other).sum()


def _row_dots(one: Tensor, other: Tensor) -> Tensor:
    """Return ``(o,)``: the dot products of the rows of two tensors ``(o, ...)``."""
    return rows(one * other).sum(1)


def code_of(x: Tensor, low: Tensor, step: Tensor, top: int) -> Tensor:
    """Return the uniform code of ``x``, whole numbers in ``[0, top]``: exactly what the packed form computes."""
    inverse = 1.0 / step
    return (x - low).mul_(inverse).add_(0.5).floor_().clamp_(0, top)  # in place: activations are large
