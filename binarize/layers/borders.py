"""Tables that depend on where an output lies: border classes, and the integer thresholds of one-plane outputs."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["axis_classes", "threshold_table"]

INT32 = torch.iinfo(torch.int32)


def axis_classes(size: int, out: int, kernel: int, stride: int, padding: int, dilation: int) -> tuple[Tensor, Tensor]:
    """Tell the outputs along one axis apart by which kernel taps fall inside the image.

    Returns:
        The class of each output ``(out,)``, and which taps are inside per class ``(classes, kernel)`` bool. However
        large the dilation is against the image, each distinct set of taps is a class of its own.
    """
    start = torch.arange(out).unsqueeze(1) * stride - padding
    tap = start + torch.arange(kernel).unsqueeze(0) * dilation
    valid, index = torch.unique((tap >= 0) & (tap < size), dim=0, return_inverse=True)
    return index, valid


def threshold_table(
    digit: Callable[[Tensor], Tensor], bias: Tensor, scale: Tensor, most: int
) -> tuple[Tensor, Tensor, None]:
    """Find the integer at which a one-plane output changes, by bisecting the float32 expression itself.

    The expression ``digit(bias + scale * acc)`` is monotone in acc; dividing instead would round differently from the
    epilogue that the threshold replaces.

    Args:
        digit: maps floats ``(classes, o)`` to bool.
        bias: ``(classes, o)``.
        scale: ``(o,)``; its sign tells the direction, 0 gives a constant.
        most: bound on ``|acc|``.

    Returns:
        ``(classes, o)`` int32 thresholds T, ``(o,)`` bool flip: the digit is ``(acc >= T) xor flip``.
    """
    flip = scale < 0
    below = torch.full_like(bias, -most - 1, dtype=torch.int64)  # the digit differs from its end value here or earlier
    above = torch.full_like(below, most + 1)
    for _ in range((2 * most + 2).bit_length()):
        middle = (below + above) // 2
        reached = digit(bias + scale * middle.float()) ^ flip
        above, below = torch.where(reached, middle, above), torch.where(reached, below, middle)
    constant = digit(bias)
    fixed = torch.where(constant, INT32.min, INT32.max)
    thresholds = torch.where(scale == 0, fixed, above)
    return thresholds.int(), flip, None
