"""Gradients through functions that have none: forward is exact, backward is the estimator that the docstring states."""

from typing import Any, final

import torch
from torch import Tensor
from torch.autograd import Function

__all__ = ["CodedActivation", "CodedWeight", "ThresholdActivation"]


@final
class CodedWeight(Function):
    """``value = sum_t unit[t] * odd[t]``; the weight gets the identity, inside the range where there is one.

    With ``limit`` (the largest odd integer of a single uniform term) the weight's gradient stops outside
    ``|w| <= limit * unit`` and the unit's is the learnt-step one, ``odd - w / unit`` inside and ``odd`` outside
    (Esser et al., Learned Step Size Quantization, ICLR 2020, equation 3). Without it the unit gets ``odd``.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, unit: Tensor, odd: Tensor, limit: float | None) -> Tensor:
        """Map weight ``(o, ...)``, unit ``(t, o)`` and odd ``(t, o, ...)`` to ``(o, ...)``."""
        ctx.save_for_backward(weight, unit, odd)
        ctx.limit = limit
        return (unit.reshape(*unit.shape, *[1] * (weight.dim() - 1)) * odd).sum(0)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Return the gradients of weight and unit."""
        weight, unit, odd = ctx.saved_tensors
        grad = grads[0]
        rest = tuple(range(2, odd.dim()))
        if ctx.limit is None:
            return grad, (grad * odd).sum(rest), None, None
        ratio = weight / unit[0].reshape(-1, *[1] * (weight.dim() - 1))
        inside = ratio.abs() <= ctx.limit
        slope = torch.where(inside, odd[0] - ratio, odd[0])
        return grad * inside, (grad * slope).sum(tuple(range(1, weight.dim()))).unsqueeze(0), None, None


@final
class CodedActivation(Function):
    """``value = low + step * clamp(floor((x - low) / step + 0.5), 0, top)`` with the learnt-step gradients.

    x gets the identity inside the range and 0 outside; step gets ``code - (x - low) / step`` inside, ``code`` outside;
    low gets 0 inside and 1 outside.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, step: Tensor, top: int) -> Tensor:
        """Map ``x`` of any shape, with scalar ``low`` and ``step``, to the same shape."""
        ctx.save_for_backward(x, low, step)
        ctx.top = top
        return code_of(x, low, step, top).mul_(step).add_(low)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Return the gradients of x, low and step."""
        x, low, step = ctx.saved_tensors
        grad = grads[0]
        ratio = (x - low) / step
        code = code_of(x, low, step, ctx.top)
        inside = (ratio >= 0) & (ratio <= ctx.top)
        slope = torch.where(inside, code - ratio, code)
        return grad * inside, (grad * ~inside).sum(), (grad * slope).sum(), None


@final
class ThresholdActivation(Function):
    """``value = low + step * [not x < threshold]``; x gets the identity within half a step of the threshold.

    With ``low = -1, step = 2, threshold = 0`` this is sign(x) with the clipped straight-through estimator
    (Rastegari et al., XNOR-Net, ECCV 2016, section 3.1). The threshold gets minus what x gets.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, step: Tensor, threshold: Tensor) -> Tensor:
        """Map ``x`` ``(n, c, ...)`` with scalar ``low``, ``step`` and broadcastable ``threshold`` to the same shape."""
        digit = (~(x < threshold)).to(x.dtype)
        ctx.save_for_backward(x, step, threshold, digit)
        return low + step * digit

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Return the gradients of x, low, step and threshold."""
        x, step, threshold, digit = ctx.saved_tensors
        grad = grads[0]
        passed = grad * ((x - threshold).abs() <= step / 2)
        return passed, grad.sum(), (grad * digit).sum(), -passed.sum_to_size(threshold.shape)


def code_of(x: Tensor, low: Tensor, step: Tensor, top: int) -> Tensor:
    """Return the uniform code of ``x``, whole numbers in ``[0, top]``: exactly what the packed form computes."""
    inverse = 1.0 / step
    return (x - low).mul_(inverse).add_(0.5).floor_().clamp_(0, top)  # in place: activations are large
