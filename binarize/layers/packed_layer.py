"""What the packed layers share: bits and scales, and the numbers that kernels take.

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

from binarize.errors import ModelError
from binarize.kernels import codes, format
from binarize.kernels.finish import FLOATS, name_of
from binarize.layers.borders import axis_classes
from binarize.layers.geometry import Geometry
from binarize.layers.gpu_routes import GpuRoutes
from binarize.layers.halves import dtype_after, keeping_types
from binarize.layers.merged import Operands, merge, merged_geometry
from binarize.layers.pack_activation import PackActivation, route_of

__all__ = ["PackedLayer", "prepared_weight", "stored_bits"]


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
        dtype: of the floats that it gives: float32, or what ``half()`` and ``bfloat16()`` ask for. Sums are rounded to
            it once, at the end; what is added may be of any of the three types.
    """

    bits: Tensor
    scale: Tensor
    bias: Tensor
    dtype = torch.float32

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
        self.dtype = dtype_after(fn, self.dtype)
        super()._apply(keeping_types(fn), recurse)
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
        planes = map(self._sum_of_signs, self.bits)
        for count in self.geometry.weight_terms:
            term = torch.zeros_like(whole)
            for place in range(count):
                term += next(planes) << place
            terms.append(term if count else whole)
        return torch.stack(terms)

    @final
    def _sum_of_signs(self, plane: Tensor) -> Tensor:
        """Return the signs of one plane summed over input channels, ``(o, kh, kw)`` int64."""
        outputs, channels, *kernel = self.weight_shape
        signs = format.unpack_signs(plane, self.depth).reshape(outputs, channels, -1)
        ones = torch.ones(channels, device=signs.device)  # as a product: exact below 2^24, and no reduction is quicker
        return (ones @ signs.float()).long().reshape(outputs, *kernel)

    @final
    def prepared(self, dtype: torch.dtype) -> Tensor:
        """Return the weight in the kernels' layout for planes (int32) or codes (uint8), made once."""
        route = route_of(dtype)
        if route not in self._prepared:
            self._prepared[route] = prepared_weight(self.bits, self.geometry, route)
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
        return Operands(geometry, prepared_weight(bits, geometry, "int8"), scale)

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
            **({} if self.dtype == torch.float32 else {"dtype": _saved_name(self.dtype)}),
        }

    @final
    def _take(self, config: dict[str, Any]) -> None:
        self.minimum = -float("inf") if config["minimum"] is None else config["minimum"]
        self.maximum = float("inf") if config["maximum"] is None else config["maximum"]
        self.dtype = _dtype_of(config.get("dtype", "float32"))

    @final
    def extra_repr(self) -> str:
        """Name the sizes and the scheme."""
        geometry = self.geometry
        return f"{geometry.channels}, {geometry.out_channels}, kernel={geometry.kernel}, scheme={self.weight_spec!r}"


def _saved_name(dtype: torch.dtype) -> str:
    if dtype not in FLOATS:
        what = f"cannot save packed layers that are to give {name_of(dtype)}, which they cannot"
        raise ModelError(f"{what}; call .float()")
    return name_of(dtype)


def _dtype_of(name: object) -> torch.dtype:
    known = {name_of(dtype): dtype for dtype in FLOATS}
    if name not in known:
        raise ModelError(f"cannot build a packed layer that gives {name!r}; it gives one of {', '.join(known)}")
    return known[str(name)]


def prepared_weight(bits: Tensor, geometry: Geometry, route: str) -> Tensor:
    """Return stored bits as the kernels of a route and of the bits' device read them."""
    sizes: dict[str, Any] = {
        "out_channels": geometry.out_channels, "channels_per_group": geometry.channels // geometry.groups,
        "kernel": geometry.kernel, "groups": geometry.groups,
    }  # fmt: skip
    if route == "int8":
        return codes.fold_weight(bits, geometry.weight_terms, **sizes, narrow=bits.device.type == "cpu")
    return format.prepare_weight(bits, **sizes)
