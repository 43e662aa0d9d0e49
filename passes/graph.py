"""Typed access to a traced model: the one file that reads and edits raw fx nodes, so that passes need not."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar, final, overload

from torch import fx, nn

from binarize.passes.operations import add_of, clamp_of, is_add, is_inplace, is_size, module_of

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
N = TypeVar("N", bound=nn.Module)
M_co = TypeVar("M_co", bound=nn.Module, covariant=True)
Kind = type[M] | tuple[type[M], ...]


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


@overload
def calls(gm: fx.GraphModule, kind: tuple[type[M], type[N]]) -> list[Call[M | N]]: ...
@overload
def calls(gm: fx.GraphModule, kind: Kind[M]) -> list[Call[M]]: ...
def calls(gm: fx.GraphModule, kind: Any) -> list[Call[Any]]:
    """Return each call of a module of the given class or classes, in graph order."""
    found = (call_of(gm, node, kind) for node in gm.graph.nodes)
    return [call for call in found if call is not None]


@overload
def call_of(gm: fx.GraphModule, node: object, kind: tuple[type[M], type[N]]) -> Call[M | N] | None: ...
@overload
def call_of(gm: fx.GraphModule, node: object, kind: Kind[M]) -> Call[M] | None: ...
def call_of(gm: fx.GraphModule, node: object, kind: Any) -> Call[Any] | None:
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


def flowing(gm: fx.GraphModule) -> set[fx.Node]:
    """Return the nodes that values of the inputs flow into: neither constants nor arithmetic on sizes."""
    fed: set[fx.Node] = set()
    for node in gm.graph.nodes:
        if not is_size(node) and (node.op == "placeholder" or any(p in fed for p in node.all_input_nodes)):
            fed.add(node)
    return fed


# Editing modules


def unique_name(gm: nn.Module, hint: str) -> str:
    """Return ``hint`` (a path), numbered if something of ``gm`` already has that path."""
    parent, _, leaf = hint.rpartition(".")
    home = _home(gm, parent)
    name, count = leaf, 0
    while home is not None and hasattr(home, name):
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
