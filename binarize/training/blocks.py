"""Block outputs of network and teacher, side by side."""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from binarize.errors import TrainingError, nearest
from binarize.passes.groups import find_groups

__all__ = ["Taps", "attention_distance", "feature_distance", "shared_taps"]


@final
class Taps(nn.Module):
    """A graph that also returns the values of some of its nodes. It shares every module with the graph it is made from.

    Attributes:
        names: of the nodes, in graph order.
    """

    def __init__(self, gm: fx.GraphModule, names: Sequence[str]) -> None:
        super().__init__()
        graph, copied = fx.Graph(), dict[fx.Node, fx.Node]()
        output = graph.graph_copy(gm.graph, copied)
        self.names = tuple(node.name for node in gm.graph.nodes if node.name in names)
        values = [copied[node] for node in gm.graph.nodes if node.name in names]
        graph.output((output, values))
        self.inner = fx.GraphModule(gm, graph)

    def forward(self, *args: Any) -> tuple[Any, list[Tensor]]:
        """Return what the graph returns, and the value of each named node."""
        found: tuple[Any, list[Tensor]] = self.inner(*args)
        return found


def shared_taps(net: nn.Module, teacher: nn.Module, wanted: Sequence[str] = ()) -> tuple[Taps, Taps]:
    """Return both networks with the same taps: the nodes named, or the exits of all groups that both have.

    Raises:
        TrainingError: one of them is no single graph, a name is not in both, or there is no group.
    """
    if not isinstance(net, fx.GraphModule) or not isinstance(teacher, fx.GraphModule):
        what = "the model could not be traced whole, so its groups are unknown"
        raise TrainingError(f"cannot compare block outputs: {what}; set the weight of blocks to 0, or give a loss_fn")
    ours, theirs = ({node.name for node in gm.graph.nodes if node.op != "output"} for gm in (net, teacher))
    for name in wanted:
        if name not in ours & theirs:
            known = sorted(ours & theirs)
            raise TrainingError(f"cannot compare block outputs at {name!r}: no such node in both{nearest(name, known)}")
    names = list(wanted) or [group.exit.name for group in find_groups(teacher) if group.exit.name in ours]
    if not names:
        raise TrainingError("cannot compare block outputs: network and teacher share no group; name nodes with `at`")
    return Taps(net, names), Taps(teacher, names)


def attention_distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the squared distance of the maps of ``(n, c, h, w)``: mean square over channels, of length 1 per image."""
    maps = [F.normalize(x.float().square().mean(1).flatten(1), dim=1) for x in (ours, theirs)]
    return (maps[0] - maps[1]).square().sum(1).mean()


def feature_distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the mean squared difference over the variance of ``theirs``, any shape."""
    wrong: Tensor = (ours.float() - theirs.float()).square().mean() / theirs.float().var().clamp_min(1e-20)
    return wrong


def block_distance(kind: str, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Return the mean distance over all blocks; maps need positions, so what has none is compared by its values."""
    distances = [
        attention_distance(x, y) if kind == "attention" and x.dim() > 2 else feature_distance(x, y)
        for x, y in zip(ours, theirs, strict=True)
    ]
    return torch.stack(distances).mean()
