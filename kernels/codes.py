"""The layout of the int8 route: codes as bytes, and weight planes folded into one signed byte.

* *codes* of activations, uint8 ``(n, h, w, groups, terms, depth)``: a byte for each channel of a group, ``depth`` the
  channels filled up to a multiple of 4 with zeros;
* *folded weight*, int8 ``(groups, terms, blocks, taps, depth / 4, 32, 4)``: of each odd integer the half
  ``v = (-1 - odd) / 2``, an integer of as many bits as there are planes, so that eight planes still fit a byte.

A product is then ``sum odd * code = -(sum code + 2 * sum v * code)``: the form that counted planes have too.
"""

import torch
from torch import Tensor

from binarize.kernels.format import BLOCK, parts_of, unpack_signs

__all__ = ["depth", "fold_weight", "folded_shape", "pack_codes", "unfold_weight", "unpack_codes"]

_QUAD = 4  # codes in a machine word


def depth(channels: int) -> int:
    """Return how many bytes hold the codes of ``channels``: a multiple of 4."""
    return -(-channels // _QUAD) * _QUAD


def pack_codes(codes: Tensor, groups: int = 1) -> Tensor:
    """Lay out integer codes ``(t, n, c, h, w)`` in 0..255, one image per term, as uint8 codes."""
    per_group = codes.shape[2] // groups
    split = codes.permute(1, 3, 4, 2, 0).unflatten(3, (groups, per_group)).transpose(-1, -2)
    return torch.nn.functional.pad(split.to(torch.uint8), (0, depth(per_group) - per_group)).contiguous()


def unpack_codes(packed: Tensor, channels: int) -> Tensor:
    """Inverse of `pack_codes`: int64 ``(t, n, c, h, w)``."""
    groups = packed.shape[3]
    held = packed[..., : channels // groups].long().transpose(-1, -2)
    return held.flatten(3, 4).permute(4, 0, 3, 1, 2)


def folded_shape(
    terms: int, *, out_channels: int, channels_per_group: int, kernel: tuple[int, int], groups: int = 1
) -> tuple[int, ...]:
    """Return the shape of the folded weight of a convolution with ``terms`` weight terms."""
    blocks = -(-(out_channels // groups) // BLOCK)
    return (groups, terms, blocks, kernel[0] * kernel[1], depth(channels_per_group) // _QUAD, BLOCK, _QUAD)


def fold_weight(
    bits: Tensor,
    terms: tuple[int, ...],
    *,
    out_channels: int,
    channels_per_group: int,
    kernel: tuple[int, int],
    groups: int = 1,
) -> Tensor:
    """Fold stored bits, once at loading, into the order in which every level of the int8 route reads them.

    Args:
        bits: ``(m, o, ceil(k / 8))`` uint8 stored bits, k in the order (channel, kernel row, kernel column).
        terms: Planes of each weight term.
        out_channels: Output channels over all groups.
        channels_per_group: Input channels of a group.
        kernel: Height and width of the kernel.
        groups: Groups of the convolution.

    Returns:
        Int8 ``(groups, t, blocks, taps, depth / 4, 32, 4)``: blocks of 32 output channels of the group, kernel taps,
        quads of input channels, output channels of the block, channels of the quad; what is filled up is 0.
    """
    shape = folded_shape(
        len(terms), out_channels=out_channels, channels_per_group=channels_per_group, kernel=kernel, groups=groups
    )
    folded = bits.new_empty(shape, dtype=torch.int8)
    for place, part in parts_of(bits, groups):
        folded[:, :, place] = _folded_blocks(part, terms, channels_per_group, folded[:, :, place].shape)
    return folded


def _folded_blocks(bits: Tensor, terms: tuple[int, ...], channels_per_group: int, shape: torch.Size) -> Tensor:
    groups, _, blocks, taps, quads = shape[:5]
    negative = (unpack_signs(bits, channels_per_group * taps) < 0).to(torch.int16)
    halves, size = [], negative.shape[1:]
    for term, planes in zip(negative.split(list(terms)), terms, strict=True):
        half = 2 ** (planes - 1) if planes else 1  # no planes: the constant +1
        halves.append(sum((plane << place for place, plane in enumerate(term)), negative.new_full(size, -half)))
    by_tap = torch.stack(halves).unflatten(-1, (channels_per_group, taps))
    filled = bits.new_zeros((len(terms), groups, blocks * BLOCK, quads * _QUAD, taps), dtype=torch.int8)
    filled[:, :, : by_tap.shape[2], :channels_per_group] = by_tap
    split = filled.view(len(terms), groups, blocks, BLOCK, quads, _QUAD, taps)
    return split.permute(1, 0, 2, 6, 4, 3, 5)


def unfold_weight(weight: Tensor, *, out_channels: int, channels_per_group: int) -> Tensor:
    """Read a folded weight back: the odd integers, int64 ``(t, o, c / groups, taps)``."""
    groups, terms, blocks, taps, quads = weight.shape[:5]
    merged = weight.permute(1, 0, 2, 5, 4, 6, 3).reshape(terms, groups, blocks * BLOCK, quads * _QUAD, taps)
    held = merged[:, :, : out_channels // groups, :channels_per_group].long()
    return (-1 - 2 * held).reshape(terms, out_channels, channels_per_group, taps)
