"""Every op in plain torch: the definition that all levels are tested against. Slow, and exact.

The functions take checked arguments (`ops.py` checks) and have the signature that every level has, see
`binarize.kernels.dispatch.Kernels`.
"""

import itertools
import sys

import torch
from torch import Tensor
from torch.nn import functional as F

from binarize.errors import ModelError
from binarize.kernels.codes import pack_codes, unfold_weight, unpack_codes, widen_weight
from binarize.kernels.finish import Finish, finished
from binarize.kernels.format import pack_digits, unpack_digits, unpack_prepared
from binarize.kernels.problem import Conv2dProblem, UniformCode

__all__ = [
    "conv2d",
    "conv2d_codes",
    "conv2d_finished",
    "conv2d_integer",
    "conv2d_threshold",
    "encode_thresholds",
    "encode_uniform",
    "pack_thresholds",
    "pack_uniform",
    "reads_halves",
]

reads_halves = False


def _to_float32(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def pack_uniform(x: Tensor, low: float, inverse_step: float, bits: int, groups: int) -> Tensor:
    """Digit planes of ``clamp(floor((x - low) * inverse_step + 0.5), 0, 2^bits - 1)``, in float32; NaN gives code 0."""
    return pack_digits(_uniform(x, low, inverse_step, bits), bits, groups)


def encode_uniform(x: Tensor, low: float, inverse_step: float, bits: int, groups: int) -> Tensor:
    """The codes whose digit planes `pack_uniform` gives, as bytes."""
    return pack_codes(_uniform(x, low, inverse_step, bits).unsqueeze(0), groups)


def _uniform(x: Tensor, low: float, inverse_step: float, bits: int) -> Tensor:
    codes = torch.floor((x - _to_float32(low)) * _to_float32(inverse_step) + 0.5)
    return codes.nan_to_num(nan=0.0).clamp(0, 2**bits - 1).long()


def pack_thresholds(x: Tensor, thresholds: Tensor, groups: int) -> Tensor:
    """Digit planes whose plane j is ``not (x < thresholds[j])``; NaN gives 1."""
    places = torch.arange(len(thresholds)).view(-1, 1, 1, 1, 1)
    return pack_digits((_digits(x, thresholds) << places).sum(0), len(thresholds), groups)


def encode_thresholds(x: Tensor, thresholds: Tensor, groups: int) -> Tensor:
    """The digit planes of `pack_thresholds` as terms of one byte each."""
    return pack_codes(_digits(x, thresholds), groups)


def _digits(x: Tensor, thresholds: Tensor) -> Tensor:
    return (~(x.unsqueeze(0) < thresholds[:, None, :, None, None])).long()


def _codes(x: Tensor, problem: Conv2dProblem) -> list[Tensor]:
    """The codes of each activation term: float64 ``(n, c, h, w)``."""
    if problem.codes:
        return list(unpack_codes(x, problem.channels).double())
    planes = x.split(list(problem.activation_terms), dim=4)
    return [unpack_digits(term, problem.channels).double() for term in planes]


def _odd_weights(weight: Tensor, problem: Conv2dProblem) -> list[Tensor]:
    """The odd integers of each weight term: float64 ``(o, c / groups, kh, kw)``."""
    sizes = {"out_channels": problem.out_channels, "channels_per_group": problem.channels_per_group}
    if problem.codes:
        weight = widen_weight(weight) if weight.dtype == torch.uint8 else weight
        return list(unfold_weight(weight, **sizes).double().unflatten(-1, problem.kernel))
    signs = unpack_prepared(weight, **sizes).double()
    places = [2.0 ** torch.arange(planes, dtype=torch.float64) for planes in problem.weight_terms]
    terms = signs.split(list(problem.weight_terms))
    odd = [
        torch.einsum("m,mock->ock", place, term) if len(place) else torch.ones_like(signs[0])
        for place, term in zip(places, terms, strict=True)
    ]
    return [term.unflatten(-1, problem.kernel) for term in odd]


def conv2d_integer(problem: Conv2dProblem, x: Tensor, weight: Tensor) -> Tensor:
    """One exact convolution per pair of terms, weight-major: int32 ``(n, h', w', terms, o)``."""
    pairs = itertools.product(_odd_weights(weight, problem), _codes(x, problem))
    sums = [
        F.conv2d(code, odd, None, problem.stride, problem.padding, problem.dilation, problem.groups)
        for odd, code in pairs
    ]
    return torch.stack(sums, 1).permute(0, 3, 4, 1, 2).to(torch.int32).contiguous()


def _classes(row_class: Tensor | None, column_class: Tensor | None, table: Tensor, out: Tensor) -> Tensor:
    """The row of ``table`` that each output pixel uses: ``(h', w', o)``."""
    if row_class is None or column_class is None:
        return table[0].expand(*out.shape[1:3], -1)
    index = row_class.long()[:, None] + column_class.long()[None, :]
    if index.numel() and (int(index.min()) < 0 or int(index.max()) >= len(table)):
        raise ModelError(f"cannot run a packed convolution: a border class lies outside the {len(table)} rows given")
    return table[index]


def conv2d(
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
    """The integer sums, then scales, bias, residual and clamp in float32, each operation rounded by itself."""
    sums = conv2d_integer(problem, x, weight)
    y = _classes(row_class, column_class, bias, sums).expand(len(x), -1, -1, -1)
    for term in range(problem.products):
        y = y + scale[term] * sums[..., term, :].float()
    if residual is not None:
        y = y + residual.permute(0, 2, 3, 1)
    least, most = _to_float32(minimum), _to_float32(maximum)
    y = torch.where(least > y, least, y)
    y = torch.where(most < y, most, y)
    return y.contiguous().permute(0, 3, 1, 2)


def conv2d_finished(
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
    """What `conv2d` gives, then slopes, clamp, rounding to 16 bits and packing, see `binarize.kernels.finish`."""
    tables = scale, bias, row_class, column_class, residual
    return finished(sys.modules[__name__], problem, x, weight, *tables, minimum, maximum, finish)


def conv2d_codes(
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
    """What `encode_uniform` makes of what `conv2d` gives."""
    y = conv2d(problem, x, weight, scale, bias, row_class, column_class, residual, minimum, maximum)
    return encode_uniform(y, code.low, code.inverse_step, code.bits, code.groups)


def conv2d_threshold(
    problem: Conv2dProblem,
    x: Tensor,
    weight: Tensor,
    thresholds: Tensor,
    flip: Tensor,
    row_class: Tensor | None,
    column_class: Tensor | None,
) -> Tensor:
    """The integer sums compared with a threshold per border class and channel: one digit plane."""
    sums = conv2d_integer(problem, x, weight)
    met = sums[..., 0, :] >= _classes(row_class, column_class, thresholds, sums)
    return pack_digits((met ^ flip).permute(0, 3, 1, 2), 1)
