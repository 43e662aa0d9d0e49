"""Block reconstruction: a few hundred steps that bring each group's output to the teacher's, group after group.

A closed-form fit sees one layer. Rounding errors of the layers of a residual block partly cancel or add up, and a block
is small enough to be trained on a few hundred images without labels. A group whose error on images kept aside does not
fall gets its old values back.

Reference:
    Li et al., BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction, ICLR 2021,
    arXiv:2102.05426, section 3.2; the straight-through estimators of `binarize.schemes.estimators` stand in for its
    learnt rounding.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, fx, nn

from binarize.layers.binary import BinaryActivation, BinaryConv2d, BinaryLinear, binary_layers
from binarize.passes.graph import join, module_uses, put
from binarize.passes.groups import Group, find_groups

__all__ = ["GroupFit", "reconstruct"]

STEPS = 300
IMAGES = 32  # images in a step
ASIDE = 4  # every fourth batch judges and is not trained on
RATES = {"weight": 0.02, "unit": 0.001, "bias": 0.002, "level": 0.001}  # of an Adam step, in shares of the value's size

Values = dict[fx.Node, Any]
Progress = Callable[[str, int, int], None]


@final
@dataclasses.dataclass(frozen=True)
class GroupFit:
    """What reconstruction did to one group: squared error over the teacher's variance on the images kept aside.

    Attributes:
        before: after the closed-form fit.
        after: after the steps; the same where they did not help and were undone.
    """

    before: float
    after: float


def reconstruct(
    net: nn.Module, teacher: nn.Module, batches: Sequence[tuple[Any, ...]], seed: int, progress: Progress
) -> dict[str, GroupFit]:
    """Train the binary layers of each group of each traced part of ``net`` towards the teacher's output of that group.

    Parts that one forward calls several times, and groups without binary layers, are left as they are.

    Args:
        net: training form, calibrated; changed in place.
        teacher: the original, with the same module paths.
        batches: argument tuples of ``forward``, two at least.
        seed: of the order of images.
        progress: called with the stage, groups done and groups in all.

    Returns:
        The fit of each group by its name.
    """
    parts = [_Part(net, teacher, path, gm) for path, gm in _parts(net)]
    total, found = sum(len(part.trained) for part in parts), dict[str, GroupFit]()
    generator = torch.Generator().manual_seed(seed)
    for part in parts:
        ours, theirs = (_arguments(model, part.path, batches) for model in (net, teacher))
        if len(ours) == len(theirs) == len(batches):
            for name, fit in part.run(ours, theirs, generator):
                found[name] = fit
                progress("reconstruct", len(found), total)
    return found


def _parts(net: nn.Module) -> Iterator[tuple[str, fx.GraphModule]]:
    """Yield the widest traced modules that hold binary layers, with their paths."""
    seen: list[str] = []
    for path, module in net.named_modules():
        inside = any(path.startswith(join(outer, "")) for outer in seen)
        if isinstance(module, fx.GraphModule) and not inside and any(True for _ in binary_layers(module)):
            seen.append(path)
            yield path, module


def _arguments(model: nn.Module, path: str, batches: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return the arguments of each call of one part of ``model``."""
    if path == "":
        return list(batches)
    seen: list[tuple[Any, ...]] = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda module, args: seen.append(args))
    try:
        with torch.no_grad():
            for batch in batches:
                model(*batch)
    finally:
        handle.remove()
    return seen


@final
class _Part:
    """One traced part, beside a copy of it in full precision with the same graph."""

    def __init__(self, net: nn.Module, teacher: nn.Module, path: str, gm: fx.GraphModule) -> None:
        self.path, self.gm = path, gm
        self.target = copy.deepcopy(gm)
        for name, _ in binary_layers(gm):
            put(self.target, name, teacher.get_submodule(join(path, name)))
        self.groups = {group.exit: group for group in find_groups(gm)}
        self.trained = {group: found for group in self.groups.values() if (found := _trainable(net, gm, group))}

    def run(
        self, ours: Sequence[tuple[Any, ...]], theirs: Sequence[tuple[Any, ...]], generator: torch.Generator
    ) -> Iterator[tuple[str, GroupFit]]:
        """Walk both graphs on all batches, training each group when its input is known; yield what came of each."""
        twins = dict(zip(self.gm.graph.nodes, self.target.graph.nodes, strict=True))
        inner = {node for group in self.groups.values() for node in group.nodes}
        state = [(_start(self.gm, mine), _start(self.target, their)) for mine, their in zip(ours, theirs, strict=True)]
        for node in self.gm.graph.nodes:
            group = self.groups.get(node)
            if group is None and (node in inner or node.op in ("placeholder", "output")):
                continue
            nodes = group.nodes if group else (node,)
            for _, values in state:
                _advance(self.target, [twins[inside] for inside in nodes], twins[node], values)
            if group in self.trained:
                pairs = [(mine[group.entry], their[twins[node]]) for mine, their in state]
                yield group.name, self._train(group, pairs, generator)
            for values, _ in state:
                _advance(self.gm, nodes, node, values)
            self._forget(node, state, twins)

    def _forget(self, node: fx.Node, state: Sequence[tuple[Values, Values]], twins: Mapping[fx.Node, fx.Node]) -> None:
        """Drop the values that no node after ``node`` reads."""
        later = {read for after in _after(node) for read in after.all_input_nodes}
        for mine, theirs in state:
            for known in [known for known in mine if known not in later]:
                del mine[known]
                theirs.pop(twins[known], None)

    def _train(self, group: Group, pairs: Sequence[tuple[Tensor, Tensor]], generator: torch.Generator) -> GroupFit:
        """Take the steps; put the old values back if the images kept aside did not gain."""
        aside = list(pairs[::ASIDE])
        seen = [pair for index, pair in enumerate(pairs) if index % ASIDE] or aside
        parameters = self.trained[group]
        old = [value.detach().clone() for value, _ in parameters]

        def loss(x: Tensor, y: Tensor) -> Tensor:
            values: Values = {group.entry: x}
            _advance(self.gm, group.nodes, group.exit, values)
            wrong: Tensor = (values[group.exit] - y).square().mean() / y.var().clamp_min(1e-20)
            return wrong

        before = _mean_loss(loss, aside)
        with torch.enable_grad():
            _optimise(loss, parameters, seen, generator)
        after = _mean_loss(loss, aside)
        if not after < before:
            for (value, _), kept in zip(parameters, old, strict=True):
                value.data.copy_(kept)
            after = before
        return GroupFit(before, after)


Trained = list[tuple[nn.Parameter, float]]
Loss = Callable[[Tensor, Tensor], Tensor]


def _optimise(
    loss: Loss, parameters: Trained, pairs: Sequence[tuple[Tensor, Tensor]], generator: torch.Generator
) -> None:
    optimiser = torch.optim.Adam([{"params": [value], "lr": rate} for value, rate in parameters])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    values = [value for value, _ in parameters]
    for _ in range(STEPS):
        x, y = pairs[int(torch.randint(len(pairs), (), generator=generator))]
        chosen = torch.randperm(len(x), generator=generator)[:IMAGES].to(x.device)
        grads = torch.autograd.grad(loss(x[chosen], y[chosen]), values, allow_unused=True)
        for value, grad in zip(values, grads, strict=True):
            value.grad = grad
        optimiser.step()
        schedule.step()
        for value in values:
            value.grad = None


def _mean_loss(loss: Loss, pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    with torch.no_grad():
        return sum(float(loss(x.clone(), y)) for x, y in pairs) / len(pairs)


def _trainable(net: nn.Module, gm: fx.GraphModule, group: Group) -> Trained:
    """Return the parameters that belong to this group alone, each with the learning rate that suits its size."""
    uses, layers = module_uses(gm), dict(binary_layers(gm))
    own = [name for name in group.layers if name in layers and len(uses[name]) == 1]
    elsewhere = {id(layer.activation) for name, layer in binary_layers(net) if layer not in map(layers.get, own)}
    found: Trained = []
    for layer in map(layers.__getitem__, own):
        found += _of_layer(layer)
    activations = {id(layer.activation): layer.activation for layer in map(layers.__getitem__, own)}
    for key, activation in activations.items():
        if key not in elsewhere:
            found += _of_activation(activation)
    return found


def _of_layer(layer: BinaryConv2d | BinaryLinear) -> Trained:
    size = float(layer.unit.detach().mean())
    found = [(layer.weight, RATES["weight"] * size), (layer.unit, RATES["unit"] * size)]
    if layer.bias is not None:
        spread = float(layer.weight.detach().flatten(1).norm(dim=1).mean())
        found.append((layer.bias, RATES["bias"] * spread))
    return found


def _of_activation(activation: BinaryActivation) -> Trained:
    """A low of 0 stays: it is what keeps zeros exact after a ReLU."""
    rate = RATES["level"] * float(activation.step.detach().mean())
    optional = [activation.low if float(activation.low.detach()) != 0.0 else None, activation.threshold]
    return [(activation.step, rate), *((value, rate) for value in optional if value is not None)]


def _start(gm: fx.GraphModule, args: tuple[Any, ...]) -> Values:
    places = [node for node in gm.graph.nodes if node.op == "placeholder"]
    defaults = [node.args[0] if node.args else None for node in places]
    return dict(zip(places, [*args, *defaults[len(args) :]], strict=True))


def _advance(gm: fx.GraphModule, nodes: Sequence[fx.Node], exit: fx.Node, values: Values) -> None:
    """Compute ``nodes`` from what is in ``values`` and keep only the value of ``exit`` of them."""
    interpreter = fx.Interpreter(gm, garbage_collect_values=False)
    interpreter.env = dict(values)
    for node in nodes:
        interpreter.env[node] = interpreter.run_node(node)
    values[exit] = interpreter.env[exit]


def _after(node: fx.Node) -> Iterator[fx.Node]:
    while (node := node.next).op != "root":
        yield node
