"""What a node computes, in all the spellings that torch has for it: sizes, additions, clamps, writing in place."""

import operator
from collections.abc import Callable, Iterator
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

__all__ = ["add_of", "clamp_of", "is_add", "is_inplace", "is_size", "module_of"]

_aten = torch.ops.aten

_ADD = {operator.add, operator.iadd, torch.add, _aten.add.Tensor, _aten.add_.Tensor}
_ADD_METHODS = {"add", "add_", "__add__", "__iadd__"}

_SIZE_METHODS = {"size", "dim", "ndimension", "numel", "nelement", "stride", "is_floating_point"}
_SIZE_ATTRIBUTES = {"shape", "ndim", "dtype", "device", "is_cuda", "requires_grad"}
_SIZE_FUNCTIONS = {_aten.sym_size.int, _aten.sym_numel.default, torch.numel, len}

_INPLACE_OPERATORS = {
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.imod),
    *(operator.ipow, operator.iand, operator.ior, operator.ixor, operator.imatmul),
}


def module_of(gm: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """Return the module that ``node`` calls, or None if it calls none."""
    return gm.get_submodule(str(node.target)) if node.op == "call_module" else None


def is_size(node: fx.Node) -> bool:
    """Return whether ``node`` reads a property of a tensor (shape, dtype, device) and none of its values."""
    if node.op == "call_method":
        return node.target in _SIZE_METHODS
    if node.op != "call_function":
        return False
    return node.target in _SIZE_FUNCTIONS or (node.target is getattr and node.args[1] in _SIZE_ATTRIBUTES)


def is_inplace(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether ``node`` writes its result over its first input."""
    if node.kwargs.get("inplace") is True:
        return True
    if node.op == "call_module":
        return getattr(module_of(gm, node), "inplace", False) is True
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if node.op != "call_function":
        return False
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.is_mutable
    name = getattr(node.target, "__name__", "")
    return node.target in _INPLACE_OPERATORS or (name.endswith("_") and not name.endswith("__"))


def is_add(node: fx.Node) -> bool:
    """Return whether ``node`` adds two values as they are, in place or not."""
    return add_of(node) is not None


def add_of(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Return the two nodes that ``node`` adds, or None if it is no plain addition of two nodes."""
    matches = node.target in (_ADD if node.op == "call_function" else _ADD_METHODS if node.op == "call_method" else ())
    if not matches or node.kwargs.get("alpha", 1) != 1:
        return None
    terms = [*node.args, *(node.kwargs[key] for key in ("input", "other") if key in node.kwargs)]
    if len(terms) != 2 or not isinstance(terms[0], fx.Node) or not isinstance(terms[1], fx.Node):
        return None
    return terms[0], terms[1]


_Bounds = tuple[float, float]
_CLAMP_DEFAULTS: dict[str, _Bounds] = {
    "relu": (0.0, inf),
    "relu6": (0.0, 6.0),
    "hardtanh": (-1.0, 1.0),
    "clamp": (-inf, inf),
    "clip": (-inf, inf),
    "clamp_min": (-inf, inf),
    "clamp_max": (-inf, inf),
}


def _clamp_functions() -> Iterator[tuple[Callable[..., Any], str]]:
    for name in _CLAMP_DEFAULTS:
        for spelling in (name, name + "_"):
            for home in (torch, F, _aten):
                target = getattr(home, spelling, None)
                if callable(target):
                    yield getattr(target, "default", target), name


_CLAMPS = dict(_clamp_functions())


def clamp_of(gm: fx.GraphModule, node: object) -> tuple[float, float] | None:
    """Return the ``(minimum, maximum)`` that ``node`` clamps to, or None if it is no clamp to two numbers.

    ReLU, ReLU6, hardtanh and clamp in all their spellings: module, function, method, in place.
    """
    if not isinstance(node, fx.Node):
        return None
    module = module_of(gm, node)
    if module is not None:
        return _module_bounds(module)
    if node.op == "call_function":
        name = _CLAMPS.get(node.target)  # type: ignore[arg-type]  # any callable may be asked for
    else:
        name = str(node.target).removesuffix("_") if node.op == "call_method" else None
    return _call_bounds(name, node) if name in _CLAMP_DEFAULTS else None


def _module_bounds(module: nn.Module) -> _Bounds | None:
    if type(module) is nn.ReLU:
        return 0.0, inf
    # exact classes: a subclass may compute something else
    if type(module) in (nn.ReLU6, nn.Hardtanh):
        assert isinstance(module, nn.Hardtanh)
        return float(module.min_val), float(module.max_val)
    return None


def _call_bounds(name: str, node: fx.Node) -> _Bounds | None:
    low, high = _CLAMP_DEFAULTS[name]
    given = [argument for argument in node.args[1:] if not isinstance(argument, bool)]
    if name == "clamp_max":
        given = [None, *given]
    named = node.kwargs
    low = _number(named.get("min", named.get("min_val", given[0] if given else None)), low)
    high = _number(named.get("max", named.get("max_val", given[1] if len(given) > 1 else None)), high)
    return None if low != low or high != high else (low, high)


def _number(value: object, default: float) -> float:
    """Return a bound as a float; NaN marks one that is computed by the graph."""
    if value is None:
        return default
    return float(value) if isinstance(value, (int, float)) else float("nan")
