"""Functions of a model that write into a list they are given: each call gets lists of its own.

In the code of a graph such a list is a literal. A node holds it as a list that refuses to be written, and torch's
interpreter, by which `torch.export` runs a graph too, hands over that one.
"""

import functools
import types
from typing import Any, final

from torch import fx

__all__ = ["Interpreter", "lend_lists"]


def _own(value: Any) -> Any:
    """Return arguments with lists and dicts in them that can be written."""
    if isinstance(value, list):
        return [_own(item) for item in value]
    if isinstance(value, dict):
        return {key: _own(item) for key, item in value.items()}
    return tuple(map(_own, value)) if type(value) is tuple else value


@final
class Interpreter(fx.Interpreter):
    """Torch's, but what a function writes into its lists is lost after the call."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call ``target`` on lists of its own."""
        return super().call_function(target, _own(args), _own(kwargs))


def lend_lists(gm: fx.GraphModule) -> None:
    """Let every function that is not torch's own get lists of its own, whoever runs the graph of ``gm``."""
    for node in gm.graph.nodes:
        given = (*node.args, *node.kwargs.values())
        if node.op == "call_function" and _is_foreign(node.target) and any(isinstance(value, list) for value in given):
            node.target = _lending(node.target)
    gm.recompile()


def _is_foreign(target: Any) -> bool:
    return isinstance(target, types.FunctionType) and target.__module__.split(".")[0] != "torch"


def _lending(function: types.FunctionType) -> Any:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*_own(args), **_own(kwargs))

    return call
