"""Replace groups of the graph by binary branches that are added up (group-wise decomposition)."""

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final

from torch import fx

from binarize.layers.branches import Branches, Gate, Router
from binarize.passes.base import Pass, PassResult
from binarize.passes.capture import WEIGHTED
from binarize.passes.decompose_layers import DecomposeLayers
from binarize.passes.dilate import set_rates, why_no_rates
from binarize.passes.graph import add_module, delete_if_unused, module_of, put
from binarize.passes.groups import Group, find_groups
from binarize.passes.regions import Region, copy_region, inner_path, joined, pieces, stages, why_not
from binarize.passes.shortcuts import add_shortcuts
from binarize.schemes.presets import Scheme
from binarize.schemes.structures import Groupwise

__all__ = ["Connection", "DecomposeGroups"]


@final
@dataclass(frozen=True)
class Connection:
    """What became of one group.

    Attributes:
        name: of the group.
        kind: how its paths meet, or ``stage`` or ``network``.
        branches: path of its `Branches` in the graph.
        layers: paths that its weighted layers had, those included that stay in full precision in each branch.
        executed: branches that run for one image.
        stored: branches that there are.
        gate: "gated" if its branches read a mix of their own previous output and the aggregate; else why not.
    """

    name: str
    kind: str
    branches: str
    layers: tuple[str, ...]
    executed: int
    stored: int
    gate: str


@final
@dataclass(frozen=True)
class DecomposeGroups(Pass):
    """Swap every group whose layers have a group-wise scheme for one call of `Branches`.

    1. A group is copied as a graph of its own, once per stored branch; its layers become binary there.
    2. Where a group's input is the output of the group before, and both have as many branches, its branches are gated.
    3. Groups that cannot be copied are left to `DecomposeLayers`, with the reason.

    Attributes:
        schemes: what each layer becomes, by its path in the graph; layer-wise ones are left alone.
        made: what became of each group that was swapped, in graph order; filled by the run.
    """

    schemes: Mapping[str, Scheme]
    made: list[Connection] = field(default_factory=list)

    def run(self, gm: fx.GraphModule) -> PassResult:
        """Swap the groups; report why the others stay."""
        skipped: dict[str, str] = {}
        exits: dict[fx.Node, _Made] = {}
        moved: dict[fx.Node, fx.Node] = {}  # what stands now for the last node of a region that was swapped
        for found, structure in list(self._regions(gm, skipped)):
            region = replace(found, entry=moved.get(found.entry, found.entry))
            layers = self._layers(gm, region)
            why = self._why_not(gm, region, structure, layers)
            if why is not None:
                skipped[region.name] = why
                continue
            before = exits.get(region.entry)
            made = self._swap(gm, region, structure, layers, before)
            if before is not None and before.total is not region.entry:
                exits[before.total] = exits.pop(region.entry)
                moved = {old: before.total if new is region.entry else new for old, new in moved.items()}
            exits[made.total], moved[found.exit] = made, made.total
        return PassResult(tuple(made.name for made in self.made), skipped)

    def _regions(self, gm: fx.GraphModule, skipped: dict[str, str]) -> Iterator[tuple[Region, Groupwise]]:
        """Yield the regions whose layers share one group-wise structure."""
        wanted: list[tuple[Group, Groupwise]] = []
        for group in find_groups(gm):
            structures = {s.structure for path in group.layers if (s := self.schemes.get(path)) is not None}
            groupwise = {structure for structure in structures if isinstance(structure, Groupwise)}
            if len(groupwise) == 1 and len(structures) == 1:
                wanted.append((group, groupwise.pop()))
            elif groupwise:
                skipped[group.name] = "its layers have different schemes"
        for structure in dict.fromkeys(structure for _, structure in wanted):
            regions = [
                region for group, own in wanted if own == structure for region in pieces(gm, group, self.schemes)
            ]
            yield from ((region, structure) for region in _units(gm, regions, structure, skipped))

    def _layers(self, gm: fx.GraphModule, region: Region) -> dict[str, Scheme]:
        paths = [str(node.target) for node in region.nodes if node.op == "call_module"]
        return {path: self.schemes[path] for path in paths if path in self.schemes}

    def _why_not(
        self, gm: fx.GraphModule, region: Region, structure: Groupwise, layers: Mapping[str, Scheme]
    ) -> str | None:
        if any(scheme.structure != structure for scheme in layers.values()):
            return "its layers have different schemes"
        if structure.is_routed and _channels(gm, region) is None:
            return "no layer reads its input directly, so the router cannot know how many channels there are"
        return why_not(gm, region) or why_no_rates(gm, region, structure)

    def _swap(
        self,
        gm: fx.GraphModule,
        region: Region,
        structure: Groupwise,
        layers: Mapping[str, Scheme],
        before: "_Made | None",
    ) -> "_Made":
        origins = _weighted(gm, region)
        bodies = [self._body(gm, region, structure, layers, branch) for branch in range(structure.stored)]
        gate = _why_no_gate(structure, before)
        router = None
        if structure.is_routed:
            channels = _channels(gm, region)
            assert channels is not None
            router = Router(channels, structure.stored, structure.executed)
        module = Branches(
            bodies,
            {inner_path(region.name, path): path for path in origins},
            gate=None if gate else Gate(structure.stored if structure.gates == "branch" else 1),
            scaled=structure.scales == "learnt",
            router=router,
        )
        own: Sequence[fx.Node] = ()
        if before is not None and not gate:
            own = before.hand_on(gm)
            region = replace(region, entry=before.total)
        made = _Made(gm, region, module, own)
        counts = (structure.executed, structure.stored)
        self.made.append(Connection(region.name, region.kind, made.path, origins, *counts, gate or "gated"))
        return made

    @staticmethod
    def _body(
        gm: fx.GraphModule, region: Region, structure: Groupwise, layers: Mapping[str, Scheme], branch: int
    ) -> fx.GraphModule:
        body = copy_region(gm, region)
        set_rates(body, structure, branch)
        if structure.shortcuts:
            add_shortcuts(body)
        DecomposeLayers({inner_path(region.name, path): scheme for path, scheme in layers.items()})(body)
        return body


@final
class _Made:
    """A region that was swapped: the node that calls its branches, and the node that stands for their sum."""

    def __init__(self, gm: fx.GraphModule, region: Region, module: Branches, own: Sequence[fx.Node]) -> None:
        self.module = module
        pending = add_module(gm, "pending_branches", module)  # its place is free when the group is gone
        # What comes later in the graph may overwrite the input: it is read where the group first read it.
        with gm.graph.inserting_before(next(node for node in region.nodes if region.entry in node.all_input_nodes)):
            self.call = gm.graph.call_module(pending, (region.entry, *own))
        self.call.meta["original"] = region.exit.name  # reconstruction looks there for the output to come close to
        self.total, self.own = self.call, list[fx.Node]()
        region.exit.replace_all_uses_with(self.call)
        for node in reversed(region.nodes):
            gm.graph.erase_node(node)
        for node in region.nodes:
            if node.op == "call_module":
                delete_if_unused(gm, str(node.target))
        gm.delete_submodule(pending)
        self.call.target = self.path = _place(gm, region.name, module)

    def hand_on(self, gm: fx.GraphModule) -> list[fx.Node]:
        """Return nodes for what each branch gave, made when the first reader wants them."""
        if self.own:
            return self.own
        self.module.hands_on = True
        with gm.graph.inserting_after(self.call):
            total = gm.graph.call_function(operator.getitem, (self.call, 0))
        self.call.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)
        self.total = last = total
        for branch in range(len(self.module.bodies)):
            with gm.graph.inserting_after(last):
                last = gm.graph.call_function(operator.getitem, (self.call, branch + 1))
            self.own.append(last)
        return self.own


def _units(
    gm: fx.GraphModule, regions: Sequence[Region], structure: Groupwise, skipped: dict[str, str]
) -> Iterator[Region]:
    """Yield what one branch spans: each group, or groups in a row where they can be joined."""
    if structure.unit == "group" or not regions:
        yield from regions
        return
    runs = [list(regions)] if structure.unit == "network" else stages(gm, regions)
    for run in runs:
        whole = joined(gm, run, structure.unit)
        if whole is None:
            name = f"{run[0].name}-{run[-1].name}"
            skipped[name] = f"no {structure.unit}: what lies between its groups is read outside; branches of one group"
            yield from run
        else:
            yield whole


def _why_no_gate(structure: Groupwise, before: _Made | None) -> str:
    """Return why the branches of a region read the aggregate alone; empty if they are gated."""
    if structure.gates == "off":
        return "gates are off"
    if before is None:
        return "its input is not the output of a group of branches"
    stored, router = len(before.module.bodies), before.module.router
    executed = stored if router is None else router.executed
    if (executed, stored) != (structure.executed, structure.stored):
        return f"the group before has {stored} branches" + (f", {executed} of which run" if executed < stored else "")
    return ""


def _place(gm: fx.GraphModule, name: str, module: Branches) -> str:
    """Put the branches where the group was, or under the next free name if something else is there."""
    try:
        gm.get_submodule(name)
        is_path = name != ""
    except AttributeError:
        is_path = False
    inside = [node for node in gm.graph.nodes if node.op in ("call_module", "get_attr")]
    if is_path and not any(f"{node.target}.".startswith(f"{name}.") for node in inside):
        put(gm, name, module.train(gm.training))
        return name
    parent = name.split("-")[0].rpartition(".")[0]
    return add_module(gm, f"{parent}.branches" if parent else "branches", module)


def _weighted(gm: fx.GraphModule, region: Region) -> tuple[str, ...]:
    """Return the paths of all weighted layers of a region, those that stay in full precision included."""
    paths = [str(node.target) for node in region.nodes if isinstance(module_of(gm, node), WEIGHTED)]
    return tuple(dict.fromkeys(paths))


def _channels(gm: fx.GraphModule, region: Region) -> int | None:
    """Return the channels of a region's input, as the layers say that read it directly."""
    for node in region.entry.users:
        module = module_of(gm, node)
        for name in ("in_channels", "num_features", "in_features"):
            found = getattr(module, name, None)
            if node in region.nodes and isinstance(found, int):
                return found
    return None
