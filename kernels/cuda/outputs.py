"""Where the results of a convolution go on a GPU, and what is packed beside its floats: fields of `Call`."""

import dataclasses
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from binarize.kernels.codes import depth
from binarize.kernels.cuda.call import address
from binarize.kernels.cuda.specialise import Epilogue
from binarize.kernels.finish import Packing, name_of
from binarize.kernels.format import words
from binarize.kernels.problem import Conv2dProblem, UniformCode

__all__ = ["Affine", "Beside", "Fields", "Outputs", "beside", "code_fields", "new_codes", "type_of"]

Fields = dict[str, int | float | None]


@final
@dataclasses.dataclass(frozen=True)
class Affine:
    """Fields of the float epilogue, and the residual that they point to."""

    residual: Tensor | None
    fields: Fields


@final
@dataclasses.dataclass(frozen=True)
class Beside:
    """What an epilogue packs beside the floats, if it does."""

    epilogue: Epilogue
    out: Tensor | None
    fields: Fields


@final
@dataclasses.dataclass(frozen=True)
class Outputs:
    """Where a convolution's results go and what its epilogue needs, as fields of `Call`."""

    epilogue: Epilogue
    out: Tensor
    fields: Fields


def type_of(x: Tensor | None) -> str:
    """Return the name of a tensor's type, float32 where there is none."""
    return "float32" if x is None else name_of(x.dtype)


def code_fields(code: UniformCode, channels: int) -> Fields:
    """Return what a kernel has to know to store so many channels as codes."""
    per_group = channels // code.groups
    return {
        "code_channels": per_group, "code_depth": depth(per_group), "low": code.low, "inverse_step": code.inverse_step,
        "top": float(2**code.bits - 1),
    }  # fmt: skip


def new_codes(x: Tensor, size: Sequence[int], channels: int, groups: int) -> Tensor:
    """Return a tensor for codes of ``size`` pixels, on the device of ``x``; what fills up a group is 0."""
    per_group = channels // groups
    full = depth(per_group)
    return (x.new_empty if full == per_group else x.new_zeros)((*size, groups, 1, full), dtype=torch.uint8)


def beside(problem: Conv2dProblem, x: Tensor, size: tuple[int, ...], packing: Packing | None) -> Beside:
    """Return how an epilogue packs beside the floats, nothing where it cannot: a kernel of its own packs then."""
    plain = Beside(Epilogue("values"), None, {})
    if packing is None or 0 in size:
        return plain
    outputs, thresholds = problem.out_channels, packing.thresholds
    if packing.codes:
        if thresholds is not None:  # a code each
            return plain
        out = new_codes(x, size, outputs, packing.groups)
        code = UniformCode(packing.low, packing.inverse_step, packing.bits, packing.groups)
        fields = code_fields(code, outputs)
        return Beside(Epilogue("values", codes=True), out, fields | {"also": address(out)})
    if packing.groups > 1 or (problem.groups > 1 and outputs // problem.groups % 32):
        return plain  # bits of a block of 32 channels would go over two words
    make = x.new_empty if outputs % 64 == 0 else x.new_zeros
    out = make((*size, 1, packing.bits, words(outputs)), dtype=torch.int32)
    fields = {"also": address(out), "low": packing.low, "inverse_step": packing.inverse_step}
    fields |= {"top": float(2**packing.bits - 1), "also_thresholds": address(thresholds)}
    fields["shared_thresholds"] = int(thresholds is not None and thresholds.shape[1] == 1)
    return Beside(Epilogue("values", planes=packing.bits, thresholds=thresholds is not None), out, fields)
