"""A single layer as data and back: its class, from an allow-list, and the arguments of its constructor."""

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from binarize.artifact.binaries import BINARIES
from binarize.artifact.groups import GROUPS
from binarize.artifact.values import decode, encode, is_plain
from binarize.errors import ArtifactError

__all__ = ["CONTAINERS", "describe", "plain_attributes", "rebuild", "set_attributes"]

CONTAINERS = {f"torch.nn.{kind.__name__}": kind for kind in (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)}
"""Classes that take no arguments and hold whatever children and tensors the file lists."""

_TORCH = """
AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d
AlphaDropout AvgPool1d AvgPool2d AvgPool3d BatchNorm1d BatchNorm2d BatchNorm3d Bilinear CELU ChannelShuffle
CircularPad1d CircularPad2d CircularPad3d ConstantPad1d ConstantPad2d ConstantPad3d Conv1d Conv2d Conv3d
ConvTranspose1d ConvTranspose2d ConvTranspose3d Dropout Dropout1d Dropout2d Dropout3d ELU Embedding
FeatureAlphaDropout Flatten Fold GELU GLU GroupNorm Hardshrink Hardsigmoid Hardswish Hardtanh Identity
InstanceNorm1d InstanceNorm2d InstanceNorm3d LPPool1d LPPool2d LPPool3d LayerNorm LeakyReLU Linear LocalResponseNorm
LogSigmoid LogSoftmax MaxPool1d MaxPool2d MaxPool3d MaxUnpool1d MaxUnpool2d MaxUnpool3d Mish MultiheadAttention
PReLU PixelShuffle PixelUnshuffle RMSNorm RReLU ReLU ReLU6 ReflectionPad1d ReflectionPad2d ReflectionPad3d
ReplicationPad1d ReplicationPad2d ReplicationPad3d SELU SiLU Sigmoid Softmax Softmax2d Softmin Softplus Softshrink
Softsign SyncBatchNorm Tanh Tanhshrink Threshold Unflatten Unfold Upsample UpsamplingBilinear2d UpsamplingNearest2d
ZeroPad1d ZeroPad2d ZeroPad3d modules.linear.NonDynamicallyQuantizableLinear
"""

_TORCHVISION = frozenset(
    {
        "torchvision.models.convnext.LayerNorm2d",
        "torchvision.models.video.resnet.Conv3DNoTemporal",
        "torchvision.models.video.resnet.Conv3DSimple",
        "torchvision.ops.misc.FrozenBatchNorm2d",
        "torchvision.ops.misc.Permute",
        "torchvision.ops.stochastic_depth.StochasticDepth",
    }
)

_RULES = {**BINARIES, **GROUPS}

_OWN = ("training", "meta")  # attributes that every module, or every graph, has

_Argument = Callable[[Any], Any]
_CONV3D: dict[str, _Argument] = {
    "in_planes": lambda layer: layer.in_channels,
    "out_planes": lambda layer: layer.out_channels,
    "padding": lambda layer: layer.padding[-1],
}
# Arguments that do not stand in an attribute of their own name.
_DERIVED: dict[str, dict[str, _Argument]] = {
    "torch.nn.MultiheadAttention": {
        "bias": lambda layer: layer.in_proj_bias is not None,
        "add_bias_kv": lambda layer: layer.bias_k is not None,
    },
    "torchvision.models.video.resnet.Conv3DNoTemporal": {**_CONV3D, "stride": lambda layer: layer.stride[-1]},
    "torchvision.models.video.resnet.Conv3DSimple": {**_CONV3D, "stride": lambda layer: layer.stride[-1]},
    "torchvision.ops.misc.FrozenBatchNorm2d": {"num_features": lambda layer: layer.weight.numel()},
}


@functools.cache
def _torch_classes() -> dict[str, type[nn.Module]]:
    found = {f"torch.nn.{name}": _attribute(nn, name) for name in _TORCH.split()}
    return {**CONTAINERS, **{name: kind for name, kind in found.items() if kind is not None}}


@functools.cache
def _torch_names() -> dict[type[nn.Module], str]:
    return {kind: name for name, kind in _torch_classes().items()}


def _attribute(home: Any, path: str) -> Any:
    return functools.reduce(lambda value, part: getattr(value, part, None), path.split("."), home)


def _name_of(kind: type[nn.Module]) -> str | None:
    plain = _torch_names().get(kind)
    name = f"{kind.__module__}.{kind.__qualname__}"
    return name if plain is None and name in _TORCHVISION and _class_named(name) is kind else plain


def _class_named(name: str) -> type[nn.Module] | None:
    if name not in _TORCHVISION:
        return _torch_classes().get(name)
    home, _, leaf = name.rpartition(".")
    try:
        kind: type[nn.Module] | None = getattr(importlib.import_module(home), leaf, None)
    except ImportError:
        kind = None
    return kind


def describe(module: nn.Module) -> dict[str, Any] | None:
    """Return ``module`` as JSON values, without its tensors and children; None if no file can hold it.

    It can if its class is on the list and rebuilding it gives the same tensors, children and attributes.
    """
    if _has_hooks(module):
        return None
    for name, rule in _RULES.items():
        if type(module) is rule.kind:
            arguments = rule.arguments(module)
            return None if arguments is None else {"class": name, "arguments": arguments}
    found = _name_of(type(module))
    if found is None:
        return None
    data: dict[str, Any] = {"class": found}
    arguments = {} if found in CONTAINERS else _arguments(found, module)
    if arguments:
        data["arguments"] = arguments
    return _settled(data, module)


def _has_hooks(module: nn.Module) -> bool:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name, None) for name in names)


def _arguments(name: str, module: nn.Module) -> dict[str, Any]:
    derived, found = _DERIVED.get(name, {}), {}
    for parameter in inspect.signature(type(module)).parameters.values():
        key = parameter.name
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or key.startswith("_"):
            continue
        if key in derived:
            value = derived[key](module)
        elif key not in ("device", "dtype") and hasattr(module, key):
            value = getattr(module, key)
            if isinstance(parameter.default, bool) and not isinstance(value, bool):
                value = value is not None  # such as `bias`: a switch for the constructor, a tensor in the layer
        else:
            continue
        if value is not parameter.default and is_plain(value):
            found[key] = encode(value)
    return found


def _settled(data: dict[str, Any], module: nn.Module) -> dict[str, Any] | None:
    """Return ``data`` with the attributes that the constructor would set otherwise; None if it makes another layer."""
    try:
        shell = rebuild(data, dict(module.named_children()))
    except Exception:  # a constructor may raise anything when an attribute was not what it took
        return None
    if data["class"] not in CONTAINERS and _outline(shell) != _outline(module):
        return None
    theirs, changed = _public(shell), {}
    for key, value in _public(module).items():
        if key in theirs and (theirs[key] is value or (is_plain(value) and theirs[key] == value)):
            continue
        if not is_plain(value):
            return None
        changed[key] = encode(value)
    return {**data, "attributes": changed} if changed else data


def _outline(module: nn.Module) -> tuple[Any, ...]:
    tensors = {**module._parameters, **module._buffers}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor is not None}
    return shapes, {name for name, child in module._modules.items() if child is not None}


def _public(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if not key.startswith("_") and key not in _OWN}


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """Return the public attributes of ``module`` that a file can hold, encoded."""
    return {key: encode(value) for key, value in _public(module).items() if is_plain(value)}


def set_attributes(module: nn.Module, attributes: Mapping[str, Any]) -> None:
    """Set what `plain_attributes` gave; methods, properties, tensors and children are never covered."""
    for key, value in attributes.items():
        is_free = not hasattr(type(module), key) or is_plain(getattr(type(module), key))
        held = (*module._parameters, *module._buffers, *module._modules, *_OWN)
        if not key.isidentifier() or key.startswith("_") or not is_free or key in held:
            raise ArtifactError(f"cannot set {key[:60]!r} of a {type(module).__name__}: it is no plain attribute")
        module.__dict__[key] = decode(value)


def rebuild(data: Mapping[str, Any], children: Mapping[str, nn.Module]) -> nn.Module:
    """Return the layer that `describe` described, its tensors on the meta device, its children of its own making.

    Args:
        data: What `describe` returned, after JSON.
        children: The modules that will be its children; a binary layer is built around its activation.

    Raises:
        ArtifactError: the class is not on the list.
        Exception: the arguments make no sense, in whatever way the constructor puts it.
    """
    name, arguments = data["class"], data.get("arguments", {})
    with torch.device("meta"):
        if name in _RULES:
            module = _RULES[name].build(arguments, children)
        else:
            kind = _class_named(name)
            if kind is None:
                raise ArtifactError(
                    f"cannot build a layer of class {str(name)[:60]!r}: it is not on the list of layers"
                )
            module = kind(**{key: decode(value) for key, value in arguments.items()})
    set_attributes(module, data.get("attributes", {}))
    return module
