"""Packed form: the same layers as bits and scales, run by kernels.

    y = bias + sum_t scale[t] * acc[t],    acc[t] = conv(code, odd), zero padded, in whole numbers

`scale` holds unit x step, times any batch normalisation that was folded in. Where `low` (the value of code 0) is not 0,
its share of the sum is a constant per output and border class, added to the bias.
"""

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from binarize.kernels import codes, format, ops
from binarize.layers.borders import axis_classes, threshold_table
from binarize.layers.geometry import Geometry
from binarize.layers.gpu_routes import GpuRoutes
from binarize.layers.merged import Operands, merge, merged_geometry
from binarize.layers.pack_activation import ROUTES, PackActivation, route_of

__all__ = ["ROUTES", "Geometry", "PackActivation", "PackedConv2d", "PackedLayer", "PackedLinear", "stored_bits"]


def stored_bits(odd: Tensor, terms: Sequence[int]) -> Tensor:
    """Return the stored bits ``(m, o, ceil(k / 8))`` of odd integers ``(t, o, ...)`` with so many planes each."""
    planes = []
    for term, count in enumerate(terms):
        code = (odd[term].flatten(1) + (2**count - 1)).div(2).to(torch.uint8)  # of no planes: nothing is stored
        planes += [format.pack_flags(code >> plane & 1 == 0) for plane in range(count)]
    return torch.stack(planes)


class PackedLayer(nn.Module, abc.ABC):
    """What the packed layers share.

    Attributes:
        geometry: sizes and terms.
        activation: packs a float input; planes that are packed already pass by it.
        weight_shape: ``(o, c / groups, kh, kw)``, or with as many axes of a kernel as it has.
        bits: ``(m, o, ceil(k / 8))`` uint8, the weight's sign planes; a set bit is -1.
        scale: ``(t, o)``, one per pair of weight and activation term, weight-major.
        bias: ``(o,)``.
        minimum, maximum: the output is clamped to these.
        weight_spec: scheme string the layer was made with.
        exactness: how far the weight may be from its planes on the route int8, see `binarize.layers.merged`; no file
            holds it.
    """

    bits: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(
        self,
        geometry: Geometry,
        activation: PackActivation,
        weight_spec: str,
        weight_shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.geometry, self.activation, self.weight_spec = geometry, activation, weight_spec
        self.exactness = "exact"
        activation.gpu = GpuRoutes((geometry,))
        plain = (geometry.out_channels, geometry.channels // geometry.groups, *geometry.kernel)
        self.weight_shape = weight_shape or plain
        planes, outputs = sum(geometry.weight_terms), geometry.out_channels
        pairs = len(geometry.weight_terms) * len(geometry.activation_terms)
        self.register_buffer("bits", torch.zeros(planes, outputs, -(-self.depth // 8), dtype=torch.uint8))
        self.register_buffer("scale", torch.zeros(pairs, outputs))
        self.register_buffer("bias", torch.zeros(outputs))
        self.minimum, self.maximum = -float("inf"), float("inf")
        self._forget()

    @final
    @property
    def depth(self) -> int:
        """Products summed in one output: k."""
        return math.prod(self.weight_shape[1:])

    @property
    def channels(self) -> int:
        """Channels of its input."""
        return self.geometry.channels

    def geometry_on(self, route: str) -> Geometry:
        """Return the sizes with the weight terms that are multiplied on a route: fewer where they are merged."""
        merged = merged_geometry(self.geometry, self.exactness) if route == "int8" else None
        return merged or self.geometry

    @final
    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles hold: no weight repacked for a route, which would come on top of its bits."""
        return {**self.__dict__, "_prepared": {}, "_merged": None, "_tables": {}}

    @final
    def _forget(self) -> None:
        self._prepared: dict[str, Tensor] = {}
        self._merged: tuple[str, Operands] | None = None
        self._tables: dict[tuple[int, int], tuple[Tensor, Tensor | None, Tensor | None]] = {}

    @final
    def _apply(self, fn: Any, recurse: bool = True) -> "PackedLayer":
        self._forget()
        super()._apply(fn, recurse)
        return self

    @final
    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._forget()
        super()._load_from_state_dict(*args, **kwargs)

    @final
    def set_weight(self, odd: Tensor, scale: Tensor, bias: Tensor) -> None:
        """Take over odd integers ``(t, o, ...)``, scales ``(t, o)`` and bias ``(o,)``."""
        self.bits = stored_bits(odd, self.geometry.weight_terms)
        self.scale, self.bias = scale.detach().float().contiguous(), bias.detach().float().contiguous()
        self._forget()

    @final
    def multiply(self, gain: Tensor, shift: Tensor) -> None:
        """Follow the layer by ``y * gain + shift``, both ``(o,)``; exact up to float32 rounding."""
        self.scale = self.scale * gain
        self.bias = self.bias * gain + shift
        self._forget()

    @final
    def odd(self) -> Tensor:
        """Return the weight's odd integers ``(t, *weight_shape)`` as int64."""
        geometry = self.geometry
        signs = format.unpack_signs(self.bits, self.depth).to(torch.int64)
        total, terms = 0, []
        for count in geometry.weight_terms:
            powers = 2 ** torch.arange(count, device=signs.device).reshape(-1, 1, 1)
            term = (signs[total : total + count] * powers).sum(0)
            terms.append(term if count else torch.ones_like(term))
            total += count
        return torch.stack(terms).reshape(-1, *self.weight_shape)

    @final
    def _odd_sums(self) -> Tensor:
        """Return the odd integers summed over input channels, ``(t, o, kh, kw)`` int64, without holding them all."""
        outputs, channels, *kernel = self.weight_shape
        whole, terms = torch.full((outputs, *kernel), channels, device=self.bits.device), []
        signs = format.unpack_signs(self.bits, self.depth).reshape(len(self.bits), *self.weight_shape)
        planes = iter(signs.sum(2, dtype=torch.int32).long())
        for count in self.geometry.weight_terms:
            term = torch.zeros_like(whole)
            for place in range(count):
                term += next(planes) << place
            terms.append(term if count else whole)
        return torch.stack(terms)

    @final
    def prepared(self, dtype: torch.dtype) -> Tensor:
        """Return the weight in the kernels' layout for planes (int32) or codes (uint8), made once."""
        route = route_of(dtype)
        if route not in self._prepared:
            self._prepared[route] = _prepared_weight(self.bits, self.geometry, route)
        return self._prepared[route]

    @final
    def operands(self, dtype: torch.dtype) -> Operands:
        """Return what planes (int32) or codes (uint8) are multiplied with; terms are merged where that is asked."""
        geometry = self.geometry_on(route_of(dtype))
        if geometry is self.geometry:
            return Operands(geometry, self.prepared(dtype), self.scale)
        if self._merged is None or self._merged[0] != self.exactness:
            self._merged = self.exactness, self._merge(geometry)
        return self._merged[1]

    @final
    def _merge(self, geometry: Geometry) -> Operands:
        odd, unit = merge(self.odd(), self._units(), len(geometry.weight_terms))
        step = unit.new_tensor(self.activation.step)
        scale = (unit[:, None] * step[:, None]).flatten(0, 1).float()
        bits = stored_bits(odd, geometry.weight_terms)
        return Operands(geometry, _prepared_weight(bits, geometry, "int8"), scale)

    @final
    def _units(self) -> Tensor:
        """Return the value of each weight term's odd integers, ``(t, o)`` float64."""
        main = self.activation.main
        return self.scale[main :: len(self.activation.step)].double() / self.activation.step[main]

    @final
    def tables(self, height: int, width: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the bias per border class ``(classes, o)`` and the class of each output row and column."""
        found = self._tables.get((height, width))
        if found is None:
            found = self._tables[height, width] = self._border_tables(height, width)
        return found

    @final
    def _border_tables(self, height: int, width: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        geometry, low = self.geometry, self.activation.low
        if low == 0.0:
            return self.bias.unsqueeze(0), None, None
        if geometry.padding == (0, 0):
            inside = torch.ones(1, 1, dtype=torch.float64, device=self.bias.device)
            return self._border_bias(*(inside.expand(1, size) for size in geometry.kernel)), None, None
        out = geometry.output_size(height, width)
        (row, rows_valid), (column, columns_valid) = (
            axis_classes((height, width)[axis], out[axis], *geometry.axis(axis)) for axis in (0, 1)
        )
        device = self.bias.device
        table = self._border_bias(rows_valid.double().to(device), columns_valid.double().to(device))
        return table, (row * len(columns_valid)).int().to(device), column.int().to(device)

    @final
    def _border_bias(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return bias plus what `low` adds where the taps ``(r, kh)`` and ``(c, kw)`` are inside: ``(r x c, o)``.

        Sums of the odd weights are whole and therefore exact in any order; the terms are added one after the other, so
        that every runtime that does the same (kernels/native/onnxruntime) finds the same bits.
        """
        sums = torch.einsum("toyx,ry,cx->trco", self._odd_sums().double(), rows, columns).flatten(1, 2)
        unit = self._units()
        total = torch.zeros_like(sums[0])
        for term in range(len(unit)):
            total = total + unit[term] * sums[term]
        return (self.bias.double() + self.activation.low * total).float()

    def config(self) -> dict[str, Any]:
        """Return what `from_config` needs beside the buffers."""
        return {
            "geometry": dataclasses.asdict(self.geometry),
            "activation": self.activation.config(),
            "weight_spec": self.weight_spec,
            "minimum": None if self.minimum == -float("inf") else self.minimum,
            "maximum": None if self.maximum == float("inf") else self.maximum,
        }

    @final
    def _take(self, config: dict[str, Any]) -> None:
        self.minimum = -float("inf") if config["minimum"] is None else config["minimum"]
        self.maximum = float("inf") if config["maximum"] is None else config["maximum"]

    @final
    def extra_repr(self) -> str:
        """Name the sizes and the scheme."""
        geometry = self.geometry
        return f"{geometry.channels}, {geometry.out_channels}, kernel={geometry.kernel}, scheme={self.weight_spec!r}"


def _prepared_weight(bits: Tensor, geometry: Geometry, route: str) -> Tensor:
    sizes: dict[str, Any] = {
        "out_channels": geometry.out_channels, "channels_per_group": geometry.channels // geometry.groups,
        "kernel": geometry.kernel, "groups": geometry.groups,
    }  # fmt: skip
    if route == "int8":
        return codes.fold_weight(bits, geometry.weight_terms, **sizes)
    return format.prepare_weight(bits, **sizes)


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
        geometry = self.geometry
        height, width = x.shape[1:3]
        table, row, column = self.tables(height, width)
        route = None if self.reader is None else self.reader.gpu.route(x.device, self.reader.route)
        if route == "popcount" and self.answers_in_thresholds():
            planes: Tensor = ops.conv2d_threshold(
                x, self.prepared(x.dtype), *self.thresholds(height, width), row, column, *geometry.arguments()
            )
            return planes
        shape = (x.shape[0], geometry.out_channels, *geometry.output_size(height, width))
        fused = residual is None or (residual.shape == shape and not any(self.crop))
        limits = (self.minimum, self.maximum) if fused else (-float("inf"), float("inf"))
        held = self.operands(x.dtype)
        arguments = (
            x, held.weight, held.scale, table, row, column, residual if fused else None,
            *held.geometry.arguments(), *limits,
        )  # fmt: skip
        reader = self.reader
        if reader is not None and route == "int8" and reader.thresholds is None and fused and not any(self.crop):
            codes_of_reader: Tensor = ops.conv2d_codes(
                *arguments, reader.low, reader.inverse_step, reader.terms[0], reader.groups
            )
            return codes_of_reader
        y: Tensor = ops.conv2d(*arguments)
        if any(self.crop):
            y = y[..., self.crop[0] :, self.crop[1] :]
        if not fused and residual is not None:
            y = (y + residual).clamp(self.minimum, self.maximum)
        return y if reader is None else reader(y)

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
            return self.scale.new_zeros(*leading, outputs)
        planes = x.reshape(1, 1, -1, *x.shape[-3:])
        fused = residual is None or residual.shape == (*leading, outputs)
        added = residual.reshape(1, 1, -1, outputs).permute(0, 3, 1, 2) if residual is not None and fused else None
        limits = (self.minimum, self.maximum) if fused else (-math.inf, math.inf)
        table, _, _ = self.tables(1, 1)
        held = self.operands(planes.dtype)
        y: Tensor = ops.conv2d(
            planes, held.weight, held.scale, table, None, None, added,
            *held.geometry.arguments(), *limits,
        )  # fmt: skip
        y = y.permute(0, 2, 3, 1).reshape(*leading, outputs)
        return y if residual is None or fused else (y + residual).clamp(self.minimum, self.maximum)

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
