"""`Conv2dProblem`: all that one packed convolution is, apart from its tensors."""

import dataclasses
import functools
import math
from typing import final

from binarize.errors import ModelError
from binarize.kernels.codes import depth, field_bits, field_bytes, folded_shape
from binarize.kernels.format import prepared_shape, words

__all__ = ["Conv2dProblem", "UniformCode"]

_MOST_PLANES = 32  # of one operand, over all its terms: kMaxPlanes of native/problem.h
_LIMIT = 2**31


@final
@dataclasses.dataclass(frozen=True)
class UniformCode:
    """The code ``clamp(floor((y - low) * inverse_step + 0.5), 0, 2^bits - 1)`` that outputs are given as."""

    low: float
    inverse_step: float
    bits: int
    groups: int


@final
@dataclasses.dataclass(frozen=True, eq=False)  # compared by identity: hashing fields would cost every call microseconds
class Conv2dProblem:
    """Geometry of a packed convolution and how many planes each term of its operands has.

    A term is an integer made of planes: ``weight_terms=(4,)`` is one odd integer in +-15, ``(1, 1, 1)`` three signs. A
    weight term of 0 planes is the constant +1, so that its accumulator is the sum of the codes of a window.
    There is one integer accumulator per pair of terms, weight-major. ``codes`` says in which form the operands come:
    as planes of bits, or as codes and folded weights.
    """

    channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    weight_terms: tuple[int, ...]
    activation_terms: tuple[int, ...]
    codes: bool = False

    def __post_init__(self) -> None:
        why = self._why_invalid()
        if why is not None:
            raise ModelError(f"cannot describe a packed convolution: {why}; got {self}")

    def _why_invalid(self) -> str | None:
        at_least_one = (self.channels, self.out_channels, self.groups, *self.kernel, *self.stride, *self.dilation)
        pairs = (self.kernel, self.stride, self.padding, self.dilation)
        if any(len(pair) != 2 for pair in pairs):
            return "kernel, stride, padding and dilation need two numbers each"
        if min(at_least_one) < 1 or min(self.padding) < 0:
            return "sizes must be at least 1 and padding at least 0"
        if max(*at_least_one, *self.padding) >= _LIMIT:
            return "a size is 2^31 or more"
        if self.channels % self.groups or self.out_channels % self.groups:
            return "groups must divide both channel counts"
        if not any(self.weight_terms) or any(not 0 <= planes <= 8 for planes in self.weight_terms):
            return "every weight term needs 0 to 8 planes, and one of them at least 1"
        if not self.activation_terms or any(not 1 <= planes <= 8 for planes in self.activation_terms):
            return "every activation term needs 1 to 8 planes, and there must be one"
        return "its weight has 2^31 values or more" if math.prod(self.weight_shape) >= _LIMIT else None

    @functools.cached_property
    def channels_per_group(self) -> int:
        """Input channels of a group."""
        return self.channels // self.groups

    @functools.cached_property
    def words(self) -> int:
        """Machine words of a group's input channels."""
        return depth(self.channels_per_group) // 4 if self.codes else words(self.channels_per_group)

    @functools.cached_property
    def products(self) -> int:
        """Integer accumulators per output: one per pair of a weight term and an activation term."""
        return len(self.weight_terms) * len(self.activation_terms)

    @functools.cached_property
    def x_shape(self) -> tuple[int, ...]:
        """The last three sizes of the input: groups, digit planes, words; or groups, terms, bytes."""
        if self.codes:
            return (self.groups, len(self.activation_terms), depth(self.channels_per_group))
        return (self.groups, sum(self.activation_terms), self.words)

    @functools.cached_property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the prepared or the folded weight."""
        shape = folded_shape if self.codes else prepared_shape
        return shape(
            len(self.weight_terms) if self.codes else sum(self.weight_terms),
            out_channels=self.out_channels,
            channels_per_group=self.channels_per_group,
            kernel=self.kernel,
            groups=self.groups,
        )

    @functools.cached_property
    def narrow_bits(self) -> int | None:
        """Bits of a field of the narrow weight; None where its weights take bytes."""
        return field_bits(self.weight_terms) if self.codes else None

    @functools.cached_property
    def narrow_shape(self) -> tuple[int, ...] | None:
        """Shape of the narrow weight, if there is one."""
        return None if self.narrow_bits is None else (*self.weight_shape[:-2], field_bytes(self.narrow_bits))

    @functools.cached_property
    def largest(self) -> int:
        """The largest magnitude that an integer accumulator can reach."""
        inputs = self.channels_per_group * self.kernel[0] * self.kernel[1]
        odd: int = 2 ** max(self.weight_terms) - 1
        code: int = 2 ** max(self.activation_terms) - 1
        return odd * code * inputs

    def why_not_int32(self) -> str | None:
        """Return why 32-bit accumulators are too narrow, or None."""
        if self.largest < _LIMIT:
            return None
        return f"its sums reach {self.largest}, past the int32 limit of 2^31 - 1; use fewer planes"

    def why_not_native(self) -> str | None:
        """Return why no compiled level holds this problem, or None."""
        planes = max(sum(self.weight_terms), sum(self.activation_terms))
        if planes > _MOST_PLANES:
            return f"holds {_MOST_PLANES} planes of an operand, got {planes}"
        return None

    def out_size(self, h: int, w: int) -> tuple[int, int]:
        """Return height and width of the output for an input of height ``h`` and width ``w``; symbols may stand in."""
        return self._out(h, 0), self._out(w, 1)

    def checked_size(self, h: int, w: int) -> tuple[int, int]:
        """Return `out_size`, or raise `ModelError` where no output would be left or offsets would pass 32 bits."""
        known = self._sizes.get((h, w))
        return known if known is not None else self._check_size(h, w)

    @functools.cached_property
    def _sizes(self) -> dict[tuple[int, int], tuple[int, int]]:
        return {}

    def _check_size(self, h: int, w: int) -> tuple[int, int]:
        oh, ow = self.out_size(h, w)
        if min(h, w, oh, ow) < 1:
            raise ModelError(f"cannot convolve an image of {h}x{w}: it is too small; use a larger one for {self}")
        rows, columns = h + 2 * self.padding[0], w + 2 * self.padding[1]
        if rows * columns * math.prod(self.x_shape) >= _LIMIT:
            raise ModelError(f"cannot convolve an image of {h}x{w}: it takes 2^31 words or more; use a smaller one")
        self._sizes[h, w] = oh, ow
        return oh, ow

    def _out(self, size: int, axis: int) -> int:
        reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        return (size + 2 * self.padding[axis] - reach) // self.stride[axis] + 1
