"""A traced graph as data and back. fx turns a graph into Python source, so every word that gets there is checked.

Beside `passes.graph` and `passes.lift` the one file that handles raw nodes.
"""

from collections.abc import Mapping
from typing import Any

from torch import fx, nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from binarize.artifact.operators import ATTRIBUTES, METHODS, function_named, is_wrapped, name_of
from binarize.artifact.values import decode, encode, identifier, path_of
from binarize.errors import ArtifactError

__all__ = ["graph_from_data", "graph_to_data"]

_REMEDY = "write it with functions of torch, or keep the module that calls it whole"


def graph_to_data(graph: fx.Graph) -> dict[str, Any]:
    """Return ``graph`` as JSON values: one ``[name, op, target, args, kwargs]`` per node.

    Raises:
        ArtifactError: it calls something that is not on the allow-list.
    """
    data: dict[str, Any] = {"nodes": [_node_to_data(node) for node in graph.nodes]}
    if isinstance(graph._codegen, _PyTreeCodeGen):
        data["trees"] = _trees_to_data(graph._codegen.pytree_info)
    elif type(graph._codegen) is not fx.graph.CodeGen:
        raise ArtifactError(f"cannot save the graph: it is written by a {type(graph._codegen).__name__}; trace it anew")
    return data


def _node_to_data(node: fx.Node) -> list[Any]:
    target: Any = node.target
    if node.op == "call_function":
        target = name_of(node.target)
        if target is None:
            home = getattr(node.target, "__module__", None) or "?"
            what = f"{home}.{getattr(node.target, '__qualname__', node.target)}"
            raise ArtifactError(
                f"cannot save the graph: node {node.name!r} calls {what}, which no file holds; {_REMEDY}"
            )
    _check(node.op, str(target), node.args, node.kwargs)
    data = [node.name, node.op, target, [encode(value) for value in node.args]]
    keywords = {identifier(key, "an argument's name"): encode(value) for key, value in node.kwargs.items()}
    return [*data, keywords] if keywords else data


def _check(op: str, target: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise ArtifactError for a method or an attribute outside the list."""
    if op == "call_method" and target not in METHODS:
        raise ArtifactError(
            f"cannot take a graph that calls the method {target[:60]!r}, which no file holds; {_REMEDY}"
        )
    if target == "builtins.getattr" and (len(args) != 2 or kwargs or args[1] not in ATTRIBUTES):
        raise ArtifactError(f"cannot take a graph that reads the attribute {str(args[1:])[:60]}; {_REMEDY}")


def _trees_to_data(info: _PyTreeInfo) -> dict[str, Any]:
    return {
        "names": [identifier(name, "an input's name") for name in info.orig_args],
        "inputs": _spec_to_data(info.in_spec),
        "outputs": None if info.out_spec is None else _spec_to_data(info.out_spec),
    }


def _spec_to_data(spec: Any) -> Any:
    """Return a tree of containers as an example of it, with 0 at its leaves."""
    return encode(pytree.tree_unflatten([0] * spec.num_leaves, spec))


def graph_from_data(data: Mapping[str, Any], owner: nn.Module) -> fx.Graph:
    """Return the graph that `graph_to_data` described.

    Args:
        data: What it returned, after JSON.
        owner: Holds the modules and tensors that the graph names.

    Raises:
        ArtifactError: a name in it is not on the allow-list, or could not stand in code.
        Exception: it is no such data, in whatever way Python puts it.
    """
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for name, op, target, args, *rest in data["nodes"]:
        if name in nodes:
            raise ArtifactError(f"cannot read the graph: two nodes are called {str(name)[:60]!r}")
        arguments = tuple(decode(value, nodes) for value in args)
        keywords = {
            identifier(key, "an argument's name"): decode(value, nodes) for kw in rest for key, value in kw.items()
        }
        _check(op, target, arguments, keywords)
        called = _target(op, target, owner)
        nodes[name] = graph.create_node(op, called, arguments, keywords, identifier(name, "a node's name"))
        if op == "call_function" and is_wrapped(target):
            nodes[name].meta["is_wrapped"] = True  # or tracing the network once more would look into the function
    if not nodes or next(reversed(nodes.values())).op != "output":
        raise ArtifactError("cannot read the graph: it does not end in an output")
    if "trees" in data:
        graph.set_codegen(_PyTreeCodeGen(_trees_from_data(data["trees"])))
    return graph


def _target(op: str, target: str, owner: nn.Module) -> Any:
    if op == "placeholder":
        identifier(target.removeprefix("*").removeprefix("*"), "an input's name")
        return target
    if op == "call_function":
        function = function_named(target)
        if function is None:
            raise ArtifactError(
                f"cannot read the graph: it calls {target[:60]!r}, which is not on the list of operations"
            )
        return function
    if op == "call_module":
        _descend(owner, path_of(target, "a module's path"))
    elif op == "get_attr":
        home, _, leaf = path_of(target, "a tensor's path").rpartition(".")
        module = _descend(owner, home)
        if leaf not in module._parameters and leaf not in module._buffers:
            raise ArtifactError(f"cannot read the graph: it reads {target[:60]!r}, which is no tensor of the network")
    elif op == "output" and target != "output":
        raise ArtifactError(f"cannot read the graph: its output is called {target[:60]!r}")
    elif op not in ("output", "call_method"):
        raise ArtifactError(f"cannot read the graph: unknown kind of node {op[:60]!r}")
    return target


def _descend(root: nn.Module, path: str) -> nn.Module:
    """Return the module at ``path`` through modules alone, never through other attributes."""
    for part in filter(None, path.split(".")):
        inner = root._modules.get(part)
        if inner is None:
            raise ArtifactError(f"cannot read the graph: it names the module {path[:60]!r}, which is not in the file")
        root = inner
    return root


def _trees_from_data(data: Mapping[str, Any]) -> _PyTreeInfo:
    names = [identifier(name, "an input's name") for name in data["names"]]
    inputs, outputs = (
        None if data[key] is None else pytree.tree_structure(decode(data[key])) for key in ("inputs", "outputs")
    )
    _check_keys(inputs)
    return _PyTreeInfo(names, inputs, outputs)  # type: ignore[arg-type]


def _check_keys(spec: Any) -> None:
    """Check the names of keyword inputs, which fx writes into its code."""
    if not isinstance(spec, pytree.TreeSpec):
        raise ArtifactError("cannot read the graph: it does not say what its inputs are")
    if spec.type is tuple and spec.num_children == 2 and spec.child(1).type is dict:
        for key in spec.child(1).context:
            identifier(key, "an input's name")
