"""The sizes of a packed layer."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, final

from binarize.kernels.problem import Conv2dProblem

__all__ = ["Geometry", "problem_of"]


@final
@dataclasses.dataclass(frozen=True)
class Geometry:
    """The whole numbers of a packed layer, in the order in which the kernels take them."""

    channels: int
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    weight_terms: tuple[int, ...] = (1,)
    activation_terms: tuple[int, ...] = (1,)

    def arguments(self) -> tuple[Any, ...]:
        """Return the fields in order."""
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    @property
    def depth(self) -> int:
        """Products summed in one output: k."""
        return self.channels // self.groups * self.kernel[0] * self.kernel[1]

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width of the output for an input of the given size."""
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]
        sizes = [(height, width)[axis] + 2 * self.padding[axis] - spans[axis] for axis in (0, 1)]
        return sizes[0] // self.stride[0] + 1, sizes[1] // self.stride[1] + 1

    def axis(self, axis: int) -> tuple[int, int, int, int]:
        """Return kernel, stride, padding and dilation along one axis: 0 of the rows, 1 of the columns."""
        return self.kernel[axis], self.stride[axis], self.padding[axis], self.dilation[axis]

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> "Geometry":
        """Rebuild from what `dataclasses.asdict` gave, lists for tuples allowed."""
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in values.items()}
        return cls(**given)


@functools.lru_cache(maxsize=4096)
def problem_of(geometry: Geometry, route: str) -> Conv2dProblem:
    """Return what the kernels solve on a route: one object for all of the same sizes, since identity compares them."""
    return dataclasses.replace(Conv2dProblem(*geometry.arguments()), codes=route == "int8")
