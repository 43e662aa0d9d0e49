"""What reconstruction trains at a time: a group of the graph, or the branches that stand for one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from torch import fx, nn

from binarize.layers.binary import BinaryActivation, BinaryLayer, binary_layers
from binarize.layers.branches import Branches
from binarize.passes.graph import join, module_of, module_uses
from binarize.passes.groups import find_groups

__all__ = ["RATES", "Trained", "Unit", "traced_parts", "units_of"]

RATES = {
    "weight": (0.08, 0.04), "unit": (0.016, 0.002), "bias": (0.032, 0.004), "level": (0.016, 0.002),
    "scale": (0.016, 0.002), "gate": (0.02, 0.01),
}  # fmt: skip
"""Of an Adam step, in shares of the value's size (of a gate, in its own units): alone in a group, and all together."""


@final
@dataclass(frozen=True)
class Trained:
    """A parameter with the learning rates that suit its size.

    Attributes:
        value: the parameter.
        alone: rate while only its group is trained.
        together: rate while all groups are trained.
    """

    value: nn.Parameter
    alone: float
    together: float

    @classmethod
    def sized(cls, kind: str, value: nn.Parameter, size: float) -> "Trained":
        """Take the rates of a kind of value of some size."""
        alone, together = RATES[kind]
        return cls(value, alone * size, together * size)


@final
@dataclass(frozen=True)
class Unit:
    """One region that is trained towards what the original has there.

    Attributes:
        name: of the group.
        inputs: nodes whose values it reads.
        nodes: its nodes in graph order, the last one its output; where that is a tuple, its first item counts.
        original: name of the node in the original's graph that has the output to come close to.
        trained: the parameters that belong to it alone.
    """

    name: str
    inputs: tuple[fx.Node, ...]
    nodes: tuple[fx.Node, ...]
    original: str
    trained: tuple[Trained, ...]

    @property
    def exit(self) -> fx.Node:
        """The node of its output."""
        return self.nodes[-1]


def traced_parts(net: nn.Module) -> Iterator[tuple[str, fx.GraphModule]]:
    """Yield the widest traced modules that hold binary layers, with their paths."""
    seen: list[str] = []
    for path, module in net.named_modules():
        inside = any(path.startswith(join(outer, "")) for outer in seen)
        if isinstance(module, fx.GraphModule) and not inside and any(True for _ in binary_layers(module)):
            seen.append(path)
            yield path, module


def units_of(net: nn.Module, gm: fx.GraphModule) -> list[Unit]:
    """Return the units of one part of ``net`` that have something to train, in graph order."""
    found: list[Unit] = []
    for node in gm.graph.nodes:
        branches = module_of(gm, node)
        if isinstance(branches, Branches) and "original" in node.meta:
            layers = {f"{node.target}.{path}": layer for path, layer in binary_layers(branches)}
            trained = (*_of_layers(net, layers), *_of_sum(branches))
            found.append(Unit(str(node.target), tuple(node.all_input_nodes), (node,), node.meta["original"], trained))
    taken = {node for unit in found for node in unit.nodes}
    uses, binary = module_uses(gm), dict(binary_layers(gm))
    for group in find_groups(gm):
        own = {name: binary[name] for name in group.layers if name in binary and len(uses[name]) == 1}
        trained = tuple(_of_layers(net, own))
        if trained and taken.isdisjoint(group.nodes):
            found.append(Unit(group.name, (group.entry,), group.nodes, group.exit.name, trained))
    order = {node: index for index, node in enumerate(gm.graph.nodes)}
    return sorted(found, key=lambda unit: order[unit.exit])


def _of_layers(net: nn.Module, own: dict[str, BinaryLayer]) -> list[Trained]:
    inside = {id(layer) for layer in own.values()}
    elsewhere = {id(layer.activation) for _, layer in binary_layers(net) if id(layer) not in inside}
    found: list[Trained] = []
    for layer in own.values():
        found += _of_layer(layer)
    for key, activation in {id(layer.activation): layer.activation for layer in own.values()}.items():
        if key not in elsewhere:
            found += _of_activation(activation)
    return found


def _of_layer(layer: BinaryLayer) -> list[Trained]:
    size = float(layer.unit.detach().abs().mean())
    found = [Trained.sized("weight", layer.weight, size), Trained.sized("unit", layer.unit, size)]
    if layer.bias is not None:
        spread = float(layer.weight.detach().flatten(1).norm(dim=1).mean())
        found.append(Trained.sized("bias", layer.bias, spread))
    return found


def _of_activation(activation: BinaryActivation) -> list[Trained]:
    """A low of 0 stays: it is what keeps zeros exact after a ReLU."""
    size = float(activation.step.detach().abs().mean())
    optional = [activation.low if float(activation.low.detach()) != 0.0 else None, activation.threshold]
    values = [activation.step, *(value for value in optional if value is not None)]
    return [Trained.sized("level", value, size) for value in values]


def _of_sum(branches: Branches) -> list[Trained]:
    """Scales and gates. A router stays: what it should learn is the use of branches, which no group shows."""
    found: list[Trained] = []
    if branches.scale is not None:
        found.append(Trained.sized("scale", branches.scale, float(branches.scale.detach().abs().mean())))
    if branches.gate is not None:
        found.append(Trained.sized("gate", branches.gate.theta, 1.0))
    return found
