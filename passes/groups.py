"""Groups: the single-entry single-exit regions of a graph, found by dominators, so that a block is data and not a name.

A region (a, b) is what lies between two nodes when all that reaches b went through a, and all that leaves a arrives at
b. What no region takes is cut into straight chains. Three corrections to the textbook make it fit real networks:

1. reading a size is no data flow, or one ``x.shape`` at the end would join a network into a single region;
2. each output is looked at by itself, and an entry may be read outside, or an auxiliary head would hide what it taps;
3. wide regions go first, except those of too many layers: a dense block falls apart into its layers.
"""

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import fx

from binarize.layers.binary import BinaryLayer
from binarize.passes.capture import WEIGHTED
from binarize.passes.graph import first_input, flowing, output_nodes
from binarize.passes.operations import clamp_of, is_add, module_of

__all__ = ["Group", "find_groups", "is_pool"]


@final
@dataclass(frozen=True)
class Group:
    """One region of a graph, computable from the value of its entry alone.

    Args:
        name: What its layers' paths have in common, or the paths of its first and last layer.
        entry: The node it reads; not part of it, and free to be read by others.
        exit: Its last node, the only one whose value others read.
        nodes: Its nodes in graph order, with the constants and sizes that only they read.
        layers: Paths of the weighted layers it calls, each once, in graph order.
        kind: How its paths meet: "residual" (added), "concat", "gate" (multiplied), "branches" (otherwise), or "chain".
    """

    name: str
    entry: fx.Node
    exit: fx.Node
    nodes: tuple[fx.Node, ...]
    layers: tuple[str, ...]
    kind: str


def find_groups(gm: fx.GraphModule, largest: int = 16) -> list[Group]:
    """Return the groups of a graph, in graph order; each call of a weighted layer is in exactly one.

    Args:
        gm: A traced model, before or after its layers became binary.
        largest: A region of more weighted layers than this is not a group; one inside it may be.
    """
    return _Finder(gm, largest).groups()


@final
@dataclass(frozen=True)
class _Region:
    """Nodes from an entry (not among them) to an exit (the last of them), in graph order."""

    entry: fx.Node
    nodes: tuple[fx.Node, ...]
    weighted: int


@final
class _Finder:
    """The search for groups in one graph."""

    def __init__(self, gm: fx.GraphModule, largest: int) -> None:
        self.gm = gm
        self.largest = largest
        self.order = {node: index for index, node in enumerate(gm.graph.nodes)}
        self.data = flowing(gm)
        self.weighted = {n for n in gm.graph.nodes if isinstance(module_of(gm, n), (*WEIGHTED, BinaryLayer))}
        self.readers = self._readers()
        self.taken: set[fx.Node] = set()

    def groups(self) -> list[Group]:
        found = [self._group(region, self._kind(region.nodes[-1])) for region in self._widest()]
        chains = [region for chain in self._chains() for region in self._stages(chain)]
        self.taken.update(node for region in chains for node in region.nodes)
        found += [self._group(region, "chain") for region in chains]
        found.sort(key=lambda group: self.order[group.exit])
        return _named(found)

    def _readers(self) -> dict[fx.Node, set[fx.Node]]:
        """Return the nodes that the value of each node reaches in one step, or through arithmetic on sizes."""
        readers: dict[fx.Node, set[fx.Node]] = {}
        for node in reversed(self.order):
            readers[node] = set()
            for user in node.users:
                readers[node] |= {user} if user in self.data else readers[user]
        return readers

    # Regions

    def _widest(self) -> list[_Region]:
        regions: dict[tuple[fx.Node, ...], _Region] = {}
        for sink in output_nodes(self.gm):
            for region in self._regions(sink):
                regions.setdefault(region.nodes, region)
        chosen = []
        for region in sorted(regions.values(), key=lambda r: (r.weighted, len(r.nodes)), reverse=True):
            if 0 < region.weighted <= self.largest and self.taken.isdisjoint(region.nodes):
                region = self._with_activation(region)
                self.taken.update(region.nodes)
                chosen.append(region)
        return chosen

    def _regions(self, sink: fx.Node) -> Iterable[_Region]:
        nodes = self._slice(sink)
        keep = set(nodes)
        dominator = _dominators(nodes, lambda n: [p for p in n.all_input_nodes if p in keep])
        postdominator = _dominators(nodes[::-1], lambda n: [u for u in n.users if u in keep])
        for entry in nodes:
            exit = postdominator[entry]
            if exit is None or dominator[exit] is not entry:
                continue
            inner = _between(entry, exit, keep)
            if inner and all(self.readers[n] <= inner | {exit} for n in inner):
                members = (*sorted(inner, key=self.order.__getitem__), exit)
                yield _Region(entry, members, sum(n in self.weighted for n in members))

    def _slice(self, sink: fx.Node) -> list[fx.Node]:
        """Return the nodes whose values reach ``sink``, itself included, in graph order."""
        live, todo = set(), [sink]
        while todo:
            node = todo.pop()
            if node in self.data and node not in live:
                live.add(node)
                todo += node.all_input_nodes
        return sorted(live, key=self.order.__getitem__)

    def _with_activation(self, region: _Region) -> _Region:
        """Return the region and the activation that follows its exit, if nobody else reads that exit."""
        exit = region.nodes[-1]
        follower = next(iter(exit.users)) if len(exit.users) == 1 else None
        if follower is None or follower in self.taken or not _is_activation(self.gm, follower):
            return region
        return _Region(region.entry, (*region.nodes, follower), region.weighted)

    # Chains

    def _chains(self) -> Iterable[_Region]:
        """Yield the longest straight runs of what no region took, those without a weighted layer left out."""
        runs: dict[fx.Node, list[fx.Node]] = {}
        for node in self.order:
            if node in self.taken or node.op in ("placeholder", "output", "get_attr"):
                continue
            if node not in self.data and node not in self.weighted:
                continue
            before = self._predecessor(node)
            run = runs.pop(before, []) if before is not None else []
            runs[node] = [*run, node]
        for run in runs.values():
            weighted = sum(node in self.weighted for node in run)
            if weighted:
                yield self._trimmed(run, weighted)

    def _predecessor(self, node: fx.Node) -> fx.Node | None:
        """Return the only node that feeds ``node``, if ``node`` is all that reads it."""
        feeds = [p for p in node.all_input_nodes if p in self.data or p in self.weighted]
        return feeds[0] if len(feeds) == 1 and self.readers[feeds[0]] == {node} else None

    def _trimmed(self, run: list[fx.Node], weighted: int) -> _Region:
        """Return a run as a region; a head that reads several values has no single entry, and is left outside."""
        while len(run) > 1 and run[0] not in self.weighted and len(self._feeds(run[0])) != 1:
            run = run[1:]
        return _Region(first_input(run[0]), tuple(run), weighted)

    def _feeds(self, node: fx.Node) -> list[fx.Node]:
        return [p for p in node.all_input_nodes if p in self.data]

    def _stages(self, chain: _Region) -> Iterable[_Region]:
        """Yield a chain whole, or cut after its pools, or after every ``largest`` layers, whichever is enough."""
        if chain.weighted <= self.largest:
            yield chain
            return
        pieces = self._cut(chain.nodes, lambda node, count: count > 0 and is_pool(self.gm, node))
        for piece in pieces:
            entry, last = first_input(piece[0]), len(self._cut(piece, self._is_full)) - 1
            for index, part in enumerate(self._cut(piece, self._is_full)):
                yield _Region(entry, tuple(part), sum(n in self.weighted for n in part))
                entry = part[-1] if index < last else entry

    def _is_full(self, node: fx.Node, count: int) -> bool:
        return count >= self.largest and node in self.weighted

    def _cut(self, nodes: Sequence[fx.Node], ends: Callable[[fx.Node, int], bool]) -> list[list[fx.Node]]:
        """Cut after each node that ends a piece, told how many weighted layers are in the piece so far."""
        pieces: list[list[fx.Node]] = [[]]
        for node in nodes:
            pieces[-1].append(node)
            if ends(node, sum(n in self.weighted for n in pieces[-1])):
                pieces.append([])
        # what follows the last layer belongs to it
        tail = pieces.pop()
        if any(node in self.weighted for node in tail) or not pieces:
            pieces.append(tail)
        else:
            pieces[-1] += tail
        return pieces

    # Groups

    def _group(self, region: _Region, kind: str) -> Group:
        members = set(region.nodes)
        side = [n for n in self.order if n not in self.data and n not in self.taken and n is not region.entry]
        for node in side:
            if node.all_input_nodes and members.issuperset({*node.all_input_nodes, *self.readers[node]}):
                members.add(node)
        for node in reversed(side):
            if node.users and members.issuperset(node.users):
                members.add(node)
        self.taken |= members
        nodes = tuple(sorted(members, key=self.order.__getitem__))
        layers = tuple(dict.fromkeys(str(node.target) for node in nodes if node in self.weighted))
        return Group(_common(layers), region.entry, region.nodes[-1], nodes, layers, kind)

    def _kind(self, exit: fx.Node) -> str:
        if _is_activation(self.gm, exit) and len(exit.all_input_nodes) == 1:
            exit = first_input(exit)
        if is_add(exit):
            return "residual"
        if exit.target in _CONCATENATIONS:
            return "concat"
        return "gate" if exit.target in _PRODUCTS else "branches"


_aten = torch.ops.aten
_CONCATENATIONS = {torch.cat, torch.concat, torch.concatenate, _aten.cat.default}
_PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul", "mul_", _aten.mul.Tensor, _aten.mul_.Tensor}


def _dominators(order: Sequence[fx.Node], before: Callable[[fx.Node], list[fx.Node]]) -> dict[fx.Node, fx.Node | None]:
    """Return each node's immediate dominator, None for the root above all; ``order`` is topological, so one sweep does.

    Cooper, Harvey, Kennedy: A Simple, Fast Dominance Algorithm, 2001, figure 3, for a graph without cycles.
    """
    index: dict[fx.Node | None, int] = {None: -1}
    found: dict[fx.Node, fx.Node | None] = {}
    for position, node in enumerate(order):
        index[node] = position
        sources: list[fx.Node | None] = [*before(node)] or [None]
        meet = sources[0]
        for other in sources[1:]:
            while meet is not other:
                if index[meet] > index[other]:
                    meet = None if meet is None else found[meet]
                else:
                    other = None if other is None else found[other]
        found[node] = meet
    return found


def _between(entry: fx.Node, exit: fx.Node, keep: set[fx.Node]) -> set[fx.Node]:
    inner: set[fx.Node] = set()
    todo = [user for user in entry.users if user in keep and user is not exit]
    while todo:
        node = todo.pop()
        if node not in inner:
            inner.add(node)
            todo += [user for user in node.users if user in keep and user is not exit]
    return inner


_ACTIVATIONS = {"sigmoid", "tanh", "silu", "gelu", "hardswish", "hardsigmoid", "elu", "leaky_relu", "prelu", "mish"}


def _is_activation(gm: fx.GraphModule, node: fx.Node) -> bool:
    if clamp_of(gm, node) is not None:
        return True
    module = module_of(gm, node)
    if module is not None:
        return type(module).__module__ == "torch.nn.modules.activation" and not isinstance(module, WEIGHTED)
    return _operation(node) in _ACTIVATIONS


def is_pool(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether ``node`` pools, as a module, a function or a method."""
    module = module_of(gm, node)
    return "pool" in (_operation(node) if module is None else type(module).__name__.lower())


def _operation(node: fx.Node) -> str:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.split(".")[0].removesuffix("_")


# Names


def _common(layers: Sequence[str]) -> str:
    """Return the longest path that all layers are inside, or the only layer's own."""
    if len(layers) == 1:
        return layers[0]
    shared = []
    for parts in zip(*(layer.split(".")[:-1] for layer in layers), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def _named(groups: Sequence[Group]) -> list[Group]:
    """Return the groups with names that are not empty and not shared."""
    count: dict[str, int] = {}
    for group in groups:
        count[group.name] = count.get(group.name, 0) + 1
    named, seen = [], set()
    for group in groups:
        name = group.name if group.name and count[group.name] == 1 else f"{group.layers[0]}-{group.layers[-1]}"
        while name in seen:
            name += "'"
        seen.add(name)
        named.append(Group(name, group.entry, group.exit, group.nodes, group.layers, group.kind))
    return named
