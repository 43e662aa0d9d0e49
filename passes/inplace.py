"""Make writing in place visible in the graph: later steps may then swap a module without changing what others see."""

import operator
from collections.abc import Callable
from typing import Any

from torch import fx

from binarize.passes.graph import first_input, flowing
from binarize.passes.operations import is_inplace

__all__ = ["AUGMENTED", "can_spare", "spare_input", "thread_inplace"]

# `x += y` and its relatives: how the interpreter spells each, in place and not
AUGMENTED: dict[str, tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]] = {
    "__iadd__": (operator.iadd, operator.add),
    "__isub__": (operator.isub, operator.sub),
    "__imul__": (operator.imul, operator.mul),
    "__itruediv__": (operator.itruediv, operator.truediv),
}
_PLAIN: dict[object, Callable[[Any, Any], Any]] = dict(AUGMENTED.values())


def thread_inplace(gm: fx.GraphModule) -> int:
    """Let whoever reads a tensor after it was overwritten read the node that overwrote it.

    Tracing records ``y = relu_(x); z = x + y`` with ``z`` reading the old name of ``x``. The value is right only as
    long as the ReLU really writes in place, which a fused or swapped one does not. Where nothing but its own layer
    made a tensor, ``+=`` becomes ``+``: then what a hook saw stays as it was. Writes through a view are not followed.

    Returns:
        How many readers were moved.
    """
    order = {node: index for index, node in enumerate(gm.graph.nodes)}
    tensors, moved = flowing(gm), 0
    for node in gm.graph.nodes:
        # Python's += on a size makes a new number, on a tensor it overwrites
        if node not in tensors or not is_inplace(gm, node) or (source := first_input(node)) not in tensors:
            continue
        for user in [user for user in source.users if order[user] > order[node]]:
            user.replace_input_with(source, node)
            moved += 1
        if source.op == "call_module" or source.target in _PLAIN.values():
            node.target = _PLAIN.get(node.target, node.target)
    return moved


def can_spare(node: fx.Node) -> bool:
    """Return whether `spare_input` knows how to spell what ``node`` does without writing over its input."""
    return node.op in ("call_module", "call_method") or node.kwargs.get("inplace") is True or node.target in _PLAIN


def spare_input(gm: fx.GraphModule, node: fx.Node) -> None:
    """Let an operation in place make a new tensor instead, as long as nobody reads its input afterwards.

    After `thread_inplace` nobody does: later readers read ``node``.
    """
    if node.kwargs.get("inplace") is True:
        node.kwargs = {**node.kwargs, "inplace": False}
    elif node.op == "call_module":
        gm.get_submodule(str(node.target)).inplace = False  # type: ignore[assignment]  # is_inplace saw it
    elif node.op == "call_method":
        node.target = str(node.target).removesuffix("_")
    else:
        node.target = _PLAIN[node.target]
