"""The layout of the int8 route: codes as bytes, and weight planes folded into one signed byte.

* *codes* of activations, uint8 ``(n, h, w, groups, terms, depth)``: a byte for each channel of a group, ``depth`` the
  channels filled up to a multiple of 4 with zeros;
* *folded weight*, int8 ``(groups, terms, blocks, taps, depth / 4, 32, 4)``: of each odd integer the half
  ``v = (-1 - odd) / 2``, an integer of as many bits as there are planes, so that eight planes still fit a byte;
* *narrow weight*, uint8 ``(groups, terms, blocks, taps, depth / 4, 16 b)``: the same in fields of b = 1, 2 or 4 bits,
  which the kernels of the CPU make bytes of, block by block, when they use them.

A product is then ``sum odd * code = -(sum code + 2 * sum v * code)``: the form that counted planes have too.
"""

import torch
from torch import Tensor

from binarize.kernels.format import BLOCK, parts_of, unpack_signs

__all__ = [
    "depth",
    "field_bits",
    "field_bytes",
    "fold_weight",
    "folded_shape",
    "narrow_weight",
    "pack_codes",
    "unfold_weight",
    "unpack_codes",
    "widen_weight",
]

_QUAD = 4  # codes in a machine word
_FIELDS = (1, 2, 4)  # bits of a weight in a narrow one


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
    narrow: bool = False,
) -> Tensor:
    """Fold stored bits, once at loading, into the order in which every level of the int8 route reads them.

    Args:
        bits: ``(m, o, ceil(k / 8))`` uint8 stored bits, k in the order (channel, kernel row, kernel column).
        terms: Planes of each weight term.
        out_channels: Output channels over all groups.
        channels_per_group: Input channels of a group.
        kernel: Height and width of the kernel.
        groups: Groups of the convolution.
        narrow: As `narrow_weight`, where the planes are few enough.

    Returns:
        Int8 ``(groups, t, blocks, taps, depth / 4, 32, 4)``: blocks of 32 output channels of the group, kernel taps,
        quads of input channels, output channels of the block, channels of the quad; what is filled up is 0. Narrow:
        uint8 ``(groups, t, blocks, taps, depth / 4, 16 b)`` of fields of b bits.
    """
    shape = folded_shape(
        len(terms), out_channels=out_channels, channels_per_group=channels_per_group, kernel=kernel, groups=groups
    )
    field = field_bits(terms) if narrow else None
    size, dtype = (shape, torch.int8) if field is None else ((*shape[:-2], field_bytes(field)), torch.uint8)
    made = bits.new_empty(size, dtype=dtype)
    for place, part in parts_of(bits, groups):
        folded = _folded_blocks(part, terms, channels_per_group, (*made[:, :, place].shape[:5], BLOCK, _QUAD))
        made[:, :, place] = folded if field is None else narrow_weight(folded, field)
    return made


def field_bits(terms: tuple[int, ...]) -> int | None:
    """Return how many bits a field takes that holds a weight of any of these terms; None where it takes a byte."""
    return next((bits for bits in _FIELDS if bits >= max(terms)), None)


def field_bytes(field: int) -> int:
    """Bytes of the fields of one quad of input channels and a block of outputs."""
    return BLOCK * _QUAD * field // 8


def narrow_weight(folded: Tensor, field: int) -> Tensor:
    """Put a folded weight into fields of so many bits.

    Args:
        folded: Int8 ``(..., 32, 4)`` in ``[-2^(field - 1), 2^(field - 1))``.
        field: 1, 2 or 4.

    Returns:
        Uint8 ``(..., 16 field)``: field i of byte j holds number ``16 field i + j`` of the 128, plus ``2^(field - 1)``.
    """
    values = (folded.flatten(-2).to(torch.int16) + 2 ** (field - 1)).unflatten(-1, (8 // field, field_bytes(field)))
    places = field * torch.arange(8 // field, device=folded.device, dtype=torch.int16)
    fields: Tensor = values << places[:, None]
    return fields.sum(-2).to(torch.uint8)


def widen_weight(narrow: Tensor) -> Tensor:
    """Inverse of `narrow_weight`: int8 ``(..., 32, 4)``."""
    field = narrow.shape[-1] * 8 // (BLOCK * _QUAD)
    places = field * torch.arange(8 // field, device=narrow.device, dtype=torch.int16)
    values: Tensor = (narrow.to(torch.int16).unsqueeze(-2) >> places[:, None]) & (2**field - 1)
    signed: Tensor = values - 2 ** (field - 1)
    return signed.to(torch.int8).reshape(*narrow.shape[:-1], BLOCK, _QUAD)


def _folded_blocks(bits: Tensor, terms: tuple[int, ...], channels_per_group: int, shape: tuple[int, ...]) -> Tensor:
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
