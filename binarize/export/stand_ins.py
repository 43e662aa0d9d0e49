"""What stands in the place of packed layers while a network is exported: modules that call one ONNX operation each."""

import copy
import json
import math
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, fx, nn

from binarize.export.functions import DOMAIN, VERSION
from binarize.layers.branches import branch_groups
from binarize.layers.packed import PackActivation, PackedConv2d, PackedLayer, PackedLinear
from binarize.layers.packed_nd import PackedConvNd
from binarize.passes.graph import put
from binarize.passes.lists import lend_lists

__all__ = ["LABEL", "digit_threshold", "with_stand_ins"]

LABEL = "binarize.label"
"""Key under which a node carries the JSON of its module's path and a sentence on it, until the file is cleaned."""

UNKNOWN_WORK = [1, 1]  # until `hints` counts the readers

FLOAT32_INFINITY = 0x7F800000


def with_stand_ins(net: nn.Module) -> nn.Module:
    """Return a copy of a packed network whose packed layers call operations of the domain; same tensors inside."""
    made = copy.deepcopy(net)
    for _, group in branch_groups(made):
        group.sparse = False
    for name, module in list(made.named_modules(remove_duplicate=False)):
        if isinstance(module, PackActivation | PackedLayer):
            _put(made, name, _stand_in(module, name))
        elif isinstance(module, nn.Conv3d) and module.bias is None:
            # onnxscript 0.7 would write a bias of two dimensions where there is none, which no runtime takes
            module.bias = nn.Parameter(module.weight.new_zeros(module.out_channels), requires_grad=False)
        elif isinstance(module, fx.GraphModule):
            lend_lists(module)
    return made


def _put(root: nn.Module, name: str, module: nn.Module) -> None:
    parent = root.get_submodule(name.rpartition(".")[0])
    if not isinstance(parent, _StandIn):  # the packing inside a packed layer went with it
        put(root, name, module)


def digit_threshold(reader: PackActivation) -> Tensor:
    """Return the float32 ``(1,)`` or ``(c,)`` from which on a one-plane packing gives digit 1.

    For a uniform code of one bit it is found by bisecting over all float32 numbers, so that the comparison gives the
    very digit of the rounded arithmetic that it replaces.
    """
    if reader.thresholds is not None:
        return reader.thresholds[0].float()
    below, above = -FLOAT32_INFINITY, FLOAT32_INFINITY
    while above - below > 1:
        middle = (below + above) // 2
        if reader.codes(_float_at(middle))[0].item() > 0:
            above = middle
        else:
            below = middle
    return _float_at(above)


def _float_at(rank: int) -> Tensor:
    """Return the float32 number of the given rank, ``(1,)``: 0 is 0.0, and consecutive ranks are neighbours."""
    magnitude = torch.tensor([abs(rank)], dtype=torch.int32).view(torch.float32)
    return -magnitude if rank < 0 else magnitude


class _StandIn(nn.Module):
    """A module that calls one operation of the domain, labelled with the path of the module it stands for."""

    def __init__(self, name: str, doc: str) -> None:
        super().__init__()
        self.label = {LABEL: json.dumps([name, doc])}

    @final
    def call(
        self, kind: str, inputs: list[Tensor], attributes: dict[str, Any], dtype: torch.dtype, shape: list[Any]
    ) -> Tensor:
        """Put one node into the graph that is being traced."""
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{kind}", inputs, attributes,
            dtype=dtype, shape=shape, version=VERSION, metadata_props=self.label,
        )  # fmt: skip


@final
class _Pack(_StandIn):
    """Stands for a `PackActivation`: floats to codes, uint8, same shape."""

    thresholds: Tensor | None

    def __init__(self, pack: PackActivation, name: str) -> None:
        super().__init__(name, _pack_doc(pack))
        self.rows = pack.rows
        self.attributes: dict[str, Any] = {
            "groups": pack.groups, "rows": int(pack.rows), "work": UNKNOWN_WORK, "x_inner": 0, "version": VERSION,
        }  # fmt: skip
        thresholds = None
        if pack.thresholds is None:
            self.attributes |= {"low": pack.low, "inverse_step": pack.inverse_step, "bits": pack.terms[0]}
        elif len(pack.terms) == 1:
            thresholds = pack.thresholds.reshape(-1, *([] if pack.rows else [1, 1]))
        else:
            self.attributes["bits"] = sum(pack.terms)
            thresholds = pack.thresholds.T.reshape(-1, *([] if pack.rows else [1, 1]), len(pack.terms)).contiguous()
        self.register_buffer("thresholds", thresholds)

    def forward(self, x: Tensor) -> Tensor:
        """Map floats ``(n, c, *sizes)`` or ``(..., c)`` to codes of the same shape."""
        if self.thresholds is None:
            return self.call("PackUniform", [x], self.attributes, torch.uint8, list(x.shape))
        kind, thresholds = "PackTerms" if "bits" in self.attributes else "PackThresholds", self.thresholds
        if not self.rows and x.dim() != 4:
            planes = thresholds.shape[3:]
            thresholds = thresholds.reshape(-1, *[1] * (x.dim() - 2), *planes)
        return self.call(kind, [x, thresholds], self.attributes, torch.uint8, list(x.shape))


class _Packed(_StandIn):
    """What the stand-ins of the two packed layers share."""

    def __init__(self, layer: PackedLayer, name: str) -> None:
        super().__init__(name, _layer_doc(layer))
        self.pack = _Pack(layer.activation, f"{name}/pack")
        self.register_buffer("bits", layer.bits)
        geometry, activation = layer.geometry, layer.activation
        self.register_buffer("scale", layer.scale)
        self.register_buffer("bias", layer.bias)
        self.geometry = geometry
        self.attributes: dict[str, Any] = {
            "low": activation.low, "step": activation.step[activation.main],
            "activation_bits": sum(geometry.activation_terms), "weight_terms": list(geometry.weight_terms),
            "minimum": layer.minimum, "maximum": layer.maximum, "work": UNKNOWN_WORK, "version": VERSION,
        }  # fmt: skip
        self.terms = "Terms" if len(activation.step) > 1 else ""  # of the operation's name
        if self.terms:
            self.attributes |= {"steps": list(activation.step), "main_term": activation.main}

    @final
    def call_layer(
        self, kind: str, codes: Tensor, more: list[Tensor], dtype: torch.dtype, shape: list[Any], **others: Any
    ) -> Tensor:
        """Put the layer's node into the graph, with ``others`` beside its attributes."""
        weight = [self.get_buffer(name) for name in ("bits", "scale", "bias")]
        return self.call(kind, [codes, *weight, *more], self.attributes | others, dtype, shape)

    @final
    def call_adding(
        self, kind: str, codes: Tensor, residual: Tensor | None, shape: list[Any], crop: tuple[int, int] = (0, 0)
    ) -> Tensor:
        """Put the layer's node into the graph, and nodes that crop, add and clamp where it cannot do that itself.

        It adds what has its output's shape; anything else may be spread over the output, or the output over it.
        """
        kind += self.terms
        inside = residual is None or (_of_one_shape(residual.shape, shape) and not any(crop))
        if residual is not None and inside:
            return self.call_layer(f"{kind}Add", codes, [residual], torch.float32, shape)
        limits = {} if inside else {"minimum": -math.inf, "maximum": math.inf}
        y = self.call_layer(kind, codes, [], torch.float32, shape, **limits)
        y = y[..., crop[0] :, crop[1] :] if any(crop) else y
        if residual is None:
            return y
        y, bounds = y + residual, (self.attributes["minimum"], self.attributes["maximum"])
        return y if bounds == (-math.inf, math.inf) else y.clamp(*bounds)


@final
class _Conv2d(_Packed):
    """Stands for a `PackedConv2d`.

    A one-plane reader that it answers becomes one float threshold per output, a uniform code its attributes.
    """

    thresholds: Tensor | None

    def __init__(self, layer: PackedConv2d, name: str) -> None:
        super().__init__(layer, name)
        geometry = layer.geometry
        self.crop, self.padding_mode, self.mode_padding = layer.crop, layer.padding_mode, layer.mode_padding
        self.attributes |= {
            "weight_shape": [geometry.out_channels, geometry.channels // geometry.groups, *geometry.kernel],
            "strides": list(geometry.stride), "pads": list(geometry.padding * 2),
            "dilations": list(geometry.dilation), "group": geometry.groups, "y_inner": 0, "residual_inner": 0,
        }  # fmt: skip
        reader, single = layer.reader, len(geometry.activation_terms) == 1
        compares = reader is not None and (reader.terms, reader.groups) == ((1,), 1) and single
        self.reader = _Pack(reader, f"{name}/reader") if reader is not None and not compares else None
        thresholds = digit_threshold(reader).reshape(-1, 1, 1) if reader is not None and compares else None
        self.register_buffer("thresholds", thresholds)

    @property
    def encodes(self) -> bool:
        """Whether the layer's own operation gives the uniform codes of its reader."""
        return self.reader is not None and self.reader.thresholds is None and not (self.terms or any(self.crop))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map codes or floats ``(n, c, h, w)`` to floats, or codes of the reader, ``(n, o, h', w')``."""
        if x.is_floating_point():
            x = self.pack(self._padded(x))
        shape = [x.shape[0], self.geometry.out_channels, *self.geometry.output_size(x.shape[2], x.shape[3])]
        if self.thresholds is not None:
            return self.call_layer(
                "PackedConv2dThreshold", x, [self.thresholds], torch.uint8, shape, reader_work=UNKNOWN_WORK
            )
        if self.reader is not None and self.encodes and residual is None:
            names = ("low", "inverse_step", "bits", "groups", "work")
            code = {f"reader_{name}": self.reader.attributes[name] for name in names}
            return self.call_layer("PackedConv2dUniform", x, [], torch.uint8, shape, **code)
        y = self.call_adding("PackedConv2d", x, residual, shape, self.crop)
        return y if self.reader is None else self.reader(y)

    def _padded(self, x: Tensor) -> Tensor:
        if self.padding_mode == "zeros":
            return x
        ph, pw = self.mode_padding
        return nn.functional.pad(x, (pw, pw, ph, ph), mode=self.padding_mode)


@final
class _ConvNd(_Packed):
    """Stands for a `PackedConvNd`."""

    def __init__(self, layer: PackedConvNd, name: str) -> None:
        super().__init__(layer, name)
        self.space, self.padding_mode, self.mode_padding = layer.space, layer.padding_mode, layer.mode_padding
        space = layer.space
        outputs, channels, *kernel = layer.weight_shape
        self.attributes |= {
            "weight_shape": [outputs, channels, *kernel], "strides": list(space.stride),
            "pads": [*space.before, *space.after], "dilations": list(space.dilation), "group": space.groups,
        }  # fmt: skip
        if space.transposed:
            self.attributes |= {
                "by_group": [space.groups, outputs // space.groups, channels, *kernel],
                "perm": [0, 2, 1, *range(3, 3 + len(kernel))],
                "inputs_first": [space.channels, outputs // space.groups, *kernel],
                "output_padding": list(space.extra),
            }

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map codes or floats ``(n, c, *sizes)`` to floats ``(n, o, *sizes')``."""
        if x.is_floating_point():
            x = x if self.padding_mode == "zeros" else nn.functional.pad(x, self.mode_padding, mode=self.padding_mode)
            x = self.pack(x)
        shape = [x.shape[0], self.space.out_channels, *self.space.output_size(x.shape[2:])]
        return self.call_adding("PackedConvTranspose" if self.space.transposed else "PackedConvNd", x, residual, shape)


@final
class _Linear(_Packed):
    """Stands for a `PackedLinear`."""

    def __init__(self, layer: PackedLinear, name: str) -> None:
        super().__init__(layer, name)
        self.attributes["weight_shape"] = [layer.geometry.out_channels, layer.geometry.channels]

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map codes or floats ``(..., c)`` to floats ``(..., o)``."""
        if x.is_floating_point():
            x = self.pack(x)
        shape = [*x.shape[:-1], self.geometry.out_channels]
        return self.call_adding("PackedLinear", x, residual, shape)


def _of_one_shape(seen: Sequence[Any], wanted: Sequence[Any]) -> bool:
    """Whether neither is spread over the other. Asks nothing of open sizes, or they would not stay open."""
    pairs = zip(seen, wanted, strict=False)
    return len(seen) == len(wanted) and all(_is_one(a) == _is_one(b) for a, b in pairs)


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


def _stand_in(module: PackActivation | PackedLayer, name: str) -> _StandIn:
    if isinstance(module, PackActivation):
        return _Pack(module, name)
    if isinstance(module, PackedConvNd):
        return _ConvNd(module, name)
    return _Conv2d(module, name) if isinstance(module, PackedConv2d) else _Linear(_linear(module), name)


def _linear(module: PackedLayer) -> PackedLinear:
    assert isinstance(module, PackedLinear)
    return module


def _pack_doc(pack: PackActivation) -> str:
    kind = "uniform codes" if pack.thresholds is None else "codes by threshold"
    return f"{kind}, {sum(pack.terms)} planes"


def _layer_doc(layer: PackedLayer) -> str:
    terms = (layer.geometry.weight_terms, layer.geometry.activation_terms)
    weight, activation = ("+".join(map(str, planes)) for planes in terms)
    return f"{layer.weight_spec}; weight planes {weight}, activation planes {activation}"
