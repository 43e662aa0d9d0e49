"""Typed access to a traced model: the one file that reads and edits raw fx nodes, so that passes need not."""

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from typing import Any, Generic, TypeVar, final

import torch
import torch.nn.functional as F
from torch import fx, nn

__all__ = [
    "Call",
    "Kind",
    "add_module",
    "add_of",
    "bypass",
    "call_after",
    "call_again",
    "call_before",
    "call_of",
    "calls",
    "clamp_of",
    "delete_if_unused",
    "erase_dead",
    "first_input",
    "flowing",
    "input_nodes",
    "is_add",
    "is_inplace",
    "is_size",
    "join",
    "module_of",
    "module_uses",
    "output_nodes",
    "put",
    "single_user",
    "swap",
    "take_over",
    "unique_name",
]

M = TypeVar("M", bound=nn.Module)
M_co = TypeVar("M_co", bound=nn.Module, covariant=True)
Kind = type[M] | tuple[type[M], ...]

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


@final
@dataclass(frozen=True)
class Call(Generic[M_co]):
    """One place where the graph calls a module.

    Args:
        name: Path of the module in its graph.
        node: The node that calls it.
        module: What is called; the same object for each call of a shared module.
    """

    name: str
    node: fx.Node
    module: M_co


def join(path: str, name: str) -> str:
    """Return the path of ``name`` inside the module at ``path``; the whole model is at ``""``."""
    return f"{path}.{name}" if path and name else path or name


# Reading modules


def module_of(gm: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """Return the module that ``node`` calls, or None if it calls none."""
    return gm.get_submodule(str(node.target)) if node.op == "call_module" else None


def calls(gm: fx.GraphModule, kind: Kind[M]) -> list[Call[M]]:
    """Return each call of a module of the given class or classes, in graph order."""
    found = (call_of(gm, node, kind) for node in gm.graph.nodes)
    return [call for call in found if call is not None]


def call_of(gm: fx.GraphModule, node: object, kind: Kind[M]) -> Call[M] | None:
    """Return the call that ``node`` makes, or None if it is no call of a module of that class."""
    if not isinstance(node, fx.Node):
        return None
    module = module_of(gm, node)
    return Call(str(node.target), node, module) if isinstance(module, kind) else None


def module_uses(gm: fx.GraphModule) -> dict[str, list[fx.Node]]:
    """Return the nodes that call each module, by the module's path, in graph order."""
    uses: dict[str, list[fx.Node]] = {}
    for node in gm.graph.nodes:
        if node.op == "call_module":
            uses.setdefault(str(node.target), []).append(node)
    return uses


# Reading nodes


def first_input(node: fx.Node) -> fx.Node:
    """Return the node that a one-input operation reads, passed by position or by name.

    Raises:
        LookupError: The operation reads no other node.
    """
    if not node.all_input_nodes:
        raise LookupError(f"node {node.name!r} reads no other node")
    given = node.args[0] if node.args else node.kwargs.get("input")
    return given if isinstance(given, fx.Node) else node.all_input_nodes[0]


def single_user(node: fx.Node) -> fx.Node | None:
    """Return the only node that reads ``node``, or None if there are none or several."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def input_nodes(gm: fx.GraphModule) -> list[fx.Node]:
    """Return the graph's inputs, in order."""
    return [node for node in gm.graph.nodes if node.op == "placeholder"]


def output_nodes(gm: fx.GraphModule) -> list[fx.Node]:
    """Return the nodes whose values the graph returns, each once, in order."""
    return [value for node in gm.graph.nodes if node.op == "output" for value in node.all_input_nodes]


def is_size(node: fx.Node) -> bool:
    """Return whether ``node`` reads a property of a tensor (shape, dtype, device) and none of its values."""
    if node.op == "call_method":
        return node.target in _SIZE_METHODS
    if node.op != "call_function":
        return False
    return node.target in _SIZE_FUNCTIONS or (node.target is getattr and node.args[1] in _SIZE_ATTRIBUTES)


def flowing(gm: fx.GraphModule) -> set[fx.Node]:
    """Return the nodes that values of the inputs flow into: neither constants nor arithmetic on sizes."""
    fed: set[fx.Node] = set()
    for node in gm.graph.nodes:
        if not is_size(node) and (node.op == "placeholder" or any(p in fed for p in node.all_input_nodes)):
            fed.add(node)
    return fed


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


# Editing modules


def unique_name(gm: nn.Module, hint: str) -> str:
    """Return ``hint`` (a path), numbered if something of ``gm`` already has that path."""
    parent, _, leaf = hint.rpartition(".")
    home = _home(gm, parent)
    taken = set(dir(home)) if home is not None else set()
    name, count = leaf, 0
    while name in taken:
        count += 1
        name = f"{leaf}_{count}"
    return join(parent, name)


def _home(root: nn.Module, path: str) -> nn.Module | None:
    try:
        return root.get_submodule(path)
    except AttributeError:
        return None


def put(root: nn.Module, path: str, module: nn.Module) -> None:
    """Set the submodule at ``path``, replacing one that stands there; missing parents become empty modules.

    Raises:
        ValueError: ``path`` is empty: a root cannot hold itself.
    """
    parent, _, leaf = path.rpartition(".")
    if not leaf:
        raise ValueError("cannot put a module at the empty path; name a place inside the model")
    home = root
    for part in parent.split(".") if parent else []:
        if part not in home._modules:
            home.add_module(part, nn.Module())
        home = home.get_submodule(part)
    setattr(home, leaf, module)


def add_module(gm: fx.GraphModule, name: str, module: nn.Module) -> str:
    """Add ``module`` under ``name``, or the next free name like it, and return the path it got."""
    path = unique_name(gm, name)
    put(gm, path, module.train(gm.training))
    return path


def swap(gm: fx.GraphModule, call: Call[nn.Module], module: nn.Module) -> None:
    """Replace the called module, for all its calls. The new one takes over the training flag."""
    put(gm, call.name, module.train(call.module.training))


def delete_if_unused(gm: fx.GraphModule, path: str) -> None:
    """Delete the module at ``path`` unless a node still calls it, or reads something inside it."""
    for node in gm.graph.nodes:
        if node.op in ("call_module", "get_attr") and f"{node.target}.".startswith(f"{path}."):
            return
    if _home(gm, path) is not None:
        gm.delete_submodule(path)


# Editing nodes


def take_over(old: fx.Node, new: fx.Node) -> None:
    """Let every user of ``old`` read ``new`` instead, except ``new`` itself."""
    old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)


def call_after(
    gm: fx.GraphModule, node: fx.Node, name: str, module: nn.Module, args: tuple[fx.node.Argument, ...] | None = None
) -> Call[nn.Module]:
    """Insert a call of a new module right after ``node``; nobody reads it yet (see `take_over`).

    Args:
        gm: The traced model.
        node: What the call follows.
        name: Wished path of the module; numbered if taken.
        module: What to call.
        args: Arguments of the call; ``(node,)`` if not given.
    """
    path = add_module(gm, name, module)
    with gm.graph.inserting_after(node):
        made = gm.graph.call_module(path, (node,) if args is None else args)
    return Call(path, made, module)


def bypass(gm: fx.GraphModule, call: Call[nn.Module]) -> None:
    """Remove one call: its users read its first input. The module goes too if nothing else needs it."""
    call.node.replace_all_uses_with(first_input(call.node))
    gm.graph.erase_node(call.node)
    delete_if_unused(gm, call.name)


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


def erase_dead(gm: fx.GraphModule) -> None:
    """Erase nodes whose value nobody reads and that have no other effect, and the modules only they called.

    Parameters and modules that a live node reads stay, and so does what writes in place or is not torch's own.
    """
    called: set[str] = set()
    for node in reversed(gm.graph.nodes):
        if not node.users and _is_pure(gm, node):
            if node.op == "call_module":
                called.add(str(node.target))
            gm.graph.erase_node(node)
    for path in called:
        delete_if_unused(gm, path)


def _is_pure(gm: fx.GraphModule, node: fx.Node) -> bool:
    if node.op in ("placeholder", "output") or is_inplace(gm, node) or node.is_impure():
        return False
    if node.op != "call_function":
        return True
    home = getattr(node.target, "__module__", None) or ""
    name = getattr(node.target, "__name__", "")
    return home.split(".")[0] in ("torch", "_operator", "builtins", "math") and "setitem" not in name


def call_before(
    gm: fx.GraphModule, node: fx.Node, name: str, module: nn.Module, args: tuple[fx.node.Argument, ...]
) -> Call[nn.Module]:
    """Insert a call of a new module right before ``node``; nobody reads it yet. Arguments as in `call_after`."""
    path = add_module(gm, name, module)
    with gm.graph.inserting_before(node):
        made = gm.graph.call_module(path, args)
    return Call(path, made, module)


def call_again(gm: fx.GraphModule, node: fx.Node, path: str, args: tuple[fx.node.Argument, ...]) -> fx.Node:
    """Insert one more call of the module at ``path``, right before ``node``; nobody reads it yet."""
    with gm.graph.inserting_before(node):
        return gm.graph.call_module(path, args)
