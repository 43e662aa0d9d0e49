"""Running parts of a graph on many batches, with only the values held that something still reads."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor, fx

from binarize.passes.lists import Interpreter

__all__ = ["Values", "Walk", "advance", "run_with_taps", "start"]

Values = dict[fx.Node, Any]


def start(gm: fx.GraphModule, args: Sequence[Any]) -> Values:
    """Return the values of the placeholders, those that are not given by their defaults."""
    places = [node for node in gm.graph.nodes if node.op == "placeholder"]
    defaults = [node.args[0] if node.args else None for node in places]
    return dict(zip(places, [*args, *defaults[len(args) :]], strict=True))


def advance(gm: fx.GraphModule, nodes: Iterable[fx.Node], values: Values, exit: fx.Node) -> None:
    """Compute ``nodes`` from ``values``, and keep only the value of ``exit`` of them."""
    interpreter = Interpreter(gm, garbage_collect_values=False)
    interpreter.env = dict(values)
    for node in nodes:
        interpreter.env[node] = interpreter.run_node(node)
    values[exit] = interpreter.env[exit]


def run_with_taps(
    gm: fx.GraphModule, args: Sequence[Any], taps: Collection[str]
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Run a graph.

    Returns:
        The values of the nodes named, each its own copy, and the floating tensors of the output in order.
    """
    found: dict[str, Tensor] = {}
    values, output = start(gm, args), None
    last = {read: node for node in gm.graph.nodes for read in node.all_input_nodes}
    interpreter = Interpreter(gm, garbage_collect_values=False)
    interpreter.env = values
    for node in gm.graph.nodes:
        if node.op != "placeholder":
            output = values[node] = interpreter.run_node(node)
        if node.name in taps:
            found[node.name] = first(values[node]).clone()  # what comes next may write over it
        for read in node.all_input_nodes:
            if last[read] is node:
                del values[read]
    leaves = torch.utils._pytree.tree_leaves(output)
    return found, [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def first(value: Any) -> Tensor:
    """Return the aggregate of what branches give, or the value of any other node."""
    found: Tensor = value[0] if isinstance(value, tuple) else value
    return found


@final
class Walk:
    """A graph that is run step by step, in graph order, on all batches.

    Attributes:
        values: of each batch, what is known and still read.
    """

    def __init__(self, gm: fx.GraphModule, batches: Iterable[Sequence[Any]]) -> None:
        self.gm = gm
        self.values = [start(gm, args) for args in batches]
        self._last = {read: node for node in gm.graph.nodes for read in node.all_input_nodes}
        self._rest = iter(gm.graph.nodes)

    def until(self, name: str) -> list[Any] | None:
        """Run up to a node; return its value for each batch, or None if the walk is past it or it is not there."""
        for node in self._rest:
            if node.op not in ("placeholder", "output"):
                self.step((node,), node)
            if node.name == name:
                return [first(values[node]) for values in self.values]
        return None

    def step(self, nodes: Sequence[fx.Node], exit: fx.Node) -> None:
        """Compute some nodes, the last of them ``exit``, and drop what nothing after it reads."""
        for values in self.values:
            advance(self.gm, nodes, values, exit)
        for values in self.values:
            for known in [known for known in values if not self._is_read_after(known, exit)]:
                del values[known]

    def _is_read_after(self, known: fx.Node, node: fx.Node) -> bool:
        return known is node or (known in self._last and node < self._last[known])


def stretches(gm: fx.GraphModule, units: Collection[tuple[fx.Node, ...]]) -> Iterator[tuple[fx.Node, ...]]:
    """Yield the nodes of a graph in an order that they can be computed in, those of one unit together, at its last."""
    together = {nodes[-1]: nodes for nodes in units}
    inner = {node for nodes in units for node in nodes}
    for node in gm.graph.nodes:
        if node in together:
            yield together[node]
        elif node not in inner and node.op not in ("placeholder", "output"):
            yield (node,)
