"""The layers of this package as data and back."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from torch import Tensor, nn

from binarize.errors import ArtifactError
from binarize.layers.binary import BinaryActivation, BinaryConv2d, BinaryLayer, BinaryLinear
from binarize.layers.binary_nd import KINDS, BinaryConvNd
from binarize.layers.packed import Geometry, PackActivation, PackedConv2d, PackedLinear
from binarize.layers.packed_nd import PackedConvNd
from binarize.layers.taps import NdGeometry
from binarize.schemes.base import ActivationBasis, Levels, WeightBasis
from binarize.schemes.encoding import EncodingActivation
from binarize.schemes.piecewise import PiecewiseActivation
from binarize.schemes.presets import Scheme, build_scheme
from binarize.schemes.shifted import ShiftedActivation
from binarize.schemes.sign import SignActivation

__all__ = ["BINARIES", "BinaryRule"]

Arguments = Mapping[str, Any]
Children = Mapping[str, nn.Module]

_BASES: dict[str, type[ActivationBasis]] = {
    kind.__name__: kind for kind in (SignActivation, EncodingActivation, PiecewiseActivation, ShiftedActivation)
}
_CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
MODES = ("zeros", "reflect", "replicate", "circular")
_LINEAR = ("in_features", "out_features")


@final
@dataclasses.dataclass(frozen=True)
class BinaryRule:
    """How one class of layers is saved.

    Attributes:
        kind: the class.
        arguments: from a layer to JSON values, or None if they would not rebuild it.
        build: from these values and the layer's children back to the layer, tensors still to be filled.
    """

    kind: type[nn.Module]
    arguments: Callable[[Any], dict[str, Any] | None]
    build: Callable[[Arguments, Children], nn.Module]


@final
@dataclasses.dataclass(frozen=True)
class _UnfittedWeight(WeightBasis):
    """Stands in for a basis while a layer is built, so that no scales are fitted to a weight that is not there yet."""

    planes_of_terms: tuple[int, ...]

    @property
    def terms(self) -> tuple[int, ...]:
        return self.planes_of_terms

    def fit(self, weight: Tensor) -> Tensor:
        return weight.new_empty(len(self.terms), weight.shape[0])

    def odd(self, weight: Tensor, unit: Tensor) -> Tensor:
        raise NotImplementedError

    def __call__(self, weight: Tensor, unit: Tensor) -> Tensor:
        raise NotImplementedError


@final
@dataclasses.dataclass(frozen=True)
class _UnfittedActivation(ActivationBasis):
    """Stands in for a basis while an activation is built: levels of the right shapes, to be filled."""

    planes_of_terms: tuple[int, ...]
    threshold: tuple[int, int] | None

    @property
    def terms(self) -> tuple[int, ...]:
        return self.planes_of_terms

    def fit(self, samples: Tensor) -> Levels:
        threshold = None if self.threshold is None else samples.new_empty(self.threshold)
        return Levels(samples.new_empty(()), samples.new_empty(len(self.terms)), threshold)

    def codes(self, x: Tensor, levels: Levels) -> Tensor:
        raise NotImplementedError

    def __call__(self, x: Tensor, levels: Levels) -> Tensor:
        raise NotImplementedError


def _activation_arguments(layer: BinaryActivation) -> dict[str, Any] | None:
    name = type(layer.basis).__name__
    if _BASES.get(name) is not type(layer.basis):
        return None
    shape = None if layer.threshold is None else list(layer.threshold.shape)
    return {"basis": name, "options": dataclasses.asdict(layer.basis), "fitted": layer.fitted, "threshold": shape}


def _activation(arguments: Arguments, _: Children) -> BinaryActivation:
    basis, shape = _BASES[arguments["basis"]](**arguments["options"]), arguments["threshold"]
    _require(shape is None or (len(shape) == 2 and shape[0] == basis.count), "a threshold", shape)
    made = BinaryActivation(_UnfittedActivation(basis.terms, shape and tuple(shape)))
    made.basis, made.fitted = basis, bool(arguments["fitted"])
    return made


def _conv_arguments(layer: BinaryConv2d) -> dict[str, Any] | None:
    values = {name: getattr(layer, name) for name in (*_CONV, "crop")}
    return _scheme_kept(layer, values)


def _linear_arguments(layer: BinaryLinear) -> dict[str, Any] | None:
    return _scheme_kept(layer, {name: getattr(layer, name) for name in _LINEAR})


def _nd_arguments(layer: BinaryConvNd) -> dict[str, Any] | None:
    return _scheme_kept(layer, {"geometry": dataclasses.asdict(layer.geometry), "padding_mode": layer.padding_mode})


def _scheme_kept(layer: BinaryLayer, values: dict[str, Any]) -> dict[str, Any] | None:
    if build_scheme(layer.scheme.spec) != layer.scheme:
        return None
    return {**values, "bias": layer.bias is not None, "scheme": layer.scheme.spec}


def _conv(arguments: Arguments, children: Children) -> BinaryConv2d:
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()
    }
    scheme, float_layer = build_scheme(given["scheme"]), nn.Conv2d(**{key: given[key] for key in (*_CONV, "bias")})
    made = BinaryConv2d(float_layer, _unfitted(scheme), _child(children, BinaryActivation))
    made.scheme, made.crop = scheme, given["crop"]
    return made


def _nd(arguments: Arguments, children: Children) -> BinaryConvNd:
    geometry, scheme = NdGeometry.from_config(arguments["geometry"]), build_scheme(arguments["scheme"])
    _check_nd(geometry, scheme.weight.terms, scheme.activation.terms)
    _require(arguments["padding_mode"] in MODES, "a padding", arguments["padding_mode"])
    _require(not geometry.transposed or geometry.before == geometry.after, "a transposed convolution", geometry)
    plain, activation = _plain(geometry, bool(arguments["bias"])), _child(children, BinaryActivation)
    made = BinaryConvNd(plain, _unfitted(scheme), activation)
    made.scheme, made.geometry, made.padding_mode = scheme, geometry, arguments["padding_mode"]
    return made


def _plain(geometry: NdGeometry, bias: bool) -> nn.modules.conv._ConvNd:
    """Return a float convolution with weights of the right shape; the rest of its geometry is set afterwards."""
    name = f"Conv{'Transpose' if geometry.transposed else ''}{geometry.dimensions}d"
    kind: Any = next((kind for kind in KINDS if kind.__name__ == name), None)
    _require(kind is not None, "a convolution", name)
    made: nn.modules.conv._ConvNd = kind(
        geometry.channels, geometry.out_channels, geometry.kernel, groups=geometry.groups, bias=bias
    )
    return made


def _linear(arguments: Arguments, children: Children) -> BinaryLinear:
    scheme, float_layer = (
        build_scheme(arguments["scheme"]),
        nn.Linear(**{key: arguments[key] for key in (*_LINEAR, "bias")}),
    )
    made = BinaryLinear(float_layer, _unfitted(scheme), _child(children, BinaryActivation))
    made.scheme = scheme
    return made


def _unfitted(scheme: Scheme) -> Scheme:
    return dataclasses.replace(scheme, weight=_UnfittedWeight(scheme.weight.terms))


def _child(children: Children, kind: type[Any]) -> Any:
    child = children.get("activation")
    _require(type(child) is kind, "an activation", type(child).__name__)
    return child


def _packed_arguments(layer: PackedConv2d | PackedConvNd | PackedLinear) -> dict[str, Any]:
    inner = ("activation", "reader")  # children, which have entries of their own
    return {key: value for key, value in layer.config().items() if key not in inner}


def _packed_conv(arguments: Arguments, children: Children) -> PackedConv2d:
    activation, reader = _child(children, PackActivation), children.get("reader")
    _require(reader is None or isinstance(reader, PackActivation), "a reader", type(reader).__name__)
    inner = {
        "activation": activation.config(),
        "reader": reader.config() if isinstance(reader, PackActivation) else None,
    }
    made = PackedConv2d.from_config({**arguments, **inner})
    _check_packed(made.geometry, activation)
    _require(min(*made.crop, *made.mode_padding) >= 0, "a crop", made.crop)
    return made


def _packed_linear(arguments: Arguments, children: Children) -> PackedLinear:
    activation = _child(children, PackActivation)
    made = PackedLinear.from_config({**arguments, "activation": activation.config()})
    _check_packed(made.geometry, activation)
    _require((made.geometry.kernel, made.geometry.groups) == ((1, 1), 1), "a linear layer", made.geometry)
    return made


def _packed_nd(arguments: Arguments, children: Children) -> PackedConvNd:
    activation = _child(children, PackActivation)
    space = NdGeometry.from_config(arguments["space"])
    _check_nd(space, space.weight_terms, space.activation_terms)
    mode, sides = arguments["padding_mode"], arguments["mode_padding"]
    _require(mode in MODES and len(sides) in (0, 2 * space.dimensions), "a padding", (mode, sides))
    _require(all(type(size) is int and 0 <= size < 2**31 for size in sides), "a padding", sides)
    made = PackedConvNd.from_config({**arguments, "activation": activation.config()})
    _check_activation(activation, space.channels, space.groups, space.activation_terms)
    return made


def _check_nd(space: NdGeometry, weight_terms: Sequence[int], activation_terms: Sequence[int]) -> None:
    """Refuse sizes that kernels, which trust them, could not run."""
    tuples = (space.kernel, space.stride, space.before, space.after, space.dilation, space.extra)
    positive = (space.channels, space.out_channels, space.groups, *space.kernel, *space.stride, *space.dilation)
    whole = (*positive, *space.before, *space.after, *space.extra, *weight_terms, *activation_terms)
    fits = (
        type(space.transposed) is bool
        and 1 <= len(space.kernel) <= 3
        and all(len(numbers) == len(space.kernel) for numbers in tuples)
        and all(type(size) is int and 0 <= size < 2**31 for size in whole)
        and min(*positive, sum(weight_terms), *activation_terms) > 0
        and space.channels % space.groups == 0
        and space.out_channels % space.groups == 0
        and max(sum(weight_terms), sum(activation_terms)) <= 8
    )
    _require(fits, "a geometry", space)


def _check_packed(geometry: Geometry, activation: PackActivation) -> None:
    """Refuse sizes that kernels, which trust them, could not run."""
    sizes = (geometry.channels, geometry.out_channels, geometry.groups, *geometry.kernel, *geometry.stride)
    whole = (*sizes, *geometry.dilation, *geometry.padding, *geometry.weight_terms, *geometry.activation_terms)
    pairs = (geometry.kernel, geometry.stride, geometry.padding, geometry.dilation)
    fits = (
        all(type(size) is int and 0 <= size < 2**31 for size in whole)
        and all(len(pair) == 2 for pair in pairs)
        and min(*sizes, *geometry.dilation, sum(geometry.weight_terms), *geometry.activation_terms) > 0
        and geometry.channels % geometry.groups == 0
        and geometry.out_channels % geometry.groups == 0
        and max(sum(geometry.weight_terms), sum(geometry.activation_terms)) <= 8
    )
    _require(fits, "a geometry", geometry)
    _check_activation(activation, geometry.channels, geometry.groups, geometry.activation_terms)


def _check_activation(activation: PackActivation, channels: int, groups: int, terms: tuple[int, ...]) -> None:
    _require(activation.terms == terms, "an activation", activation.terms)
    _require(activation.groups == groups, "an activation", f"{activation.groups} groups")
    thresholds = activation.thresholds
    allowed = ((sum(activation.terms), 1), (sum(activation.terms), channels))
    _require(thresholds is None or tuple(thresholds.shape) in allowed, "an activation", activation)


def _require(holds: bool, what: str, seen: object) -> None:
    if not holds:
        raise ArtifactError(f"cannot build a binary layer: {str(seen)[:200]} does not do as {what}")


BINARIES: dict[str, BinaryRule] = {
    "binarize.BinaryActivation": BinaryRule(BinaryActivation, _activation_arguments, _activation),
    "binarize.BinaryConv2d": BinaryRule(BinaryConv2d, _conv_arguments, _conv),
    "binarize.BinaryConvNd": BinaryRule(BinaryConvNd, _nd_arguments, _nd),
    "binarize.BinaryLinear": BinaryRule(BinaryLinear, _linear_arguments, _linear),
    "binarize.PackActivation": BinaryRule(
        PackActivation, PackActivation.config, lambda arguments, _: PackActivation.from_config(dict(arguments))
    ),
    "binarize.PackedConv2d": BinaryRule(PackedConv2d, _packed_arguments, _packed_conv),
    "binarize.PackedConvNd": BinaryRule(PackedConvNd, _packed_arguments, _packed_nd),
    "binarize.PackedLinear": BinaryRule(PackedLinear, _packed_arguments, _packed_linear),
}
