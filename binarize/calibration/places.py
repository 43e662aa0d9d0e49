"""Which layer of the original each binary layer comes from: branches repeat the layers of a group."""

from torch import fx, nn

from binarize.calibration.lockstep import Place
from binarize.layers.binary import BinaryLayer, binary_layers
from binarize.layers.branches import branch_groups
from binarize.passes.graph import join, module_of
from binarize.passes.pack import graphs_of

__all__ = ["layer_copies", "layer_places"]


def layer_places(net: nn.Module) -> dict[str, Place]:
    """Return the original of every binary layer of ``net``, by its module path, in the order of modules."""
    copies: dict[str, Place] = {}
    for path, group in branch_groups(net):
        graph, count = _graph_around(net, path), len(group.bodies)
        last, fitted = _last_layers(group.bodies[0]), group.router.executed if group.router else count
        for branch in range(count):
            for inner, original in group.origin.items():
                like = f"{path}.bodies.{branch % fitted}.{inner}" if branch >= fitted else None
                place = Place(join(graph, original), path, branch, fitted, like, boosted=inner in last)
                copies[f"{path}.bodies.{branch}.{inner}"] = place
    return {name: copies.get(name, Place(name)) for name, _ in binary_layers(net)}


def layer_copies(net: nn.Module) -> dict[str, list[str]]:
    """Return the module paths of the copies that branches hold of a layer, by the layer's path in the original."""
    copies: dict[str, list[str]] = {}
    for path, group in branch_groups(net):
        graph = _graph_around(net, path)
        for inner, original in group.origin.items():
            places = [f"{path}.bodies.{branch}.{inner}" for branch in range(len(group.bodies))]
            copies.setdefault(join(graph, original), []).extend(places)
    return copies


def _graph_around(net: nn.Module, path: str) -> str:
    """Return the path of the outermost graph that calls the branches at ``path``."""
    return next(name for name, _ in graphs_of(net) if name == "" or path.startswith(f"{name}."))


def _last_layers(body: nn.Module) -> set[str]:
    """Return the binary layers of a branch that no other layer reads on the way to its output."""
    if not isinstance(body, fx.GraphModule):
        return set()
    before: set[fx.Node] = set()  # nodes whose value reaches a weighted layer
    for node in reversed(body.graph.nodes):
        if any(user in before or isinstance(module_of(body, user), BinaryLayer) for user in node.users):
            before.add(node)
    return {
        str(node.target)
        for node in body.graph.nodes
        if node not in before and isinstance(module_of(body, node), BinaryLayer)
    }
