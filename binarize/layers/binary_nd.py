"""Training form of convolutions in one and three dimensions, and of transposed ones in one to three."""

import dataclasses
from typing import Any, final

from torch import Tensor, nn
from torch.nn import functional as F

from binarize.layers.binary import BinaryActivation, BinaryLayer
from binarize.layers.taps import NdGeometry
from binarize.schemes.presets import Scheme

__all__ = ["KINDS", "BinaryConvNd", "outputs_first", "outputs_second"]

KINDS: tuple[type[nn.modules.conv._ConvNd], ...] = (
    nn.Conv1d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
"""Layers that `BinaryConvNd` is the binary form of."""

CONVOLVE: dict[tuple[int, bool], Any] = {
    (1, False): F.conv1d,
    (2, False): F.conv2d,
    (3, False): F.conv3d,
    (1, True): F.conv_transpose1d,
    (2, True): F.conv_transpose2d,
    (3, True): F.conv_transpose3d,
}


@final
class BinaryConvNd(BinaryLayer):
    """Convolution of a binarised input with a binarised weight, in one to three dimensions, transposed or not.

    The latent weight is ``(o, c / groups, *kernel)``, outputs first, for a transposed convolution too: a unit belongs
    to an output. Padding is exact: a tap outside the input contributes 0.
    """

    def __init__(self, conv: nn.modules.conv._ConvNd, scheme: Scheme, activation: BinaryActivation) -> None:
        weight = outputs_first(conv.weight, conv.groups) if conv.transposed else conv.weight
        super().__init__(conv, scheme, activation, weight)
        self.groups = conv.groups
        self.geometry = _geometry(conv)
        self.padding_mode = conv.padding_mode

    @classmethod
    def from_float(cls, conv: nn.modules.conv._ConvNd, scheme: Scheme, activation: BinaryActivation) -> "BinaryConvNd":
        """Build from a trained convolution: its weight becomes the latent weight, units are fitted in closed form."""
        return cls(conv, scheme, activation).train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, c, *sizes)`` to ``(n, o, *sizes')``."""
        return self.product(self.activation(self.padded(x)), self.weight_value())

    def original(self, x: Tensor) -> Tensor:
        """Return what the layer gave before it was binarised, as long as its weight is still the trained one."""
        return self.product(self.padded(x), self.weight)

    def product(self, value: Tensor, weight: Tensor) -> Tensor:
        """Convolve values that are padded by other than zeros with any ``weight`` ``(o, c / groups, *kernel)``."""
        geometry, before = self.geometry, self._zeros()[0]
        convolve = CONVOLVE[geometry.dimensions, geometry.transposed]
        found: Tensor
        if geometry.transposed:
            turned = outputs_second(weight, self.groups)
            found = convolve(
                value, turned, self.bias, geometry.stride, before, geometry.extra, self.groups, geometry.dilation
            )
            return found
        if self._zeros()[0] != self._zeros()[1]:  # "same" with an uneven total
            value, before = F.pad(value, _both_sides(*self._zeros())), (0,) * geometry.dimensions
        found = convolve(value, weight, self.bias, geometry.stride, before, geometry.dilation, self.groups)
        return found

    def padded(self, x: Tensor) -> Tensor:
        """Return ``x`` with any padding that is not zeros."""
        if self.padding_mode == "zeros":
            return x
        return F.pad(x, self.mode_padding(), mode=self.padding_mode)

    def mode_padding(self) -> list[int]:
        """Return the padding that is not zeros, as `F.pad` takes it; empty where it is."""
        return [] if self.padding_mode == "zeros" else _both_sides(self.geometry.before, self.geometry.after)

    def inner_geometry(self) -> NdGeometry:
        """Return the geometry after `padded`: without padding that is not zeros."""
        before, after = self._zeros()
        return dataclasses.replace(self.geometry, before=before, after=after)

    def _zeros(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if self.padding_mode == "zeros":
            return self.geometry.before, self.geometry.after
        nothing = (0,) * self.geometry.dimensions
        return nothing, nothing

    def extra_repr(self) -> str:
        """Name the scheme and the geometry."""
        geometry = self.geometry
        kind = "transposed, " if geometry.transposed else ""
        return (
            f"{kind}{geometry.channels}, {geometry.out_channels}, kernel={geometry.kernel}, stride={geometry.stride}, "
            f"padding={geometry.before}, dilation={geometry.dilation}, groups={self.groups}, "
            f"scheme={self.scheme.spec!r}"
        )


def outputs_first(weight: Tensor, groups: int) -> Tensor:
    """Return the weight ``(c, o / groups, *kernel)`` of a transposed convolution as ``(o, c / groups, *kernel)``."""
    kernel = weight.shape[2:]
    split = weight.detach().reshape(groups, -1, *weight.shape[1:])
    return split.transpose(1, 2).reshape(weight.shape[1] * groups, -1, *kernel)


def outputs_second(weight: Tensor, groups: int) -> Tensor:
    """Undo `outputs_first`, with gradients."""
    kernel = weight.shape[2:]
    split = weight.reshape(groups, -1, *weight.shape[1:])
    return split.transpose(1, 2).reshape(weight.shape[1] * groups, -1, *kernel)


def _both_sides(before: tuple[int, ...], after: tuple[int, ...]) -> list[int]:
    """Return the padding as `F.pad` takes it: the last axis first."""
    return [number for pair in zip(reversed(before), reversed(after), strict=True) for number in pair]


def _geometry(conv: nn.modules.conv._ConvNd) -> NdGeometry:
    kernel, dilation = tuple(conv.kernel_size), tuple(conv.dilation)
    if isinstance(conv.padding, str):
        totals = [d * (k - 1) if conv.padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        before = tuple(total // 2 for total in totals)
        after = tuple(total - total // 2 for total in totals)
    else:
        before = after = tuple(int(padding) for padding in conv.padding)
    return NdGeometry(
        conv.in_channels, conv.out_channels, kernel, tuple(conv.stride), before, after, dilation,
        tuple(conv.output_padding), conv.transposed, conv.groups,
    )  # fmt: skip
