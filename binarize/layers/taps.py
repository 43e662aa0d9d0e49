"""Which inputs lie under each output of a convolution of one, two or three dimensions, transposed or not.

Along each axis by itself: an ordinary convolution reads at ``o * stride - before + k * dilation``. A transposed one
puts the product of input i and tap k at ``i * stride - before + k * dilation``; seen from output o, tap k reads input
``(o + before - k * dilation) / stride`` where that is a whole number. Outputs of one remainder modulo the stride, a
*phase*, share their taps: each phase is an ordinary convolution of stride 1, and all of them together do exactly the
products of the transposed one.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

__all__ = ["Axis", "NdGeometry", "Phase"]

AXES = 3


@final
@dataclasses.dataclass(frozen=True)
class Phase:
    """Outputs of one axis that are computed as one ordinary convolution.

    Attributes:
        first: the first of these outputs.
        every: how far apart they are.
        taps: kernel taps that they read, in the order of the inputs.
        start: input that the first output reads through its first tap.
        stride: inputs from one of these outputs to the next.
        dilation: inputs from one tap to the next.
    """

    first: int
    every: int
    taps: tuple[int, ...]
    start: int
    stride: int
    dilation: int

    def outputs(self, out: int) -> int:
        """Return how many of ``out`` outputs are of this phase."""
        return max(-(-(out - self.first) // self.every), 0)

    def span(self, out: int) -> tuple[int, int]:
        """Return the first input that is read for ``out`` outputs of the axis, and the one after the last."""
        last = (self.outputs(out) - 1) * self.stride + (len(self.taps) - 1) * self.dilation
        return self.start, self.start + last + 1


@final
@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of a convolution.

    Attributes:
        kernel: taps.
        stride: of the outputs; of the inputs where transposed.
        before: padding at the low end; outputs cut off there where transposed.
        after: at the high end.
        dilation: from one tap to the next.
        extra: outputs added at the high end of a transposed convolution.
        transposed: whether it is one.
    """

    kernel: int = 1
    stride: int = 1
    before: int = 0
    after: int = 0
    dilation: int = 1
    extra: int = 0
    transposed: bool = False

    def out(self, size: int) -> int:
        """Return how many outputs there are for ``size`` inputs."""
        reach, border = self.dilation * (self.kernel - 1), self.before + self.after
        if self.transposed:
            return (size - 1) * self.stride - border + reach + self.extra + 1
        return (size + border - reach - 1) // self.stride + 1

    def taps(self, size: int) -> Tensor:
        """Return the input under each tap of each output ``(out, kernel)`` int64; -1 where there is none."""
        place = torch.arange(self.out(size)).unsqueeze(1)
        step = torch.arange(self.kernel).unsqueeze(0) * self.dilation
        if self.transposed:
            reached = place + self.before - step
            index = reached.div(self.stride, rounding_mode="floor")
            inside = reached % self.stride == 0
        else:
            index, inside = place * self.stride - self.before + step, torch.tensor(True)
        return torch.where(inside & (index >= 0) & (index < size), index, -1)

    def phases(self) -> tuple[Phase, ...]:
        """Return the phases: one of an ordinary convolution, as many as the stride of a transposed one."""
        if not self.transposed:
            return (Phase(0, 1, tuple(range(self.kernel)), -self.before, self.stride, self.dilation),)
        found, step = [], self.dilation // math.gcd(self.dilation, self.stride)
        for first in range(self.stride):
            shift = first + self.before
            taps = [k for k in reversed(range(self.kernel)) if (shift - k * self.dilation) % self.stride == 0]
            start = (shift - taps[0] * self.dilation) // self.stride if taps else 0
            found.append(Phase(first, self.stride, tuple(taps), start, 1, step))
        return tuple(found)


@final
@dataclasses.dataclass(frozen=True)
class NdGeometry:
    """The whole numbers of a convolution of one to three dimensions, one number per dimension in each tuple.

    Attributes:
        channels: that come in.
        out_channels: that go out.
        kernel: taps.
        stride: see `Axis`, and so are the others.
        before: padding at the low ends.
        after: padding at the high ends.
        dilation: from tap to tap.
        extra: ``output_padding`` of a transposed convolution.
        transposed: whether it is one.
        groups: that the channels fall into.
        weight_terms: planes of each term of the weight.
        activation_terms: of the input.
    """

    channels: int
    out_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    dilation: tuple[int, ...]
    extra: tuple[int, ...]
    transposed: bool = False
    groups: int = 1
    weight_terms: tuple[int, ...] = (1,)
    activation_terms: tuple[int, ...] = (1,)

    @property
    def dimensions(self) -> int:
        """How many: 1, 2 or 3."""
        return len(self.kernel)

    @property
    def depth(self) -> int:
        """Products summed in one output of an ordinary convolution: k."""
        return self.channels // self.groups * math.prod(self.kernel)

    @property
    def axes(self) -> tuple[Axis, Axis, Axis]:
        """Time, rows and columns; what a convolution does not have is an axis of one tap."""
        fields = (self.kernel, self.stride, self.before, self.after, self.dilation, self.extra)
        own = [
            Axis(k, s, low, high, d, more, self.transposed) for k, s, low, high, d, more in zip(*fields, strict=True)
        ]
        first, second, third = [Axis()] * (AXES - len(own)) + own
        return first, second, third

    def output_size(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Return the sizes of the output for an input of the given sizes, one per dimension."""
        return tuple(axis.out(size) for axis, size in zip(self.axes[-len(sizes) :], sizes, strict=True))

    def volume(self, x: Tensor) -> Tensor:
        """Return ``(n, c, ...)`` as ``(n, c, t, h, w)``."""
        missing = AXES + 2 - x.dim()
        return x.reshape(*x.shape[:2], *[1] * missing, *x.shape[2:])

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> "NdGeometry":
        """Rebuild from what `dataclasses.asdict` gave, lists for tuples allowed."""
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in values.items()}
        return cls(**given)
