"""Packed form of convolutions in one and three dimensions, and of transposed ones, on the kernels of two dimensions.

Nothing is approximated and nothing is multiplied by padding:

* a convolution of one dimension is one of height 1;
* the taps of the time axis become channels: the packed planes of the frames under an output stand end to end, each
  frame in words of its own. Outputs with the same frames inside the clip are computed together, so that a frame
  outside it is no operand at all;
* a transposed convolution is an ordinary one for each phase of its outputs (`binarize.layers.taps`).

What code 0 is worth, where it is not 0, is added per class of border, as in two dimensions.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F

from binarize.kernels import codes, format, ops
from binarize.layers.geometry import Geometry
from binarize.layers.packed import PackActivation, PackedLayer, stored_bits
from binarize.layers.packed_layer import prepared_weight
from binarize.layers.taps import Axis, NdGeometry, Phase

__all__ = ["PackedConvNd"]

Taps = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Which taps of time, rows and columns a piece of the outputs reads."""


@final
class PackedConvNd(PackedLayer):
    """Convolution of n dimensions on digit planes or codes; takes floats too and packs them itself.

    Attributes:
        space: the sizes; ``geometry`` is that of the largest piece in two dimensions, which routes are chosen by.
        padding_mode: as in `torch.nn.Conv1d`; anything but zeros is applied to the float input.
        mode_padding: that padding, as `F.pad` takes it.
    """

    def __init__(self, space: NdGeometry, activation: PackActivation, weight_spec: str) -> None:
        weight_shape = (space.out_channels, space.channels // space.groups, *space.kernel)
        super().__init__(_largest_piece(space), activation, weight_spec, weight_shape)
        self.space = space
        self.padding_mode, self.mode_padding = "zeros", list[int]()

    @property
    def channels(self) -> int:
        """Channels of its input; `geometry` has those of several frames."""
        return self.space.channels

    def geometry_on(self, route: str) -> Geometry:
        """Return the sizes; its pieces multiply every term on either route."""
        return self.geometry

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map planes or floats ``(n, c, *sizes)``, and what to add, to ``(n, o, *sizes')``."""
        if x.is_floating_point():
            if self.padding_mode != "zeros":
                x = F.pad(x, self.mode_padding, mode=self.padding_mode)
            x = self.activation(x)
        x = x.unsqueeze(1) if x.dim() == 6 else x  # (n, t, h, w, groups, m, words)
        axes, sizes = self.space.axes, x.shape[1:4]
        outs = [axis.out(size) for axis, size in zip(axes, sizes, strict=True)]
        y = self.bias.new_empty(len(x), *outs, self.space.out_channels)
        for frames, taps in _time_classes(axes[0], sizes[0]):
            seen = _end_to_end(x, frames, taps, axes[0].taps(sizes[0]))
            for row, column in _grid(axes[1].phases(), axes[2].phases()):
                part = self._piece(seen, (taps, row.taps, column.taps), row, column, outs)
                if part is not None:
                    self._place(y, part, frames, row, column, len(x))
        y = y.permute(0, 4, 1, 2, 3).reshape(len(x), self.space.out_channels, *outs[3 - self.space.dimensions :])
        y = y if residual is None else y + residual
        y = y.clamp_(self.minimum, self.maximum) if self._clamps() else y
        return y.to(self.dtype)

    def _clamps(self) -> bool:
        return (self.minimum, self.maximum) != (-math.inf, math.inf)

    @staticmethod
    def _place(y: Tensor, part: Tensor, frames: Tensor, row: Phase, column: Phase, images: int) -> None:
        """Put the outputs of one piece where they belong."""
        filled = part.expand(images * len(frames), *part.shape[1:]).unflatten(0, (images, len(frames)))
        rows, columns = y[:, :, row.first :: row.every], slice(column.first, None, column.every)
        if len(frames) == y.shape[1]:
            rows[:, :, :, columns] = filled
        else:
            rows[:, frames.to(y.device), :, columns] = filled

    def _piece(self, seen: Tensor | None, taps: Taps, row: Phase, column: Phase, outs: Sequence[int]) -> Tensor | None:
        """Return the outputs of one piece ``(n, h', w', o)``, or ``(1, h', w', o)`` where no input reaches them."""
        counts = row.outputs(outs[1]), column.outputs(outs[2])
        if not all(counts):
            return None
        if seen is None or not all(taps):
            return self.bias.expand(1, *counts, -1)
        planes, padding = _around(seen, (row, column), outs[1:])
        sizes = (seen.shape[1], seen.shape[2])
        table, row_class, column_class = self._classes(taps, sizes, row, column, outs)
        geometry = self._piece_geometry(taps, row, column, padding)
        y: Tensor = ops.conv2d(
            planes, self._piece_weight(taps, seen.dtype == torch.uint8), self.scale, table, row_class, column_class,
            None, *geometry.arguments(), -math.inf, math.inf,
        )  # fmt: skip
        return y.permute(0, 2, 3, 1)

    def _piece_geometry(self, taps: Taps, row: Phase, column: Phase, padding: tuple[int, int]) -> Geometry:
        space = self.space
        held = _held(self.activation.route, space.channels // space.groups)
        return Geometry(
            len(taps[0]) * held * space.groups, space.out_channels, (len(taps[1]), len(taps[2])),
            (row.stride, column.stride), padding, (row.dilation, column.dilation), space.groups, space.weight_terms,
            space.activation_terms,
        )  # fmt: skip

    def _piece_weight(self, taps: Taps, whole: bool) -> Tensor:
        """Return the weight of a piece in the kernels' layout, made once: its taps, frames end to end as channels."""
        route = "int8" if whole else "popcount"
        key = f"{route}{taps}"
        if key not in self._prepared:
            space = self.space
            each = space.channels // space.groups
            odd = self.odd().reshape(-1, space.out_channels, each, *(axis.kernel for axis in space.axes))
            chosen = odd[:, :, :, list(taps[0])][:, :, :, :, list(taps[1])][..., list(taps[2])]
            held = _held(route, each)
            # What fills a frame up to whole words meets digits that are 0: any sign will do.
            filled = F.pad(chosen, (0, 0) * 3 + (0, held - each), value=1).transpose(2, 3).flatten(2, 3)
            bits = stored_bits(filled, space.weight_terms)
            piece = Geometry(
                len(taps[0]) * held * space.groups, space.out_channels, (len(taps[1]), len(taps[2])),
                groups=space.groups, weight_terms=space.weight_terms,
            )  # fmt: skip
            self._prepared[key] = prepared_weight(bits, piece, route)
        return self._prepared[key]

    def _classes(
        self, taps: Taps, sizes: tuple[int, int], row: Phase, column: Phase, outs: Sequence[int]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the bias per border class of a piece, and the class of each of its rows and columns."""
        low = self.activation.low
        if low == 0.0:
            return self.bias.unsqueeze(0), None, None
        valid = [
            axis.taps(size)[phase.first :: phase.every][:, list(phase.taps)] >= 0
            for axis, size, phase in zip(self.space.axes[1:], sizes, (row, column), strict=True)
        ]
        (rows, row_class), (columns, column_class) = (torch.unique(x, dim=0, return_inverse=True) for x in valid)
        unit = self._tap_sums().reshape(-1, *(axis.kernel for axis in self.space.axes))
        sums = unit[:, list(taps[0])].sum(1)[:, list(taps[1])][:, :, list(taps[2])]
        inside = torch.einsum("oyx,ry,cx->rco", sums, rows.to(sums), columns.to(sums))
        table = (self.bias.double() + low * inside.flatten(0, 1)).float()
        device = self.bias.device
        return table, (row_class * len(columns)).int().to(device), column_class.int().to(device)

    def _tap_sums(self) -> Tensor:
        """Sum of the weight's value per output and tap, ``(o, *kernel)``, float64."""
        unit = self.scale[self.activation.main :: len(self.activation.step)].double()
        unit = unit / self.activation.step[self.activation.main]
        odd = self.odd().sum(2).double()
        return (unit.reshape(*unit.shape, *[1] * (odd.dim() - 2)) * odd).sum(0)

    def config(self) -> dict[str, Any]:
        """Return what `from_config` needs beside the buffers."""
        values = {key: value for key, value in super().config().items() if key != "geometry"}
        more = {"padding_mode": self.padding_mode, "mode_padding": self.mode_padding}
        return {**values, "space": dataclasses.asdict(self.space), **more}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "PackedConvNd":
        """Build with buffers still to be filled."""
        space = NdGeometry.from_config(config["space"])
        made = cls(space, PackActivation.from_config(config["activation"]), config["weight_spec"])
        made._take(config)
        made.padding_mode, made.mode_padding = config["padding_mode"], list(config["mode_padding"])
        return made


def _largest_piece(space: NdGeometry) -> Geometry:
    """Return a convolution of two dimensions of about the cost of one output."""
    time, rows, columns = space.axes
    kernel = [max(len(phase.taps) for phase in axis.phases()) for axis in (time, rows, columns)]
    stride = (1, 1) if space.transposed else (rows.stride, columns.stride)
    channels = space.channels * max(kernel[0], 1)
    return Geometry(
        channels, space.out_channels, (max(kernel[1], 1), max(kernel[2], 1)), stride, groups=space.groups,
        weight_terms=space.weight_terms, activation_terms=space.activation_terms,
    )  # fmt: skip


def _held(route: str, channels: int) -> int:
    """Return how many channels one frame's words or bytes have room for."""
    return codes.depth(channels) if route == "int8" else format.words(channels) * format.WORD_BITS


def _time_classes(axis: Axis, size: int) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
    """Yield the output frames that read through the same taps, and these taps."""
    valid, which = torch.unique(axis.taps(size) >= 0, dim=0, return_inverse=True)
    for index, inside in enumerate(valid):
        yield (which == index).nonzero().flatten(), tuple(inside.nonzero().flatten().tolist())


def _end_to_end(x: Tensor, frames: Tensor, taps: tuple[int, ...], under: Tensor) -> Tensor | None:
    """Return the packed frames under output frames, those of one output end to end: ``(n * frames, h, w, ...)``."""
    if not taps:
        return None
    if len(taps) == 1 and x.shape[1] == len(frames) == 1:
        return x[:, 0]
    read = [x[:, under[frames, tap].to(x.device)] for tap in taps]
    return torch.cat(read, -1).flatten(0, 1)


def _grid(rows: Sequence[Phase], columns: Sequence[Phase]) -> Iterator[tuple[Phase, Phase]]:
    return ((row, column) for row in rows for column in columns)


def _around(planes: Tensor, phases: tuple[Phase, Phase], outs: Sequence[int]) -> tuple[Tensor, tuple[int, int]]:
    """Return the planes of the rows and columns that are read, and the padding that is left to the kernel.

    What is cut off, or padded unevenly, is copied; digits of 0 stand for what is not there.
    """
    spans = [phase.span(out) for phase, out in zip(phases, outs, strict=True)]
    (top, bottom), (left, right) = edges = [
        (-first, last - size) for (first, last), size in zip(spans, planes.shape[1:3], strict=True)
    ]
    # The kernel pads both sides alike; what a stride leaves over at the high end it does not read.
    if all(low >= 0 and low >= high > low - phase.stride for (low, high), phase in zip(edges, phases, strict=True)):
        return planes, (top, left)
    return F.pad(planes, (0, 0, 0, 0, 0, 0, left, right, top, bottom)), (0, 0)
