"""The arguments of the kernels: the structs `Call` and `PackCall` of the CUDA sources, field by field."""

import ctypes

from torch import Tensor

__all__ = ["Call", "PackCall", "address"]


def address(x: Tensor | None) -> int | None:
    """Return where a tensor begins, or None."""
    return None if x is None else x.data_ptr()


def _fields(pointers: str, words: str, floats: str) -> list[tuple[str, type]]:
    kinds = ((pointers, ctypes.c_void_p), (words, ctypes.c_uint32), (floats, ctypes.c_float))
    return [(name, kind) for names, kind in kinds for name in names.split()]


class Call(ctypes.Structure):
    """`Call` of call.cuh."""

    _fields_ = _fields(
        "x weight out scale bias residual thresholds flip row_class column_class also also_thresholds slope",
        "pixels h w out_h out_w classes code_channels code_depth shared_thresholds",
        "minimum maximum low inverse_step top",
    )


class PackCall(ctypes.Structure):
    """`PackCall` of pack.cu."""

    _fields_ = _fields(
        "x out thresholds",
        "items image_blocks pixels channels groups planes words shared_thresholds",
        "low inverse_step top",
    )
