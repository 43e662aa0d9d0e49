"""Which layer of the original each binary layer comes from: branches repeat the layers of a group."""

from torch import nn

from binarize.calibration.lockstep import Place
from binarize.layers.binary import binary_layers
from binarize.layers.branches import branch_groups
from binarize.passes.graph import join
from binarize.passes.pack import graphs_of

__all__ = ["layer_places"]


def layer_places(net: nn.Module) -> dict[str, Place]:
    """Return the original of every binary layer of ``net``, by its module path, in the order of modules."""
    copies: dict[str, Place] = {}
    for path, group in branch_groups(net):
        graph = _graph_around(net, path)
        for branch in range(len(group.bodies)):
            for inner, original in group.origin.items():
                copies[f"{path}.bodies.{branch}.{inner}"] = Place(join(graph, original), path)
    return {name: copies.get(name, Place(name)) for name, _ in binary_layers(net)}


def _graph_around(net: nn.Module, path: str) -> str:
    """Return the path of the outermost graph that calls the branches at ``path``."""
    return next(name for name, _ in graphs_of(net) if name == "" or path.startswith(f"{name}."))
