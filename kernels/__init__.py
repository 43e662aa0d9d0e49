"""Packed layout, kernels for every level, and the ops ``torch.ops.binarize.*`` that torch sees.

Shape letters used throughout: n batch, c input channels, o output channels, h, w image, k inputs per output,
m weight planes, words machine words.
"""

if __name__ != "binarize.kernels":  # reached as ./kernels from the repository root
    raise ImportError("this folder installs as binarize.kernels; import it under that name")

from binarize.kernels.codes import fold_weight, pack_codes, unfold_weight, unpack_codes
from binarize.kernels.dispatch import levels
from binarize.kernels.format import (
    pack_digits,
    pack_signs,
    prepare_weight,
    unpack_digits,
    unpack_signs,
    words,
)
from binarize.kernels.ops import (
    conv2d,
    conv2d_codes,
    conv2d_integer,
    conv2d_threshold,
    encode_thresholds,
    encode_uniform,
    pack_thresholds,
    pack_uniform,
)

__all__ = [
    "conv2d",
    "conv2d_codes",
    "conv2d_integer",
    "conv2d_threshold",
    "encode_thresholds",
    "encode_uniform",
    "fold_weight",
    "levels",
    "pack_codes",
    "pack_digits",
    "pack_signs",
    "pack_thresholds",
    "pack_uniform",
    "prepare_weight",
    "unfold_weight",
    "unpack_codes",
    "unpack_digits",
    "unpack_signs",
    "words",
]
