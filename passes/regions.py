"""Regions that branches copy: a group, a stage of groups or the whole body, and a copy of one as a graph of its own."""

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import final

from torch import fx, nn

from binarize.passes.capture import WEIGHTED
from binarize.passes.graph import first_input, flowing, module_of, put
from binarize.passes.groups import Group, is_pool
from binarize.passes.inplace import can_spare, spare_input
from binarize.passes.operations import is_inplace

__all__ = ["Region", "copy_region", "inner_path", "joined", "pieces", "stages", "why_not"]


@final
@dataclass(frozen=True)
class Region:
    """One or several groups in a row, as one.

    Attributes:
        name: of the group, or of the first and last one.
        kind: of the group, or ``stage`` or ``network``.
        entry: the node it reads; not part of it.
        exit: its last node, the only one whose value others read.
        nodes: its nodes in graph order.
    """

    name: str
    kind: str
    entry: fx.Node
    exit: fx.Node
    nodes: tuple[fx.Node, ...]


def pieces(gm: fx.GraphModule, group: Group, wanted: Collection[str]) -> list[Region]:
    """Return a group as a region; a straight chain is cut after its pools.

    Full-precision layers at the ends of a chain belong to no region: they run once, not in every branch.
    """
    if group.kind != "chain":
        return [_from_split(gm, Region(group.name, group.kind, group.entry, group.exit, group.nodes))]
    runs: list[list[fx.Node]] = [[]]
    for node in group.nodes:
        runs[-1].append(node)
        if is_pool(gm, node):
            runs.append([])
    trimmed = [_trimmed(gm, run, wanted) for run in runs]
    kept = [run for run in trimmed if run]
    whole = len(kept) == 1 and len(kept[0]) == len(group.nodes)
    return [
        Region(group.name if whole else _name(run, wanted), group.kind, first_input(run[0]), run[-1], tuple(run))
        for run in kept
    ]


def _trimmed(gm: fx.GraphModule, run: list[fx.Node], wanted: Collection[str]) -> list[fx.Node]:
    """Return a run without the weighted layers at its ends that are not wanted, and what follows the first of them."""
    weighted = [i for i, node in enumerate(run) if isinstance(module_of(gm, node), WEIGHTED)]
    own = [i for i in weighted if str(run[i].target) in wanted]
    if not own:
        return []
    begin = own[0] if weighted[0] < own[0] else 0
    end = next((i for i in weighted if i > own[-1]), len(run))
    return run[begin:end]


def _name(run: Sequence[fx.Node], wanted: Collection[str]) -> str:
    layers = [str(node.target) for node in run if node.op == "call_module" and str(node.target) in wanted]
    return layers[0] if len(layers) == 1 else f"{layers[0]}-{layers[-1]}"


def _from_split(gm: fx.GraphModule, region: Region) -> Region:
    """Return the region with the node that cuts its input into several tensors, if its entry is such a node."""
    entry = region.entry
    if not _is_split(entry) or not set(entry.users) <= set(region.nodes):
        return region
    return replace(region, entry=first_input(entry), nodes=(entry, *region.nodes))


def _is_split(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.op in ("call_function", "call_method") and name in _SPLITS


_SPLITS = {"chunk", "split", "tensor_split", "unbind"}


def stages(gm: fx.GraphModule, regions: Sequence[Region]) -> list[list[Region]]:
    """Cut regions in a row wherever one changes the resolution: it is the first of the next stage."""
    found: list[list[Region]] = []
    for region in regions:
        if not found or any(_is_strided(gm, node) for node in region.nodes):
            found.append([])
        found[-1].append(region)
    return found


def _is_strided(gm: fx.GraphModule, node: fx.Node) -> bool:
    stride = getattr(module_of(gm, node), "stride", 1)
    return any(step > 1 for step in (stride if isinstance(stride, tuple) else (stride,)) if isinstance(step, int))


def joined(gm: fx.GraphModule, regions: Sequence[Region], kind: str) -> Region | None:
    """Return everything from the entry of the first region to the exit of the last one as a region.

    None if something between them reads another value, or is read outside.
    """
    entry, exit = regions[0].entry, regions[-1].exit
    order = {node: index for index, node in enumerate(gm.graph.nodes)}
    data = flowing(gm)
    inner, todo = set[fx.Node](), [exit]
    while todo:
        node = todo.pop()
        if node is entry or node in inner:
            continue
        if node.op == "placeholder":
            return None
        inner.add(node)
        todo += node.all_input_nodes
    if any(user not in inner for node in inner - {exit} for user in node.users if node in data):
        return None
    name = regions[0].name if len(regions) == 1 else f"{regions[0].name}-{regions[-1].name}"
    return Region(name, kind, entry, exit, tuple(sorted(inner, key=order.__getitem__)))


def why_not(gm: fx.GraphModule, region: Region) -> str | None:
    """Return why a region cannot be copied into branches, or None if it can."""
    inside = set(region.nodes)
    for node in region.nodes:
        if _overwrites(gm, node, region) and not can_spare(node):
            return f"{node.name!r} writes over its input, which all branches read"
        module = module_of(gm, node)
        if module is not None and any(
            other not in inside and other.op == "call_module" and module_of(gm, other) is module
            for other in gm.graph.nodes
        ):
            return f"{str(node.target)!r} is also called elsewhere"
    if _is_split(region.entry):
        return f"its input {region.entry.name!r} is several tensors"
    for node in region.nodes:
        for source in node.all_input_nodes:
            if source is not region.entry and source not in inside:
                return f"{node.name!r} reads {source.name!r} too"
    return None


def _overwrites(gm: fx.GraphModule, node: fx.Node, region: Region) -> bool:
    return is_inplace(gm, node) and first_input(node) is region.entry


def copy_region(gm: fx.GraphModule, region: Region) -> fx.GraphModule:
    """Return a region as a graph of its own: one input, one output, copies of its modules and constants.

    Paths inside are relative to the region's name where they lie below it. What would write over the input makes a new
    tensor: other branches read it too.
    """
    root, graph = nn.Module(), fx.Graph()
    values = {region.entry: graph.placeholder("x")}
    for node in region.nodes:
        values[node] = graph.node_copy(node, values.__getitem__)
        if node.op in ("call_module", "get_attr"):
            path = inner_path(region.name, str(node.target))
            values[node].target = path
            _copy_in(gm, root, str(node.target), path, is_tensor=node.op == "get_attr")
    graph.output(values[region.exit])
    made = fx.GraphModule(root, graph)
    for node in region.nodes:
        if _overwrites(gm, node, region):
            spare_input(made, values[node])
    made.recompile()
    return made.train(gm.training)


def inner_path(name: str, path: str) -> str:
    """Return ``path`` relative to the region ``name`` where it lies below it."""
    return path.removeprefix(f"{name}.") if path.startswith(f"{name}.") else path


def _copy_in(gm: fx.GraphModule, root: nn.Module, path: str, new: str, *, is_tensor: bool) -> None:
    home, _, leaf = new.rpartition(".")
    if not is_tensor:
        try:
            root.get_submodule(new)
        except AttributeError:
            put(root, new, copy.deepcopy(gm.get_submodule(path)))
        return
    owner, _, name = path.rpartition(".")
    tensor = copy.deepcopy(getattr(gm.get_submodule(owner), name))
    if home:
        try:
            root.get_submodule(home)
        except AttributeError:
            put(root, home, nn.Module())
    place = root.get_submodule(home)
    if isinstance(tensor, nn.Parameter):
        place.register_parameter(leaf, tensor)
    else:
        place.register_buffer(leaf, tensor)
