"""The layers of this package as data and back."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, final

from torch import Tensor, nn

from binarize.errors import ArtifactError
from binarize.layers.binary import BinaryActivation, BinaryConv2d, BinaryLinear
from binarize.layers.packed import Geometry, PackActivation, PackedConv2d, PackedLinear
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


def _scheme_kept(layer: BinaryConv2d | BinaryLinear, values: dict[str, Any]) -> dict[str, Any] | None:
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


def _packed_arguments(layer: PackedConv2d | PackedLinear) -> dict[str, Any]:
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
    _require(activation.terms == geometry.activation_terms, "an activation", activation.terms)
    _require(activation.groups == geometry.groups, "an activation", f"{activation.groups} groups")
    thresholds = activation.thresholds
    allowed = ((sum(activation.terms), 1), (sum(activation.terms), geometry.channels))
    _require(thresholds is None or tuple(thresholds.shape) in allowed, "an activation", activation)


def _require(holds: bool, what: str, seen: object) -> None:
    if not holds:
        raise ArtifactError(f"cannot build a binary layer: {str(seen)[:200]} does not do as {what}")


BINARIES: dict[str, BinaryRule] = {
    "binarize.BinaryActivation": BinaryRule(BinaryActivation, _activation_arguments, _activation),
    "binarize.BinaryConv2d": BinaryRule(BinaryConv2d, _conv_arguments, _conv),
    "binarize.BinaryLinear": BinaryRule(BinaryLinear, _linear_arguments, _linear),
    "binarize.PackActivation": BinaryRule(
        PackActivation, PackActivation.config, lambda arguments, _: PackActivation.from_config(dict(arguments))
    ),
    "binarize.PackedConv2d": BinaryRule(PackedConv2d, _packed_arguments, _packed_conv),
    "binarize.PackedLinear": BinaryRule(PackedLinear, _packed_arguments, _packed_linear),
}
