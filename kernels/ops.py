"""``torch.ops.binarize.*``: schema, checks, fake and implementation of each op, on CPUs and on GPUs.

The ops are for inference: they have no gradient. Wrong arguments raise `ModelError` and never reach native code.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from binarize.errors import ModelError
from binarize.kernels.codes import depth
from binarize.kernels.dispatch import kernels_for
from binarize.kernels.finish import FLOATS, Finish, Packing
from binarize.kernels.format import words
from binarize.kernels.problem import Conv2dProblem, UniformCode

__all__ = [
    "conv2d",
    "conv2d_and_pack",
    "conv2d_codes",
    "conv2d_integer",
    "conv2d_threshold",
    "encode_thresholds",
    "encode_uniform",
    "pack_thresholds",
    "pack_uniform",
]

_GEOMETRY = (
    "int channels, int out_channels, int[2] kernel, int[2] stride, int[2] padding, int[2] dilation, int groups, "
    "int[] weight_terms, int[] activation_terms"
)
_LIBRARY = torch.library.Library("binarize", "DEF")
_LIBRARY.define("pack_uniform(Tensor x, float low, float inverse_step, int bits, int groups) -> Tensor")
_LIBRARY.define("pack_thresholds(Tensor x, Tensor thresholds, int groups) -> Tensor")
_LIBRARY.define("encode_uniform(Tensor x, float low, float inverse_step, int bits, int groups) -> Tensor")
_LIBRARY.define("encode_thresholds(Tensor x, Tensor thresholds, int groups) -> Tensor")
_LIBRARY.define(f"conv2d_integer(Tensor x, Tensor weight, {_GEOMETRY}) -> Tensor")
_LIBRARY.define(
    "conv2d(Tensor x, Tensor weight, Tensor scale, Tensor bias, Tensor? row_class, Tensor? column_class, "
    f"Tensor? residual, {_GEOMETRY}, float minimum, float maximum, Tensor? slope=None, ScalarType? dtype=None) "
    "-> Tensor"
)
_LIBRARY.define(
    "conv2d_and_pack(Tensor x, Tensor weight, Tensor scale, Tensor bias, Tensor? row_class, Tensor? column_class, "
    f"Tensor? residual, {_GEOMETRY}, float minimum, float maximum, Tensor? slope, ScalarType dtype, bool codes, "
    "int bits, float low, float inverse_step, Tensor? thresholds, int reader_groups) -> (Tensor, Tensor)"
)
_LIBRARY.define(
    "conv2d_codes(Tensor x, Tensor weight, Tensor scale, Tensor bias, Tensor? row_class, Tensor? column_class, "
    f"Tensor? residual, {_GEOMETRY}, float minimum, float maximum, float low, float inverse_step, int bits, "
    "int reader_groups) -> Tensor"
)
_LIBRARY.define(
    "conv2d_threshold(Tensor x, Tensor weight, Tensor thresholds, Tensor flip, Tensor? row_class, "
    f"Tensor? column_class, {_GEOMETRY}) -> Tensor"
)

_Ints = Sequence[int]


@functools.lru_cache(maxsize=4096)
def _known_problem(
    channels: int,
    out_channels: int,
    groups: int,
    window: tuple[tuple[int, ...], ...],
    weight_terms: tuple[int, ...],
    activation_terms: tuple[int, ...],
    codes: bool,
) -> Conv2dProblem:
    kernel, stride, padding, dilation = (cast("tuple[int, int]", pair) for pair in window)
    return Conv2dProblem(
        channels,
        out_channels,
        kernel,
        stride,
        padding,
        dilation,
        groups,
        weight_terms,
        activation_terms,
        codes,
    )


def _problem(
    x: Tensor,
    channels: int,
    out_channels: int,
    kernel: _Ints,
    stride: _Ints,
    padding: _Ints,
    dilation: _Ints,
    groups: int,
    weight_terms: _Ints,
    activation_terms: _Ints,
) -> Conv2dProblem:
    window = tuple(kernel), tuple(stride), tuple(padding), tuple(dilation)
    terms = tuple(weight_terms), tuple(activation_terms)
    return _known_problem(channels, out_channels, groups, window, *terms, x.dtype == torch.uint8)


def _refuse(op: str, what: str, wanted: object, seen: object) -> ModelError:
    said = f"cannot run binarize::{op}: {what} must be {wanted}, got {seen}"
    return ModelError(f"{said}; packed networks have no float64: call .float()" if "float64" in str(seen) else said)


def _same(op: str, name: str, x: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return ``x``, contiguous, if it has this shape and type."""
    if x.shape != shape or x.dtype != dtype:
        raise _refuse(op, name, f"{dtype} of shape {shape}", f"{x.dtype} of shape {tuple(x.shape)}")
    return x.contiguous()


def _operands(op: str, problem: Conv2dProblem, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    dtype, form = (torch.uint8, "uint8 codes") if problem.codes else (torch.int32, "int32 digit planes")
    if x.dim() != 6 or x.shape[3:] != problem.x_shape or x.dtype != dtype:
        wanted = f"{form} (n, h, w, {', '.join(map(str, problem.x_shape))})"
        raise _refuse(op, "x", wanted, f"{x.dtype} of shape {tuple(x.shape)}")
    if weight.dtype == torch.uint8 and problem.narrow_shape is not None and not weight.is_cuda:
        return x.contiguous(), _same(op, "weight", weight, problem.narrow_shape, torch.uint8)
    return x.contiguous(), _same(op, "weight", weight, problem.weight_shape, torch.int8 if problem.codes else dtype)


def _border(
    op: str, row_class: Tensor | None, column_class: Tensor | None, size: tuple[int, int]
) -> tuple[Tensor | None, Tensor | None]:
    if row_class is None and column_class is None:
        return None, None
    if row_class is None or column_class is None:
        raise _refuse(op, "row_class and column_class", "both given or both None", "one of them")
    rows = _same(op, "row_class", row_class, (size[0],), torch.int32)
    return rows, _same(op, "column_class", column_class, (size[1],), torch.int32)


def _table(op: str, name: str, table: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    """Return a table with one row or more and ``columns`` columns."""
    return _same(op, name, table, (max(1, table.shape[0]) if table.dim() else 1, columns), dtype)


def _values(op: str, x: Tensor, groups: int) -> Tensor:
    if x.dim() != 4 or not x.is_floating_point() or x.shape[1] < 1:
        raise _refuse(op, "x", "floating point of shape (n, c, h, w)", f"{x.dtype} of shape {tuple(x.shape)}")
    if groups < 1 or x.shape[1] % groups:
        raise _refuse(op, "groups", f"a divisor of {x.shape[1]} channels", groups)
    return x if x.dtype == torch.float32 or (x.dtype in FLOATS and kernels_for(x).reads_halves) else x.float()


def _thresholds_of(op: str, thresholds: Tensor, channels: int) -> Tensor:
    """Return checked thresholds, one for each channel or for all."""
    columns = 1 if thresholds.dim() == 2 and thresholds.shape[1] == 1 else channels
    thresholds = _table(op, "thresholds", thresholds, columns, torch.float32)
    if thresholds.shape[0] > 8:
        raise _refuse(op, "thresholds", "at most 8 rows", len(thresholds))
    return thresholds


def _uniform(op: str) -> Callable[..., Tensor]:
    def run(x: Tensor, low: float, inverse_step: float, bits: int, groups: int) -> Tensor:
        x = _values(op, x, groups)
        if not 1 <= bits <= 8:
            raise _refuse(op, "bits", "1 to 8", bits)
        kernels = kernels_for(x)
        made = kernels.pack_uniform if op == "pack_uniform" else kernels.encode_uniform
        return made(x, low, inverse_step, bits, groups)

    return run


def _thresholds(op: str) -> Callable[..., Tensor]:
    def run(x: Tensor, thresholds: Tensor, groups: int) -> Tensor:
        x = _values(op, x, groups)
        thresholds = _thresholds_of(op, thresholds, x.shape[1])
        kernels = kernels_for(x)
        made = kernels.pack_thresholds if op == "pack_thresholds" else kernels.encode_thresholds
        return made(x, thresholds, groups)

    return run


def _conv2d_integer(x: Tensor, weight: Tensor, *geometry: Any) -> Tensor:
    problem = _problem(x, *geometry)
    x, weight = _operands("conv2d_integer", problem, x, weight)
    problem.checked_size(x.shape[1], x.shape[2])
    return kernels_for(x, problem).conv2d_integer(problem, x, weight)


def _affine(
    op: str,
    problem: Conv2dProblem,
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    row_class: Tensor | None,
    column_class: Tensor | None,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Return the checked operands of the float epilogue."""
    size = problem.checked_size(x.shape[1], x.shape[2])
    scale = _same(op, "scale", scale, (problem.products, problem.out_channels), torch.float32)
    bias = _table(op, "bias", bias, problem.out_channels, torch.float32)
    rows, columns = _border(op, row_class, column_class, size)
    if residual is not None and (
        residual.shape != (x.shape[0], problem.out_channels, *size) or residual.dtype not in FLOATS
    ):
        wanted = f"float32, float16 or bfloat16 of shape {(x.shape[0], problem.out_channels, *size)}"
        raise _refuse(op, "residual", wanted, f"{residual.dtype} of shape {tuple(residual.shape)}")
    return scale, bias, rows, columns, residual


def _finish(op: str, problem: Conv2dProblem, slope: Tensor | None, dtype: torch.dtype | None) -> Finish:
    """Return the checked end of an epilogue, apart from a packing."""
    dtype = torch.float32 if dtype is None else dtype
    if dtype not in FLOATS:
        raise _refuse(op, "dtype", "float32, float16 or bfloat16", dtype)
    slope = None if slope is None else _same(op, "slope", slope, (problem.out_channels,), torch.float32)
    return Finish(slope, dtype)


def _conv2d(x: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
    tables, shape, (minimum, maximum, *more) = arguments[:5], arguments[5:14], arguments[14:]
    slope, dtype = (*more, None, None)[:2]  # torch leaves defaults out
    problem = _problem(x, *shape)
    x, weight = _operands("conv2d", problem, x, weight)
    checked = _affine("conv2d", problem, x, *tables)
    finish, kernels = _finish("conv2d", problem, slope, dtype), kernels_for(x, problem)
    residual = checked[-1]
    if finish.slope is None and finish.dtype == torch.float32 and (residual is None or residual.dtype == torch.float32):
        return kernels.conv2d(problem, x, weight, *checked, minimum, maximum)
    return kernels.conv2d_finished(problem, x, weight, *checked, minimum, maximum, finish)[0]


def _conv2d_and_pack(x: Tensor, weight: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    op, tables, (*shape, minimum, maximum) = "conv2d_and_pack", arguments[:5], arguments[5:-8]
    slope, dtype, codes, bits, low, inverse_step, thresholds, groups = arguments[-8:]
    problem = _problem(x, *shape)
    x, weight = _operands(op, problem, x, weight)
    checked = _affine(op, problem, x, *tables)
    code = _code(op, problem, low, inverse_step, bits, groups)
    if thresholds is not None:
        thresholds = _thresholds_of(op, thresholds, problem.out_channels)
        bits = len(thresholds)
    packing = Packing(codes, bits, low, inverse_step, thresholds, code.groups)
    finish = dataclasses.replace(_finish(op, problem, slope, dtype), packing=packing)
    y, packed = kernels_for(x, problem).conv2d_finished(problem, x, weight, *checked, minimum, maximum, finish)
    assert packed is not None
    return y, packed


def _code(op: str, problem: Conv2dProblem, low: float, inverse_step: float, bits: int, groups: int) -> UniformCode:
    """Return the checked code of the output."""
    if not 1 <= bits <= 8:
        raise _refuse(op, "bits", "1 to 8", bits)
    if groups < 1 or problem.out_channels % groups:
        raise _refuse(op, "reader_groups", f"a divisor of {problem.out_channels} channels", groups)
    return UniformCode(low, inverse_step, bits, groups)


def _conv2d_codes(x: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
    tables, (*shape, minimum, maximum, low, inverse_step, bits, groups) = arguments[:5], arguments[5:]
    problem = _problem(x, *shape)
    x, weight = _operands("conv2d_codes", problem, x, weight)
    scale, bias, rows, columns, residual = _affine("conv2d_codes", problem, x, *tables)
    code, kernels = _code("conv2d_codes", problem, low, inverse_step, bits, groups), kernels_for(x, problem)
    residual = residual if residual is None or kernels.reads_halves else residual.float()
    checked = scale, bias, rows, columns, residual
    return kernels.conv2d_codes(problem, x, weight, *checked, minimum, maximum, code)


def _conv2d_threshold(
    x: Tensor,
    weight: Tensor,
    thresholds: Tensor,
    flip: Tensor,
    row_class: Tensor | None,
    column_class: Tensor | None,
    *geometry: Any,
) -> Tensor:
    problem = _problem(x, *geometry)
    x, weight = _operands("conv2d_threshold", problem, x, weight)
    size = problem.checked_size(x.shape[1], x.shape[2])
    if problem.products != 1:
        raise _refuse("conv2d_threshold", "the number of accumulators", "1", problem.products)
    thresholds = _table("conv2d_threshold", "thresholds", thresholds, problem.out_channels, torch.int32)
    flip = _same("conv2d_threshold", "flip", flip, (problem.out_channels,), torch.bool)
    rows, columns = _border("conv2d_threshold", row_class, column_class, size)
    return kernels_for(x, problem).conv2d_threshold(problem, x, weight, thresholds, flip, rows, columns)


def _fake_pack_uniform(x: Tensor, low: float, inverse_step: float, bits: int, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.new_empty((n, h, w, groups, bits, words(c // groups)), dtype=torch.int32)


def _fake_pack_thresholds(x: Tensor, thresholds: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.new_empty((n, h, w, groups, thresholds.shape[0], words(c // groups)), dtype=torch.int32)


def _fake_encode_uniform(x: Tensor, low: float, inverse_step: float, bits: int, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.new_empty((n, h, w, groups, 1, depth(c // groups)), dtype=torch.uint8)


def _fake_encode_thresholds(x: Tensor, thresholds: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.new_empty((n, h, w, groups, thresholds.shape[0], depth(c // groups)), dtype=torch.uint8)


def _fake_conv2d_integer(x: Tensor, weight: Tensor, *geometry: Any) -> Tensor:
    problem = _problem(x, *geometry)
    oh, ow = problem.out_size(x.shape[1], x.shape[2])
    return x.new_empty((x.shape[0], oh, ow, problem.products, problem.out_channels), dtype=torch.int32)


def _fake_conv2d(x: Tensor, weight: Tensor, scale: Tensor, *rest: Any) -> Tensor:
    problem, dtype = _problem(x, *rest[4:13]), rest[16] if len(rest) > 16 else None
    oh, ow = problem.out_size(x.shape[1], x.shape[2])
    return scale.new_empty((x.shape[0], oh, ow, problem.out_channels), dtype=dtype).permute(0, 3, 1, 2)


def _fake_conv2d_and_pack(x: Tensor, weight: Tensor, scale: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    slope, dtype, codes, bits, _, _, thresholds, groups = rest[-8:]
    y = _fake_conv2d(x, weight, scale, *rest[:-8], slope, dtype)
    if thresholds is None:
        return y, (_fake_encode_uniform if codes else _fake_pack_uniform)(y, 0.0, 1.0, bits, groups)
    return y, (_fake_encode_thresholds if codes else _fake_pack_thresholds)(y, thresholds, groups)


def _fake_conv2d_codes(x: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
    problem, groups = _problem(x, *arguments[5:-6]), arguments[-1]
    oh, ow = problem.out_size(x.shape[1], x.shape[2])
    return x.new_empty((x.shape[0], oh, ow, groups, 1, depth(problem.out_channels // groups)), dtype=torch.uint8)


def _fake_conv2d_threshold(x: Tensor, weight: Tensor, thresholds: Tensor, *rest: Any) -> Tensor:
    problem = _problem(x, *rest[3:])
    oh, ow = problem.out_size(x.shape[1], x.shape[2])
    return x.new_empty((x.shape[0], oh, ow, 1, 1, words(problem.out_channels)), dtype=torch.int32)


def _on_one_device(op: str, run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Refuse tensors of several devices, which torch hands to the GPU as soon as one of them lies there."""

    def checked(*arguments: Any) -> Tensor:
        devices = {str(argument.device): None for argument in arguments if isinstance(argument, Tensor)}
        if len(devices) > 1:
            raise _refuse(op, "all tensors", "on one device (move the network and its input alike)", ", ".join(devices))
        return run(*arguments)

    return checked


_OPS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "pack_uniform": (_uniform("pack_uniform"), _fake_pack_uniform),
    "pack_thresholds": (_thresholds("pack_thresholds"), _fake_pack_thresholds),
    "encode_uniform": (_uniform("encode_uniform"), _fake_encode_uniform),
    "encode_thresholds": (_thresholds("encode_thresholds"), _fake_encode_thresholds),
    "conv2d_integer": (_conv2d_integer, _fake_conv2d_integer),
    "conv2d": (_conv2d, _fake_conv2d),
    "conv2d_and_pack": (_conv2d_and_pack, _fake_conv2d_and_pack),
    "conv2d_codes": (_conv2d_codes, _fake_conv2d_codes),
    "conv2d_threshold": (_conv2d_threshold, _fake_conv2d_threshold),
}
for _name, (_run, _fake) in _OPS.items():
    _LIBRARY.impl(_name, _run, "CPU")
    _LIBRARY.impl(_name, _on_one_device(_name, _run), "CUDA")
    torch.library.register_fake(f"binarize::{_name}", _fake, lib=_LIBRARY)

pack_uniform = torch.ops.binarize.pack_uniform.default
pack_thresholds = torch.ops.binarize.pack_thresholds.default
encode_uniform = torch.ops.binarize.encode_uniform.default
encode_thresholds = torch.ops.binarize.encode_thresholds.default
conv2d_integer = torch.ops.binarize.conv2d_integer.default
conv2d = torch.ops.binarize.conv2d.default
conv2d_and_pack = torch.ops.binarize.conv2d_and_pack.default
conv2d_codes = torch.ops.binarize.conv2d_codes.default
conv2d_threshold = torch.ops.binarize.conv2d_threshold.default
