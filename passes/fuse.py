"""Let packed layers do in their epilogue what the graph does right after them."""

import dataclasses
from math import inf
from typing import final

from torch import fx, nn

from binarize.layers.packed import PackActivation, PackedConv2d, PackedLayer
from binarize.passes.base import Pass, PassResult
from binarize.passes.graph import (
    Call,
    bypass,
    call_of,
    calls,
    delete_if_unused,
    module_uses,
    single_user,
    take_over,
)
from binarize.passes.operations import add_of, clamp_of, is_inplace

__all__ = ["FuseEpilogue", "FuseReader"]


@final
@dataclasses.dataclass(frozen=True)
class FuseEpilogue(Pass):
    """Move a residual addition, then a clamp (ReLU, ReLU6, hardtanh), into the packed layer before it.

    Only where the layer is called once and its output has no other reader. The other term of the addition has to exist
    before the layer runs; where both terms are packed layers, the later one takes the addition.
    """

    def run(self, gm: fx.GraphModule) -> PassResult:
        """Fuse what can be fused; report why the other packed layers keep a plain epilogue."""
        changed: list[str] = []
        skipped: dict[str, str] = {}
        uses = module_uses(gm)
        for call in calls(gm, PackedLayer):
            if len(uses[call.name]) > 1:
                skipped[call.name] = f"called {len(uses[call.name])} times"
                continue
            if _fuse_addition(gm, call) | _fuse_clamp(gm, call):
                changed.append(call.name)
        return PassResult(tuple(changed), skipped)


def _fuse_addition(gm: fx.GraphModule, call: Call[PackedLayer]) -> bool:
    addition = single_user(call.node)
    terms = None if addition is None else add_of(addition)
    if addition is None or terms is None or terms[0] is terms[1] or _has_epilogue(call):
        return False
    other = terms[1] if terms[0] is call.node else terms[0]
    if is_inplace(gm, addition) and terms[0] is not call.node and len(other.users) > 1:
        return False  # it writes over a tensor that others read
    if not _before(gm, other, call.node):
        return False
    call.node.args = (call.node.args[0], other)
    take_over(addition, call.node)
    gm.graph.erase_node(addition)
    return True


def _fuse_clamp(gm: fx.GraphModule, call: Call[PackedLayer]) -> bool:
    clamp = single_user(call.node)
    bounds = clamp_of(gm, clamp)
    if clamp is None or bounds is None or (call.module.minimum, call.module.maximum) != (-inf, inf):
        return False
    call.module.minimum, call.module.maximum = bounds
    take_over(clamp, call.node)
    path = str(clamp.target) if clamp.op == "call_module" else None
    gm.graph.erase_node(clamp)
    if path is not None:
        delete_if_unused(gm, path)
    return True


def _has_epilogue(call: Call[PackedLayer]) -> bool:
    return len(call.node.args) > 1 or (call.module.minimum, call.module.maximum) != (-inf, inf)


def _before(gm: fx.GraphModule, first: fx.Node, second: fx.Node) -> bool:
    for node in gm.graph.nodes:
        if node is first or node is second:
            return node is first
    return False


@final
@dataclasses.dataclass(frozen=True)
class FuseReader(Pass):
    """Where a packed convolution feeds nothing but one packing, let it answer in that packing's form.

    For one plane, batch normalisation, clamp and the reader's threshold then become one integer threshold per output
    and border class (docs/methods.md, check 10), and no float is made between the two layers; codes are made in the
    epilogue.
    """

    def run(self, gm: fx.GraphModule) -> PassResult:
        """Fuse what can be fused; report why the other packings stay."""
        changed: list[str] = []
        skipped: dict[str, str] = {}
        for pack in calls(gm, PackActivation):
            feeder = call_of(gm, pack.node.args[0], PackedConv2d)
            why = "not fed by a packed convolution" if feeder is None else _why_not(gm, feeder, pack.module)
            if feeder is None or why is not None:
                skipped[pack.name] = str(why)
                continue
            feeder.module.reader = pack.module
            bypass(gm, pack)
            changed.append(pack.name)
        return PassResult(tuple(changed), skipped)


def _why_not(gm: fx.GraphModule, feeder: Call[PackedConv2d], reader: PackActivation) -> str | None:
    if reader.rows:
        return "its reader packs rows"
    if len(feeder.node.users) > 1 or len(module_uses(gm)[feeder.name]) > 1:
        return f"{feeder.name!r} has other readers or calls"
    if len(feeder.node.args) > 1 and (reader.terms, reader.groups) == ((1,), 1):
        return f"{feeder.name!r} adds a residual, which stays in floating point"
    return "its output is cropped" if any(feeder.module.crop) else None


def packed_layers(net: nn.Module) -> list[tuple[str, PackedLayer]]:
    """Return every packed layer of ``net`` with its module path, each once."""
    return [(name, module) for name, module in net.named_modules() if isinstance(module, PackedLayer)]
