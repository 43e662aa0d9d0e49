"""The compiled levels: addresses and sizes for the native module. The only Python that touches it."""

import dataclasses
import functools
import importlib
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from binarize.errors import ModelError
from binarize.kernels.codes import depth
from binarize.kernels.finish import Finish, finished
from binarize.kernels.format import words
from binarize.kernels.problem import Conv2dProblem, UniformCode

native: Any
try:
    native = importlib.import_module("binarize.kernels._native")
except ImportError:  # installed with BINARIZE_NO_KERNELS=1
    native = None

__all__ = ["Compiled", "CompiledLevel", "compiled_levels", "geometry", "native"]


@functools.lru_cache(maxsize=4096)
def _geometry(problem: Conv2dProblem, narrow: int) -> Any:
    window = [*problem.kernel, *problem.stride, *problem.padding, *problem.dilation]
    per_group = problem.out_channels // problem.groups
    terms = list(problem.weight_terms), list(problem.activation_terms)
    return native.geometry(problem.codes, narrow, problem.groups, problem.words, per_group, window, *terms)


def geometry(problem: Conv2dProblem, weight: Tensor) -> Any:
    """Return the native `Geometry` of a problem with a weight that is folded, narrow or prepared."""
    return _geometry(problem, problem.narrow_bits or 0 if weight.dtype == torch.uint8 else 0)


@final
@dataclasses.dataclass(frozen=True)
class CompiledLevel:
    """One compiled level, whether this CPU runs it, and the forms of operands that it multiplies."""

    name: str
    runs_here: bool
    forms: tuple[str, ...]


def compiled_levels() -> list[CompiledLevel]:
    """Return every compiled level, best first; empty where nothing was compiled."""
    rows = [] if native is None else native.levels()
    return [
        CompiledLevel(name, runs, (*(["planes"] * planes), *(["codes"] * codes))) for name, runs, planes, codes in rows
    ]


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _check(status: int, classes: int) -> None:
    if status:
        raise ModelError(f"cannot run a packed convolution: a border class lies outside the {classes} rows given")


@final
@dataclasses.dataclass(frozen=True)
class Compiled:
    """The ops of one compiled level; `binarize.kernels.reference` says what each computes."""

    index: int

    reads_halves: ClassVar[bool] = False

    def _shared(self, problem: Conv2dProblem, x: Tensor, weight: Tensor) -> tuple[Any, ...]:
        n, h, w = x.shape[:3]
        sizes = (n, h, w, *problem.checked_size(h, w))
        return (self.index, geometry(problem, weight), *sizes, x.data_ptr(), weight.data_ptr(), torch.get_num_threads())

    def conv2d_integer(self, problem: Conv2dProblem, x: Tensor, weight: Tensor) -> Tensor:
        """See `binarize.kernels.reference.conv2d_integer`."""
        shared = self._shared(problem, x, weight)
        n, oh, ow = shared[2], shared[5], shared[6]
        out = torch.empty((n, oh, ow, problem.products, problem.out_channels), dtype=torch.int32)
        native.conv2d_integer(*shared, out.data_ptr())
        return out

    def conv2d(
        self,
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
    ) -> Tensor:
        """See `binarize.kernels.reference.conv2d`."""
        shared = self._shared(problem, x, weight)
        n, oh, ow = shared[2], shared[5], shared[6]
        out = torch.empty((n, problem.out_channels, oh, ow), memory_format=torch.channels_last)
        if residual is not None:
            residual = residual.contiguous(memory_format=torch.channels_last)
        tables = scale.data_ptr(), bias.data_ptr(), bias.shape[0], _address(row_class), _address(column_class)
        status = native.conv2d_values(*shared, out.data_ptr(), *tables, _address(residual), minimum, maximum)
        _check(status, bias.shape[0])
        return out

    def conv2d_finished(
        self,
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
        """See `binarize.kernels.reference.conv2d_finished`."""
        tables = scale, bias, row_class, column_class, residual
        return finished(self, problem, x, weight, *tables, minimum, maximum, finish)

    def conv2d_codes(
        self,
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
        code: UniformCode,
    ) -> Tensor:
        """See `binarize.kernels.reference.conv2d_codes`."""
        per_group = problem.out_channels // code.groups
        if code.groups > 1 and per_group % 4:  # what is filled up lies between the groups
            tables = scale, bias, row_class, column_class, residual, minimum, maximum
            y = self.conv2d(problem, x, weight, *tables)
            return self.encode_uniform(y, code.low, code.inverse_step, code.bits, code.groups)
        shared = self._shared(problem, x, weight)
        n, oh, ow = shared[2], shared[5], shared[6]
        full = depth(per_group)
        make = torch.empty if full == per_group else torch.zeros
        out = make((n, oh, ow, code.groups, 1, full), dtype=torch.uint8)
        if residual is not None:
            residual = residual.contiguous(memory_format=torch.channels_last)
        addresses = scale.data_ptr(), bias.data_ptr(), bias.shape[0], _address(row_class), _address(column_class)
        numbers = _address(residual), minimum, maximum, code.groups * full, code.low, code.inverse_step, code.bits
        _check(native.conv2d_codes(*shared, out.data_ptr(), *addresses, *numbers), bias.shape[0])
        return out

    def conv2d_threshold(
        self,
        problem: Conv2dProblem,
        x: Tensor,
        weight: Tensor,
        thresholds: Tensor,
        flip: Tensor,
        row_class: Tensor | None,
        column_class: Tensor | None,
    ) -> Tensor:
        """See `binarize.kernels.reference.conv2d_threshold`."""
        shared = self._shared(problem, x, weight)
        n, oh, ow = shared[2], shared[5], shared[6]
        out = torch.zeros((n, oh, ow, 1, 1, words(problem.out_channels)), dtype=torch.int32)
        tables = (
            thresholds.data_ptr(),
            flip.data_ptr(),
            thresholds.shape[0],
            _address(row_class),
            _address(column_class),
        )
        _check(native.conv2d_threshold(*shared, out.data_ptr(), *tables), thresholds.shape[0])
        return out

    def pack_uniform(self, x: Tensor, low: float, inverse_step: float, bits: int, groups: int) -> Tensor:
        """See `binarize.kernels.reference.pack_uniform`."""
        return self._pack(x, bits, groups, low, inverse_step)

    def pack_thresholds(self, x: Tensor, thresholds: Tensor, groups: int) -> Tensor:
        """See `binarize.kernels.reference.pack_thresholds`."""
        return self._pack(x, thresholds.shape[0], groups, 0.0, 0.0, thresholds)

    def encode_uniform(self, x: Tensor, low: float, inverse_step: float, bits: int, groups: int) -> Tensor:
        """See `binarize.kernels.reference.encode_uniform`."""
        return self._pack(x, bits, groups, low, inverse_step, codes=True)

    def encode_thresholds(self, x: Tensor, thresholds: Tensor, groups: int) -> Tensor:
        """See `binarize.kernels.reference.encode_thresholds`."""
        return self._pack(x, thresholds.shape[0], groups, 0.0, 0.0, thresholds, codes=True)

    def _pack(
        self,
        x: Tensor,
        planes: int,
        groups: int,
        low: float,
        inverse_step: float,
        thresholds: Tensor | None = None,
        codes: bool = False,
    ) -> Tensor:
        n, c, h, w = x.shape
        if codes:
            per_group = depth(c // groups) // 4
            strips = 1 if thresholds is None else planes
            out = torch.empty((n, h, w, groups, strips, 4 * per_group), dtype=torch.uint8)
        else:
            per_group = words(c // groups)
            out = torch.empty((n, h, w, groups, planes, per_group), dtype=torch.int32)
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        if not channels_last:
            x = x.contiguous()
        layout = n, h * w, c, groups, planes, per_group, channels_last
        shared = thresholds is not None and thresholds.shape[1] == 1
        numbers = low, inverse_step, _address(thresholds), shared, torch.get_num_threads()
        native.pack(self.index, x.data_ptr(), out.data_ptr(), codes, *layout, *numbers)
        return out
