"""Block reconstruction: a few hundred steps that bring each group's output to the teacher's, then all of them together.

A closed-form fit sees one layer. Rounding errors of the layers of a residual block partly cancel or add up, and a block
is small enough to be trained on a few hundred images without labels. When all groups are done, the whole network is
trained for some hundred steps more, towards the outputs of all groups and its own at once. Whatever does not lower the
error on images kept aside gets its old values back.

Reference:
    Li et al., BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction, ICLR 2021,
    arXiv:2102.05426, section 3.2; the straight-through estimators of `binarize.schemes.estimators` stand in for its
    learnt rounding. docs/decisions/0003-reconstruction.md tells what was tried.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from binarize.calibration.regions import Unit, traced_parts, units_of
from binarize.calibration.walk import Values, Walk, advance, first, run_with_taps, stretches
from binarize.passes.capture import capture
from binarize.passes.graph import join

__all__ = ["WHOLE", "GroupFit", "arguments_of", "reconstruct"]

STEPS = 300  # for each group
WHOLE_STEPS = 600  # for all groups together
IMAGES = 32  # images in a step
ASIDE = 4  # every fourth batch judges and is not trained on
SHIFT = 8  # images are moved by up to an eighth of their size
WHOLE = "all groups together"

Progress = Callable[[str, int, int], None]
Rated = Sequence[tuple[nn.Parameter, float]]
"""Parameters, each with its learning rate."""


@final
@dataclasses.dataclass(frozen=True)
class GroupFit:
    """What reconstruction did to one group: squared error over the teacher's variance on the images kept aside.

    Attributes:
        before: after the closed-form fit, on inputs from the groups that were trained before it.
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
        progress: called with the stage, steps done and steps in all.

    Returns:
        The fit of each group by its name, and that of each part as a whole under `WHOLE`.
    """
    originals = capture(copy.deepcopy(teacher)).graphs
    parts = [_Part(path, gm, originals[path], units_of(net, gm)) for path, gm in traced_parts(net) if path in originals]
    total, found = sum(len(part.units) for part in parts), dict[str, GroupFit]()
    generator = torch.Generator().manual_seed(seed)
    for part in parts:
        ours, theirs = (arguments_of(model, part.path, batches) for model in (net, teacher))
        if not part.units or not len(ours) == len(theirs) == len(batches):
            continue
        for name, fit in part.run(ours, theirs, generator):
            found[join(part.path, name)] = fit
            progress("reconstruct", len(found), total + len(parts))
        found[join(part.path, WHOLE)] = part.run_whole(list(zip(ours, theirs, strict=True)), generator, progress)
        progress("reconstruct", len(found), total + len(parts))
    return found


def arguments_of(model: nn.Module, path: str, batches: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
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
@dataclasses.dataclass(frozen=True)
class _Part:
    """One traced part, and the same part of the original.

    Attributes:
        path: of the part in the network.
        gm: the part.
        target: the same part of the original.
        units: what is trained, in graph order.
    """

    path: str
    gm: fx.GraphModule
    target: fx.GraphModule
    units: Sequence[Unit]

    def run(
        self, ours: Sequence[tuple[Any, ...]], theirs: Sequence[tuple[Any, ...]], generator: torch.Generator
    ) -> Iterator[tuple[str, GroupFit]]:
        """Walk both graphs on all batches, training each unit when its input is known; yield what came of each."""
        walk, original = Walk(self.gm, ours), Walk(self.target, theirs)
        units = {unit.exit: unit for unit in self.units}
        for nodes in stretches(self.gm, [unit.nodes for unit in self.units]):
            unit = units.get(nodes[-1])
            targets = original.until(unit.original) if unit else None
            if unit is not None and targets is not None:
                yield unit.name, self._train(unit, list(zip(walk.values, targets, strict=True)), generator)
            walk.step(nodes, nodes[-1])

    def _train(self, unit: Unit, pairs: Sequence[tuple[Values, Tensor]], generator: torch.Generator) -> GroupFit:
        cut = [([values[node] for node in unit.inputs], y) for values, y in pairs]

        def loss(example: tuple[list[Tensor], Tensor]) -> Tensor:
            inputs, y = example
            values: Values = {node: x.clone() for node, x in zip(unit.inputs, inputs, strict=True)}
            advance(self.gm, unit.nodes, values, unit.exit)
            return _distance(first(values[unit.exit]), y)

        def draw(pair: tuple[list[Tensor], Tensor]) -> tuple[list[Tensor], Tensor]:
            inputs, y = pair
            chosen = torch.randperm(len(y), generator=generator)[:IMAGES].to(y.device)
            return [x[chosen] for x in inputs], y[chosen]

        return _fit(loss, draw, [(found.value, found.alone) for found in unit.trained], cut, STEPS, generator)

    def run_whole(
        self, pairs: Sequence[tuple[tuple[Any, ...], tuple[Any, ...]]], generator: torch.Generator, progress: Progress
    ) -> GroupFit:
        """Train all units together, towards the outputs of all of them and that of the part, on varied images."""
        mine = {unit.exit.name: unit.original for unit in self.units}

        def loss(pair: tuple[Any, Any]) -> Tensor:
            with torch.no_grad():
                taps, outputs = run_with_taps(self.target, pair[1], set(mine.values()))
            own, found = run_with_taps(self.gm, pair[0], set(mine))
            inner = [_distance(own[name], taps[original]) for name, original in mine.items()]
            outer = [_distance(x, y) for x, y in zip(found, outputs, strict=True)]
            return torch.stack(inner).mean() + torch.stack(outer or inner).mean()

        def draw(pair: tuple[Any, Any]) -> tuple[Any, Any]:
            return _varied(pair, generator)

        trained = [(found.value, found.together) for unit in self.units for found in unit.trained]
        told = _telling(progress, join(self.path, WHOLE))
        return _fit(loss, draw, trained, pairs, WHOLE_STEPS, generator, told)


def _distance(ours: Tensor, theirs: Tensor) -> Tensor:
    wrong: Tensor = (ours - theirs).square().mean() / theirs.var().clamp_min(1e-20)
    return wrong


def _telling(progress: Progress, stage: str) -> Callable[[int], None]:
    return lambda done: progress(stage, done, WHOLE_STEPS) if done % 10 == 0 or done == WHOLE_STEPS else None


def _fit(
    loss: Callable[[Any], Tensor],
    draw: Callable[[Any], Any],
    trained: Rated,
    pairs: Sequence[Any],
    steps: int,
    generator: torch.Generator,
    told: Callable[[int], None] = lambda done: None,
) -> GroupFit:
    """Take the steps; put the old values back if the images kept aside did not gain."""
    aside = list(pairs[::ASIDE])
    seen = [pair for index, pair in enumerate(pairs) if index % ASIDE] or aside
    old = [value.detach().clone() for value, _ in trained]
    before = _mean_loss(loss, aside)
    with torch.enable_grad():
        _optimise(loss, draw, trained, seen, steps, generator, told)
    after = _mean_loss(loss, aside)
    if not after < before:
        for (value, _), kept in zip(trained, old, strict=True):
            value.data.copy_(kept)
        after = before
    return GroupFit(before, after)


def _optimise(
    loss: Callable[[Any], Tensor],
    draw: Callable[[Any], Any],
    trained: Rated,
    seen: Sequence[Any],
    steps: int,
    generator: torch.Generator,
    told: Callable[[int], None],
) -> None:
    optimiser = torch.optim.Adam([{"params": [value], "lr": rate} for value, rate in trained])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    values = [value for value, _ in trained]
    for done in range(1, steps + 1):
        example = draw(seen[int(torch.randint(len(seen), (), generator=generator))])
        grads = torch.autograd.grad(loss(example), values, allow_unused=True)
        for value, grad in zip(values, grads, strict=True):
            value.grad = grad
        optimiser.step()
        schedule.step()
        for value in values:
            value.grad = None
        told(done)


def _mean_loss(loss: Callable[[Any], Tensor], pairs: Sequence[Any]) -> float:
    with torch.no_grad():
        return sum(float(loss(pair)) for pair in pairs) / len(pairs)


def _varied(pair: tuple[Any, Any], generator: torch.Generator) -> tuple[Any, Any]:
    """Return some of the images, mirrored and moved at random; anything but images of the whole network as it is."""
    ours, theirs = pair
    x = ours[0]
    if ours is not theirs or len(ours) != 1 or not isinstance(x, Tensor) or x.dim() != 4:
        return pair
    chosen = torch.randperm(len(x), generator=generator)[:IMAGES].to(x.device)
    x = x[chosen]
    mirrored = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(mirrored.reshape(-1, 1, 1, 1).to(x.device), x.flip(3), x)
    height, width = x.shape[2:]
    room = (height // SHIFT, width // SHIFT)
    padded = F.pad(x, (room[1], room[1], room[0], room[0]))
    top = torch.randint(2 * room[0] + 1, (len(x),), generator=generator).tolist()
    left = torch.randint(2 * room[1] + 1, (len(x),), generator=generator).tolist()
    moved = [
        image[:, down : down + height, right : right + width]
        for image, down, right in zip(padded, top, left, strict=True)
    ]
    args = (torch.stack(moved),)
    return args, args
