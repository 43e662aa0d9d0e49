"""What follows the float epilogue of a convolution: slopes, rounding to 16 bits, packing beside the floats."""

import dataclasses
from math import inf
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from binarize.kernels.problem import Conv2dProblem

if TYPE_CHECKING:
    from binarize.kernels.dispatch import Kernels

__all__ = ["FLOATS", "Finish", "Packing", "finished", "name_of"]

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""Types that floats may be stored in; sums are always made in the first."""


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a type without its package: ``float16``."""
    return str(dtype).removeprefix("torch.")


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Packing:
    """How a reader packs what it reads.

    Attributes:
        codes: whether it takes codes, else digit planes.
        bits: of the uniform code; of thresholds, how many there are.
        low, inverse_step: of the uniform code.
        thresholds: ``(m, 1)`` or ``(m, c)``, or None for a uniform code.
        groups: channel groups of the reader.
    """

    codes: bool
    bits: int
    low: float
    inverse_step: float
    thresholds: Tensor | None
    groups: int

    def of(self, kernels: "Kernels", y: Tensor) -> Tensor:
        """Return floats ``(n, c, h, w)`` packed."""
        if self.thresholds is not None:
            by_thresholds = kernels.encode_thresholds if self.codes else kernels.pack_thresholds
            return by_thresholds(y, self.thresholds, self.groups)
        by_steps = kernels.encode_uniform if self.codes else kernels.pack_uniform
        return by_steps(y, self.low, self.inverse_step, self.bits, self.groups)


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Finish:
    """What is made of ``y = bias + sums + residual``: ``clamp(y > 0 ? y : slope y)``, rounded to ``dtype``.

    With slopes ``y`` is rounded before them too, as by a layer of its own.

    Attributes:
        slope: ``(o,)`` float32 of what is not above 0 (PReLU), or None.
        dtype: one of `FLOATS`.
        packing: of a reader beside others, made of what was rounded; or None.
    """

    slope: Tensor | None = None
    dtype: torch.dtype = torch.float32
    packing: Packing | None = None


def finished(
    kernels: "Kernels",
    problem: Conv2dProblem,
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    row_class: Tensor | None,
    column_class: Tensor | None,
    residual: Tensor | None,
    minimum: float,
    maximum: float,
    finish: Finish,
) -> tuple[Tensor, Tensor | None]:
    """Return the floats ``(n, o, h', w')`` and what is packed of them, one operation after the other."""
    wide = None if residual is None else residual.float()
    limits = (minimum, maximum) if finish.slope is None else (-inf, inf)
    y = kernels.conv2d(problem, x, weight, scale, bias, row_class, column_class, wide, *limits)
    if finish.slope is not None:
        y = y.to(finish.dtype).float()
        y = torch.where(y > 0, y, y * finish.slope[:, None, None]).clamp(minimum, maximum)
    y = y.to(finish.dtype)
    return y, None if finish.packing is None else finish.packing.of(kernels, y.float())
