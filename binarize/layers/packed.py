"""Packed form: the same layers as bits and scales, run by kernels.

`binarize.layers.packed_layer` has what they share.
"""

import math
from typing import Any, final

import torch
from torch import Tensor, nn

from binarize.kernels import ops
from binarize.layers.borders import threshold_table
from binarize.layers.geometry import Geometry
from binarize.layers.pack_activation import ROUTES, PackActivation
from binarize.layers.packed_layer import PackedLayer, stored_bits

__all__ = ["ROUTES", "Geometry", "PackActivation", "PackedConv2d", "PackedLayer", "PackedLinear", "stored_bits"]


def _stored_as(dtype: torch.dtype) -> tuple[None, torch.dtype] | tuple[()]:
    """Return the last arguments of `ops.conv2d`, none where the floats stay as they are."""
    return () if dtype == torch.float32 else (None, dtype)


@final
class PackedConv2d(PackedLayer):
    """Convolution on digit planes or codes; takes floats too and packs them itself.

    Attributes:
        crop: rows and columns dropped at the top and left (``padding="same"`` with an uneven total).
        padding_mode: as in `torch.nn.Conv2d`; anything but zeros is applied to the float input.
        reader: the packing of the only reader of the output, or None. With it the layer answers in that reader's form.
            One plane is one integer threshold per output, batch normalisation and clamp included; codes are made in
            the epilogue; anything else is packed from the floats.
    """

    def __init__(self, geometry: Geometry, activation: PackActivation, weight_spec: str) -> None:
        super().__init__(geometry, activation, weight_spec)
        self.crop = (0, 0)
        self.padding_mode, self.mode_padding = "zeros", (0, 0)
        self.reader: PackActivation | None = None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map planes or floats ``(n, c, h, w)``, and what to add ``(n, o, h', w')``, to ``(n, o, h', w')``."""
        if x.is_floating_point():
            x = self.activation(self._padded(x))
        reader = self.reader
        route = None if reader is None else reader.gpu.route(x.device, reader.route)
        if route == "popcount" and self.answers_in_thresholds():
            height, width = x.shape[1:3]
            _, row, column = self.tables(height, width)
            planes: Tensor = ops.conv2d_threshold(
                x, self.prepared(x.dtype), *self.thresholds(height, width), row, column, *self.geometry.arguments()
            )
            return planes
        fused = residual is None or self._takes(x, residual)
        arguments = self._arguments(x, residual if fused else None, clamps=fused)
        if reader is not None and route == "int8" and reader.thresholds is None and fused and not any(self.crop):
            codes_of_reader: Tensor = ops.conv2d_codes(
                *arguments, reader.low, reader.inverse_step, reader.terms[0], reader.groups
            )
            return codes_of_reader
        y: Tensor = ops.conv2d(*arguments, *_stored_as(self.dtype if fused else torch.float32))
        if any(self.crop):
            y = y[..., self.crop[0] :, self.crop[1] :]
        if not fused and residual is not None:
            y = (y + residual).clamp(self.minimum, self.maximum).to(self.dtype)
        return y if reader is None else reader(y)

    def _takes(self, x: Tensor, residual: Tensor) -> bool:
        """Whether the epilogue can add a residual of that size."""
        shape = (x.shape[0], self.geometry.out_channels, *self.geometry.output_size(*x.shape[1:3]))
        return residual.shape == shape and not any(self.crop)

    def _arguments(self, x: Tensor, residual: Tensor | None, *, clamps: bool = True) -> tuple[Any, ...]:
        """Return the arguments of `ops.conv2d` for packed inputs."""
        table, row, column = self.tables(*x.shape[1:3])
        limits = (self.minimum, self.maximum) if clamps else (-math.inf, math.inf)
        held = self.operands(x.dtype)
        return x, held.weight, held.scale, table, row, column, residual, *held.geometry.arguments(), *limits

    def and_pack(
        self, x: Tensor, residual: Tensor | None, slope: Tensor | None, reader: PackActivation
    ) -> tuple[Tensor, Tensor] | None:
        """Return the output and the same packed for a reader beside others, made by one kernel where a GPU can.

        Args:
            x: as in `forward`.
            residual: what to add, or None.
            slope: ``(o,)`` or ``(1,)`` of a `torch.nn.PReLU` after the addition, or None.
            reader: packs what is given.

        Returns:
            None where the epilogue cannot add the residual: `forward` can.
        """
        if any(self.crop):
            return None
        if x.is_floating_point():
            x = self.activation(self._padded(x))
        if residual is not None and not self._takes(x, residual):
            return None
        if slope is not None:
            slope = slope.detach().float().expand(self.geometry.out_channels)
        y, packed = ops.conv2d_and_pack(
            *self._arguments(x, residual), slope, self.dtype, *reader.arguments(x.device, self.geometry.out_channels)
        )
        return y, packed

    def answers_in_thresholds(self) -> bool:
        """Whether its reader's planes are one comparison of one whole number per output, where no residual is added."""
        geometry, reader = self.geometry, self.reader
        single = len(geometry.weight_terms) * len(geometry.activation_terms) == 1
        plain = reader is not None and reader.terms == (1,) and reader.groups == 1
        return single and plain and not any(self.crop)

    def _padded(self, x: Tensor) -> Tensor:
        if self.padding_mode == "zeros":
            return x
        ph, pw = self.mode_padding
        return nn.functional.pad(x, (pw, pw, ph, ph), mode=self.padding_mode)

    def thresholds(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return the threshold per border class ``(classes, o)`` and the flip ``(o,)`` by which the layer answers."""
        key = (-height, -width)  # beside the border tables, which have positive keys
        if key not in self._tables:
            assert self.reader is not None
            terms = self.geometry.weight_terms[0], self.geometry.activation_terms[0]
            most = self.geometry.depth * (2 ** terms[0] - 1) * (2 ** terms[1] - 1)
            self._tables[key] = threshold_table(self._digit, self.tables(height, width)[0], self.scale[0], most)
        thresholds, flip, _ = self._tables[key]
        assert flip is not None
        return thresholds, flip

    def _digit(self, y: Tensor) -> Tensor:
        assert self.reader is not None
        return self.reader.codes(y.clamp(self.minimum, self.maximum), axis=1)[0] > 0

    def config(self) -> dict[str, Any]:
        """Return what `from_config` needs beside the buffers."""
        return {
            **super().config(),
            "crop": self.crop, "padding_mode": self.padding_mode, "mode_padding": self.mode_padding,
            "reader": None if self.reader is None else self.reader.config(),
        }  # fmt: skip

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "PackedConv2d":
        """Build with buffers still to be filled."""
        geometry, activation = (
            Geometry.from_config(config["geometry"]),
            PackActivation.from_config(config["activation"]),
        )
        made = cls(geometry, activation, config["weight_spec"])
        made._take(config)
        made.crop, made.padding_mode = tuple(config["crop"]), config["padding_mode"]
        made.mode_padding = tuple(config["mode_padding"])
        made.reader = None if config["reader"] is None else PackActivation.from_config(config["reader"])
        return made


@final
class PackedLinear(PackedLayer):
    """Matrix product on digit planes or codes over the last axis; takes floats too and packs them itself."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map planes ``(..., 1, m, words)`` or floats ``(..., c)``, and what to add ``(..., o)``, to ``(..., o)``."""
        if x.is_floating_point():
            x = self.activation(x)
        leading, outputs = x.shape[:-3], self.geometry.out_channels
        if 0 in leading:  # a detector may propose nothing; the kernels take no empty image
            return self.scale.new_zeros(*leading, outputs, dtype=self.dtype)
        planes = x.reshape(1, 1, -1, *x.shape[-3:])
        fused = residual is None or residual.shape == (*leading, outputs)
        added = residual.reshape(1, 1, -1, outputs).permute(0, 3, 1, 2) if residual is not None and fused else None
        limits = (self.minimum, self.maximum) if fused else (-math.inf, math.inf)
        table, _, _ = self.tables(1, 1)
        held = self.operands(planes.dtype)
        y: Tensor = ops.conv2d(
            planes, held.weight, held.scale, table, None, None, added,
            *held.geometry.arguments(), *limits, *_stored_as(self.dtype if fused else torch.float32),
        )  # fmt: skip
        y = y.permute(0, 2, 3, 1).reshape(*leading, outputs)
        return y if residual is None or fused else (y + residual).clamp(self.minimum, self.maximum).to(self.dtype)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "PackedLinear":
        """Build with buffers still to be filled."""
        geometry, activation = (
            Geometry.from_config(config["geometry"]),
            PackActivation.from_config(config["activation"]),
        )
        made = cls(geometry, activation, config["weight_spec"])
        made._take(config)
        return made
