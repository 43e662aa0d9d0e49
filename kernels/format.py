"""The packed layout of planes: bit order, word size, padding. The only place where it is defined.

docs/packed_format.md tells it; the layout of whole codes is in `binarize.kernels.codes`.

Three forms:

* *digit planes* of activations, int32 ``(n, h, w, groups, planes, words)``: a set bit is digit 1;
* *stored bits* of weights, uint8 ``(m, o, ceil(k / 8))``: what files hold, a set bit is -1;
* *prepared weight*, int32 ``(groups, m, blocks, taps, pairs, 2, 2, 16)``: the stored bits in the order in which every
  CPU level reads them.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = [
    "BLOCK",
    "WORD_BITS",
    "pack_digits",
    "pack_flags",
    "pack_signs",
    "parts_of",
    "prepare_weight",
    "prepared_shape",
    "unpack_digits",
    "unpack_prepared",
    "unpack_signs",
    "words",
]

WORD_BITS = 32
BLOCK = 32  # output channels that a kernel computes together

_MOST_UNPACKED = 1 << 20  # bits that are unpacked at a time, to bytes and wider


def words(channels: int) -> int:
    """Return how many words hold ``channels`` bits: an even number, so that kernels may load 64 bits at a time."""
    return 2 * -(-channels // 64)


def _pack_bytes(bits: Tensor) -> Tensor:
    """Pack 0/1 along the last dimension, a multiple of 8, into bytes; the first bit is the lowest."""
    places = torch.arange(8, device=bits.device, dtype=torch.uint8)
    octets: Tensor = bits.to(torch.uint8).unflatten(-1, (bits.shape[-1] // 8, 8)) << places
    return octets.sum(-1, dtype=torch.uint8)


def _unpack_bytes(octets: Tensor) -> Tensor:
    """Inverse of `_pack_bytes`: uint8 0/1, the last dimension eight times as long."""
    places = torch.arange(8, device=octets.device, dtype=torch.uint8)
    bits: Tensor = octets.unsqueeze(-1) >> places & 1
    return bits.flatten(-2)


def _padded(bits: Tensor, size: int) -> Tensor:
    """Extend the last dimension with zeros to ``size``."""
    return torch.nn.functional.pad(bits, (0, size - bits.shape[-1]))


def _to_words(bits: Tensor) -> Tensor:
    """Pack 0/1 along the last dimension into ``words`` int32 of 32 bits each; spare bits are 0."""
    octets = _pack_bytes(_padded(bits.to(torch.uint8), words(bits.shape[-1]) * WORD_BITS))
    return octets.contiguous().view(torch.int32)


def _from_words(packed: Tensor, size: int) -> Tensor:
    """Inverse of `_to_words`: uint8 0/1 with ``size`` in the last dimension."""
    return _unpack_bytes(packed.contiguous().view(torch.uint8))[..., :size]


def pack_digits(codes: Tensor, planes: int, groups: int = 1) -> Tensor:
    """Split integer codes into packed digit planes; plane j has weight 2^j.

    Args:
        codes: ``(n, c, h, w)`` integers in ``[0, 2^planes - 1]``.
        planes: Digits of a code.
        groups: Groups that the channels fall into.

    Returns:
        ``(n, h, w, groups, planes, words)`` int32.
    """
    places = torch.arange(planes, device=codes.device)
    grouped = codes.long().permute(0, 2, 3, 1).unflatten(-1, (groups, codes.shape[1] // groups))
    return _to_words(grouped.unsqueeze(-2) >> places.view(-1, 1) & 1)


def unpack_digits(packed: Tensor, channels: int) -> Tensor:
    """Put digit planes together again, all of them as one code.

    Args:
        packed: ``(n, h, w, groups, planes, words)`` int32.
        channels: Channels over all groups.

    Returns:
        ``(n, c, h, w)`` int64 codes.
    """
    n, h, w, groups, planes, _ = packed.shape
    places = torch.arange(planes, device=packed.device)
    digits = _from_words(packed, channels // groups).long()
    codes = (digits << places.view(-1, 1)).sum(-2)
    return codes.reshape(n, h, w, channels).permute(0, 3, 1, 2)


def pack_signs(signs: Tensor) -> Tensor:
    """Pack signs into stored bits.

    Args:
        signs: ``(m, o, k)`` or ``(m, o, c / groups, kh, kw)``; what is below 0 is -1, everything else +1.

    Returns:
        ``(m, o, ceil(k / 8))`` uint8; a set bit is -1, spare bits are 0.
    """
    return pack_flags((signs < 0).flatten(2))


def pack_flags(negative: Tensor) -> Tensor:
    """Pack bools ``(..., k)``, True where a sign is -1, into stored bits ``(..., ceil(k / 8))`` uint8."""
    return _pack_bytes(_padded(negative.to(torch.uint8), -(-negative.shape[-1] // 8) * 8))


def unpack_signs(bits: Tensor, k: int) -> Tensor:
    """Unpack stored bits into int8 signs ``(m, o, k)``."""
    return 1 - 2 * _unpack_bytes(bits)[..., :k].to(torch.int8)


def prepared_shape(
    planes: int, *, out_channels: int, channels_per_group: int, kernel: tuple[int, int], groups: int = 1
) -> tuple[int, ...]:
    """Return the shape of the prepared weight of a convolution with ``planes`` weight planes."""
    blocks = -(-(out_channels // groups) // BLOCK)
    return (groups, planes, blocks, kernel[0] * kernel[1], words(channels_per_group) // 2, 2, 2, BLOCK // 2)


def prepare_weight(
    bits: Tensor, *, out_channels: int, channels_per_group: int, kernel: tuple[int, int], groups: int = 1
) -> Tensor:
    """Put stored bits into the order in which every CPU level reads them.

    Args:
        bits: ``(m, o, ceil(k / 8))`` uint8 stored bits, k in the order (channel, kernel row, kernel column).
        out_channels: Output channels over all groups.
        channels_per_group: Input channels of a group.
        kernel: Height and width of the kernel.
        groups: Groups of the convolution.

    Returns:
        ``(groups, m, blocks, taps, pairs, 2, 2, 16)`` int32: blocks of 32 output channels of the group, kernel taps,
        pairs of words of input channels, halves of the block, words of the pair, output channels of the half.
        Output channels are padded to full blocks with zero bits.
    """
    planes = bits.shape[0]
    shape = prepared_shape(
        planes, out_channels=out_channels, channels_per_group=channels_per_group, kernel=kernel, groups=groups
    )
    prepared = bits.new_empty(shape, dtype=torch.int32)
    for place, part in parts_of(bits, groups):
        prepared[:, :, place] = _prepared_blocks(part, channels_per_group, prepared[:, :, place].shape)
    return prepared


def parts_of(bits: Tensor, groups: int) -> Iterator[tuple[slice, Tensor]]:
    """Cut stored bits into blocks of output channels of each group, so that little is unpacked at a time.

    Yields:
        The numbers of some blocks, and their bits ``(m, groups, outputs of a group, bytes)``.
    """
    planes, outputs, size = bits.shape
    parted = bits.reshape(planes, groups, outputs // groups, size)
    blocks, each = -(-parted.shape[2] // BLOCK), planes * groups * BLOCK * 8 * size
    step = max(1, _MOST_UNPACKED // each)
    for first in range(0, blocks, step):
        yield slice(first, min(first + step, blocks)), parted[:, :, first * BLOCK : (first + step) * BLOCK]


def _prepared_blocks(bits: Tensor, channels_per_group: int, shape: torch.Size) -> Tensor:
    groups, planes, blocks, taps, pairs = shape[:5]
    unpacked = _unpack_bytes(bits)[..., : channels_per_group * taps]
    by_tap = unpacked.unflatten(-1, (channels_per_group, taps)).transpose(-1, -2)
    packed = _to_words(by_tap)  # (m, groups, outputs of a group, taps, words)
    filled = packed.new_zeros(planes, groups, blocks * BLOCK, taps, 2 * pairs)
    filled[:, :, : packed.shape[2]] = packed
    split = filled.view(planes, groups, blocks, 2, BLOCK // 2, taps, pairs, 2)
    return split.permute(1, 0, 2, 5, 6, 3, 7, 4)


def unpack_prepared(weight: Tensor, *, out_channels: int, channels_per_group: int) -> Tensor:
    """Read a prepared weight back: int8 signs ``(m, o, c / groups, taps)``."""
    groups, planes, blocks, taps, pairs = weight.shape[:5]
    merged = weight.permute(1, 0, 2, 5, 7, 3, 4, 6).reshape(planes, groups, blocks * BLOCK, taps, 2 * pairs)
    below = _from_words(merged[:, :, : out_channels // groups], channels_per_group)
    signs = 1 - 2 * below.to(torch.int8)
    return signs.transpose(-1, -2).reshape(planes, out_channels, channels_per_group, taps)
