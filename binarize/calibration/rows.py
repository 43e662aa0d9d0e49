"""What a layer is fitted on: the inputs under some of its outputs, as rows of a least-squares problem."""

import dataclasses
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from binarize.layers.binary import BinaryConv2d, BinaryLayer, BinaryLinear
from binarize.layers.binary_nd import BinaryConvNd

__all__ = ["Rows", "draw", "row_count", "values"]

FEWEST, MOST = 8192, 32768
WORK = 2**33  # multiply-adds that the moments of one layer may take


@final
@dataclasses.dataclass(frozen=True)
class Rows:
    """Inputs and outputs of one layer at p sampled outputs.

    Attributes:
        taps: ``(p, c, kh, kw)``, ``(p, c)`` for a linear layer, ``(p, c, kt, kh, kw)`` for one of n dimensions: the
            inputs under the window, not yet binarised.
        inside: the same with one channel: 1 where the tap lies in the image, 0 where it is padding, or between the
            inputs of a transposed convolution.
        targets: ``(p, o)``.
    """

    taps: Tensor
    inside: Tensor
    targets: Tensor

    @classmethod
    def join(cls, parts: Sequence["Rows"]) -> "Rows":
        """Stack rows of several batches."""
        return cls(
            torch.cat([part.taps for part in parts]),
            torch.cat([part.inside for part in parts]),
            torch.cat([part.targets for part in parts]),
        )

    def design(self, layer: BinaryLayer) -> Tensor:
        """Return the binarised inputs ``(g, p, k)`` as the layer's own activation gives them, g convolution groups."""
        groups = layer.groups
        taps: Tensor = layer.activation(self.taps) * self.inside
        return taps.reshape(len(taps), groups, -1).transpose(0, 1).contiguous()

    def original_outputs(self, layer: BinaryLayer) -> Tensor:
        """Return ``(p, o)``: what the layer's trained weight makes of the rows in full precision."""
        groups = layer.groups
        taps = (self.taps * self.inside).reshape(len(self.taps), groups, -1).transpose(0, 1)
        y = taps @ layer.weight.reshape(groups, -1, taps.shape[2]).transpose(1, 2)
        flat = y.transpose(0, 1).reshape(len(self.taps), -1)
        return flat if layer.bias is None else flat + layer.bias


def row_count(inputs: int, outputs: int) -> int:
    """Return how many rows to draw for a layer of so many inputs per output: fewer where each costs more."""
    return min(max(WORK // (inputs * (inputs + outputs)), FEWEST), MOST)


def draw(layer: BinaryLayer, x: Tensor, y: Tensor, count: int, generator: torch.Generator) -> Rows:
    """Draw at most about ``count`` rows from one batch, the same number from each image, at random places.

    Args:
        layer: tells the geometry.
        x: the layer's input, ``(n, c, h, w)`` or ``(..., c)``.
        y: the wanted output, ``(n, o, h', w')`` or ``(..., o)``; where it has another shape, the layer's own output in
            full precision takes its place.
        count: rows wanted.
        generator: source of the places.
    """
    own = layer.original(x[:1])
    if x.shape[0] != y.shape[0] or own.shape[1:] != y.shape[1:]:
        # A detector proposed other regions than its teacher, or a branch lost a stride: there is no teacher's output.
        y = layer.original(x)
    if isinstance(layer, BinaryLinear):
        return _draw_linear(x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]), count, generator)
    if isinstance(layer, BinaryConvNd):
        return _draw_nd(layer, x, y, count, generator)
    assert isinstance(layer, BinaryConv2d)
    return _draw_conv(layer, x, y, count, generator)


def values(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` values of ``x`` drawn at random, flat; all of them where there are fewer."""
    flat = x.flatten()
    if flat.numel() <= count:
        return flat.clone()
    return flat[torch.randint(flat.numel(), (count,), generator=generator).to(x.device)]


def _draw_linear(x: Tensor, y: Tensor, count: int, generator: torch.Generator) -> Rows:
    at = torch.arange(len(x)) if len(x) <= count else torch.randint(len(x), (count,), generator=generator)
    at = at.to(x.device)
    return Rows(x[at], x.new_ones(len(at), 1), y[at])


def _draw_conv(layer: BinaryConv2d, x: Tensor, y: Tensor, count: int, generator: torch.Generator) -> Rows:
    x, y = (x.unsqueeze(0), y.unsqueeze(0)) if x.dim() == 3 else (x, y)
    x, padding = layer.padded(x)
    image, row, column = (index.to(x.device) for index in _places(y, count, generator))
    taps = _gather(layer, F.pad(x, _both_sides(padding)), image, row, column)
    ones = x.new_ones(1, 1, *x.shape[2:])
    inside = _gather(layer, F.pad(ones, _both_sides(padding)), torch.zeros_like(image), row, column)
    return Rows(taps, inside, y[image, :, row, column])


def _draw_nd(layer: BinaryConvNd, x: Tensor, y: Tensor, count: int, generator: torch.Generator) -> Rows:
    geometry = layer.inner_geometry()
    volume, wanted = geometry.volume(layer.padded(x)), geometry.volume(y)
    height = wanted.shape[3]
    image, place, column = (at.to(x.device) for at in _places(wanted.flatten(2, 3), count, generator))
    places = (place // height, place % height, column)
    under = [
        axis.taps(size).to(x.device)[at] for axis, size, at in zip(geometry.axes, volume.shape[2:], places, strict=True)
    ]
    time, row, across = (taps.reshape(len(taps), *shape) for taps, shape in zip(under, _CROSSED, strict=True))
    inside = ((time >= 0) & (row >= 0) & (across >= 0)).to(x.dtype).unsqueeze(1)
    at = (image.reshape(-1, 1, 1, 1), time.clamp_min(0), row.clamp_min(0), across.clamp_min(0))
    taps = volume.permute(0, 2, 3, 4, 1)[at].permute(0, 4, 1, 2, 3)
    return Rows(taps, inside, wanted[image, :, places[0], places[1], places[2]])


_CROSSED = ((-1, 1, 1), (1, -1, 1), (1, 1, -1))  # shapes that let the taps of three axes meet


def _places(y: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return image, row and column of the sampled outputs; every place where there are no more than wanted."""
    n, _, height, width = y.shape
    each = max(count // max(n, 1), 1)
    if height * width <= each:
        place = torch.arange(height * width).repeat(n)
        each = height * width
    else:
        place = torch.randint(height * width, (n * each,), generator=generator)
    return torch.arange(n).repeat_interleave(each), place // width, place % width


def _gather(layer: BinaryConv2d, padded: Tensor, image: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Return the windows ``(p, c, kh, kw)`` of the outputs at the given places."""
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    device = padded.device
    rows = ((row + layer.crop[0]) * sh).unsqueeze(1) + torch.arange(kh, device=device) * dh
    columns = ((column + layer.crop[1]) * sw).unsqueeze(1) + torch.arange(kw, device=device) * dw
    windows = padded.permute(0, 2, 3, 1)[image[:, None, None], rows.unsqueeze(2), columns.unsqueeze(1)]
    return windows.permute(0, 3, 1, 2)


def _both_sides(padding: tuple[int, int]) -> tuple[int, int, int, int]:
    return padding[1], padding[1], padding[0], padding[0]
