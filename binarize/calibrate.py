"""Calibration without labels: every binary layer fitted to what the teacher's layer gives on the same images."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from binarize.calibration.fit import Problem, fit_to_output, fit_to_weight
from binarize.calibration.lockstep import Meeting, Place, first_tensor, lockstep
from binarize.calibration.places import layer_places
from binarize.calibration.reconstruct import GroupFit, reconstruct
from binarize.calibration.routers import split_branches
from binarize.calibration.rows import Rows, draw, row_count, values
from binarize.calibration.scales import fit_scales
from binarize.layers.binary import BinaryLayer, binary_layers
from binarize.layers.branches import sharing
from binarize.schemes.distinct import distinct_splits
from binarize.schemes.sign import SignActivation

__all__ = ["CalibrationRecord", "CalibrationSettings", "LayerFit", "calibrate"]

BATCH = 64  # images that go through a network at once; smaller tensors would fragment the allocator's heaps
LISTED = 4  # of a list of images, which a detector enlarges first
MEMORY = 4 * 2**30  # bytes that the tensors alive at one layer may take
VALUES = 2**18  # activations that a range is fitted to
JUDGED = 2048  # rows that a layer's error is measured on
INPUTS_PER_ROW = 8  # beyond it the rows determine next to nothing, and the fit is to the weights
MOST_INPUTS = 6144  # inputs per output up to which a Gram matrix is affordable

Progress = Callable[[str, int, int], None]


@final
@dataclasses.dataclass(frozen=True)
class CalibrationSettings:
    """How to calibrate.

    Attributes:
        reconstruct: follow the closed-form fit by block reconstruction against the teacher.
        seed: of the places that rows are drawn from.
        ridge: how strongly weights are held to the trained ones, as a share of the mean input power.
        sweeps: passes of coordinate descent over each layer's codes.
    """

    reconstruct: bool = False
    seed: int = 0
    ridge: float = 0.01
    sweeps: int = 3


@final
@dataclasses.dataclass(frozen=True)
class LayerFit:
    """How well one layer came out.

    Attributes:
        error: mean squared difference to the teacher's output over that output's variance, on rows that were fitted.
        rows: sampled outputs.
        low: value of activation code 0.
        step: value of one unit of each activation term.
    """

    error: float
    rows: int
    low: float
    step: tuple[float, ...]


@final
@dataclasses.dataclass(frozen=True)
class CalibrationRecord:
    """What was fitted.

    Attributes:
        samples: images used.
        seed: as in the settings.
        layers: fit of each binary layer by module path, in the order of execution; those of copies last.
        skipped: reason for each binary layer that was not fitted.
        groups: what reconstruction did to each group, where it was asked for.
        scales: of the branches of each group where least squares found better ones than the mean.
    """

    samples: int
    seed: int
    layers: Mapping[str, LayerFit]
    skipped: Mapping[str, str]
    groups: Mapping[str, GroupFit] = dataclasses.field(default_factory=dict)
    scales: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return dataclasses.asdict(self)


def calibrate(
    net: nn.Module,
    teacher: nn.Module,
    inputs: Sequence[tuple[Any, ...]],
    *,
    settings: CalibrationSettings | None = None,
    progress: Progress | None = None,
) -> CalibrationRecord:
    """Fit every binary layer of ``net``, in place, to the outputs of the same layer in ``teacher``.

    Layers are fitted in the order of execution, each on inputs that come from the fitted layers before it: first the
    levels of its input by least squares, then codes, units and bias so that its output comes closest to the teacher's
    on the same images (see `binarize.calibration.fit`). Normalisation layers keep their statistics: estimating them
    anew from a few hundred images costs more than it gives. Only copies that a router chooses get those of their
    images, and compute the same.

    Args:
        net: training form, with the teacher's module paths. Both networks are put in evaluation mode.
        teacher: the original.
        inputs: argument tuples of ``forward``, such as ``(images,)`` with images ``(n, c, h, w)``. Only so many images
            are used as fit in 4 GiB at the layer with the largest maps; the record tells how many.
        settings: how to calibrate.
        progress: called with the stage, layers done and layers in all.

    Returns:
        What was fitted.

    Raises:
        ModelError: the networks call their layers in different orders.
    """
    settings = settings or CalibrationSettings()
    net.eval()
    teacher.eval()
    batches = _split(inputs)
    layers, places = dict(binary_layers(net)), layer_places(net)
    progress = progress or (lambda stage, done, total: None)
    copies = {name: place.like for name, place in places.items() if place.like is not None}
    fitted = {name: place for name, place in places.items() if name not in copies}
    work = _Calibration(layers, fitted, settings, progress)
    with sharing(net):
        with torch.no_grad():
            calls, size = _probe(teacher, fitted, batches[0])
            batches = _affordable(batches, size)
            several = {name: place.source for name, place in fitted.items() if calls[place.source] > 1}
            work.record_repeated(teacher, batches, several, calls)
            lockstep(net, teacher, fitted, batches, work.visit)
        scales = fit_scales(net, teacher, batches)
        groups = reconstruct(net, teacher, batches, settings.seed, progress) if settings.reconstruct else {}
    split_branches(net, batches)
    scales = {path: tuple(net.get_parameter(f"{path}.scale").tolist()) for path in scales}
    fits = work.fits | {name: work.fits[like] for name, like in copies.items() if like in work.fits}
    skipped = work.skipped | {name: work.skipped[like] for name, like in copies.items() if like in work.skipped}
    missed = {name: "not called on the calibration inputs" for name in layers if name not in fits}
    return CalibrationRecord(_count(batches), settings.seed, fits, missed | skipped, groups, scales)


@final
class _Calibration:
    """The layers of one network, and what is known about them so far."""

    def __init__(
        self,
        layers: Mapping[str, BinaryLayer],
        places: Mapping[str, Place],
        settings: CalibrationSettings,
        progress: Progress,
    ) -> None:
        self.layers, self.places, self.settings, self.progress = layers, places, settings, progress
        self.fits: dict[str, LayerFit] = {}
        self.skipped: dict[str, str] = {}
        self.repeated: dict[str, list[Rows]] = {}
        self.missed: dict[str, list[Tensor]] = {}

    def record_repeated(
        self,
        teacher: nn.Module,
        batches: Sequence[tuple[Any, ...]],
        several: Mapping[str, str],
        calls: Mapping[str, int],
    ) -> None:
        """Draw rows of the layers that one forward calls several times, over all their calls in the teacher.

        Such a layer (a head that several feature maps share) must be fitted to all its inputs before its first call,
        when most of what the network under calibration will feed it is not known yet; the teacher's inputs stand in.
        """
        if not several:
            return
        generator = self._generator()

        def hook_for(name: str) -> Any:
            layer = self.layers[name]
            count = -(-row_count(*_sizes(layer)) // (calls[several[name]] * len(batches)))

            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> None:
                rows = draw(layer, first_tensor(args, kwargs), output, count, generator)
                self.repeated.setdefault(name, []).append(rows)

            return hook

        handles = [
            teacher.get_submodule(source).register_forward_hook(hook_for(name), with_kwargs=True)
            for name, source in several.items()
        ]
        try:
            for batch in batches:
                teacher(*batch)
        finally:
            for handle in handles:
                handle.remove()

    def visit(self, name: str, meetings: Sequence[Meeting]) -> None:
        """Fit one layer on all batches."""
        layer, place = self.layers[name], self.places[name]
        generator = self._generator()
        rows = self.repeated.pop(name, None)
        if rows is None:
            _fit_levels(layer, [meeting.input for meeting in meetings], generator, place)
            count = -(-row_count(*_sizes(layer)) // len(meetings))
            targets = self._targets(place, meetings)
            rows = [draw(layer, m.input, target, count, generator) for m, target in zip(meetings, targets, strict=True)]
        else:
            _fit_levels(layer, [part.taps for part in rows], generator, place)
        joined = Rows.join(rows)
        if len(joined.targets):
            self.fits[name] = _fit_layer(layer, joined, self.settings)
        else:
            self.skipped[name] = "its input was empty on every calibration image"
        if place.boosted:
            self._note_missed(layer, place, meetings)
        self.progress("calibrate", len(self.fits) + len(self.skipped), len(self.places))

    def _targets(self, place: Place, meetings: Sequence[Meeting]) -> list[Tensor]:
        """Return what the layer should give: the teacher's output, and what the branches before it missed of it."""
        missed = self.missed.get(place.source) if place.boosted and place.branch > 0 else None
        if missed is None or [len(part) for part in missed] != [len(m.target) for m in meetings]:
            return [meeting.target for meeting in meetings]
        return [meeting.target + part for meeting, part in zip(meetings, missed, strict=True)]

    def _note_missed(self, layer: BinaryLayer, place: Place, meetings: Sequence[Meeting]) -> None:
        """Keep how far the branches fitted so far are from the teacher together; forget it after the last branch."""
        targets = self._targets(place, meetings)
        self.missed.pop(place.source, None)
        outputs = [layer.forward(meeting.input) for meeting in meetings]  # without the hook that stops there
        same = all(y.shape == target.shape for y, target in zip(outputs, targets, strict=True))
        if same and place.branch + 1 < place.branches:
            self.missed[place.source] = [target - y for target, y in zip(targets, outputs, strict=True)]

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.settings.seed)


def _fit_levels(layer: BinaryLayer, inputs: Sequence[Tensor], generator: torch.Generator, place: Place) -> None:
    """Fit the levels of the layer's input, unless another reader of the same tensor has done so."""
    activation = layer.activation
    if activation.fitted:
        return
    share = -(-VALUES // len(inputs))
    samples = torch.cat([values(x, share, generator) for x in inputs])
    basis = activation.basis
    if isinstance(basis, SignActivation) and place.branches > 1:
        activation.set_levels(distinct_splits(samples, place.branches)[place.branch])
    else:
        activation.set_levels(basis.fit(samples))


def _fit_layer(layer: BinaryLayer, rows: Rows, settings: CalibrationSettings) -> LayerFit:
    """Fit codes, units and bias."""
    design = rows.design(layer)
    groups, count, inputs = design.shape
    targets = _aligned_targets(layer, rows).reshape(count, groups, -1).transpose(0, 1)
    mean_in, mean_out = design.mean(1, keepdim=True), targets.mean(1, keepdim=True)
    design -= mean_in
    targets = targets - mean_out
    weight = layer.weight.detach().reshape(groups, -1, inputs)
    if inputs > min(MOST_INPUTS, INPUTS_PER_ROW * count):
        fit = fit_to_weight(layer.weight_basis, design, targets, weight)
    else:
        ridge = settings.ridge + 0.1 * inputs / count  # few rows determine little
        problem = Problem.of(design, targets, weight, ridge)
        fit = fit_to_output(layer.weight_basis, problem, settings.sweeps)
    value = fit.value(layer.weight_basis)
    layer.weight.copy_(fit.latent.reshape(layer.weight.shape))
    layer.unit.copy_(fit.unit)
    layer.ensure_bias().copy_((mean_out - mean_in @ value.transpose(1, 2)).flatten())
    return LayerFit(_relative_error(design, targets, value), count, *_levels(layer))


def _aligned_targets(layer: BinaryLayer, rows: Rows) -> Tensor:
    """Return the teacher's outputs, or the layer's own in full precision where the two have nothing in common.

    Regions that a detector proposes come in another order in the network than in its teacher. Then the layer's own
    output is further from the teacher's than the teacher's mean is.
    """
    own = rows.original_outputs(layer)
    spread = (rows.targets - rows.targets.mean(0)).square().sum()
    return own if (own - rows.targets).square().sum() > spread else rows.targets


def _relative_error(design: Tensor, targets: Tensor, value: Tensor) -> float:
    stride = -(-design.shape[1] // JUDGED)
    design, targets = design[:, ::stride], targets[:, ::stride]
    wrong = (design @ value.transpose(1, 2) - targets).square().mean()
    return float(wrong / targets.square().mean().clamp_min(1e-30))


def _levels(layer: BinaryLayer) -> tuple[float, tuple[float, ...]]:
    return float(layer.activation.low), tuple(layer.activation.step.tolist())


def _sizes(layer: BinaryLayer) -> tuple[int, int]:
    """Inputs per output, and outputs."""
    return layer.weight[0].numel(), len(layer.weight)


def _probe(teacher: nn.Module, places: Mapping[str, Place], batch: tuple[Any, ...]) -> tuple[dict[str, int], int]:
    """Run one image (one batch where it cannot be cut): how often each layer is called, and the bytes it keeps alive.

    Between layers live the input of both networks and the teacher's output, and about half as much in branches of the
    graph. While the copies of a group are fitted, the teacher's outputs of all its layers live.
    """
    calls, sizes = dict.fromkeys((place.source for place in places.values()), 0), dict[str, int]()
    outputs: dict[str, int] = {}

    def hook_for(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> None:
            calls[name] += 1
            size = 2 * first_tensor(args, kwargs).nbytes + output.nbytes
            sizes[name], outputs[name] = max(sizes.get(name, 0), size + size // 2), output.nbytes

        return hook

    handles = [teacher.get_submodule(name).register_forward_hook(hook_for(name), with_kwargs=True) for name in calls]
    try:
        teacher(*(tuple(x[:1] for x in batch) if _splittable(batch) else batch))
    finally:
        for handle in handles:
            handle.remove()
    kept: dict[str, dict[str, int]] = {}
    for place in places.values():
        if place.home is not None:
            kept.setdefault(place.home, {})[place.source] = outputs.get(place.source, 0)
    most = max((sum(group.values()) for group in kept.values()), default=0)
    return calls, max(sizes.values(), default=1) + 2 * most


def _affordable(batches: Sequence[tuple[Any, ...]], each: int) -> list[tuple[Any, ...]]:
    """Return as many batches as fit the memory, at ``each`` bytes for an image; the last one may be cut short."""
    left, kept = max(MEMORY // each, 1), list[tuple[Any, ...]]()
    for args in batches:
        if left <= 0:
            break
        kept.append(tuple(x[:left] for x in args) if _splittable(args) else args)
        left -= len(args[0]) if _splittable(args) else 1
    return kept


def _splittable(args: tuple[Any, ...]) -> bool:
    """Whether every argument is a batch: a tensor, or the list of images that a detector takes."""
    batches = all((isinstance(x, Tensor) and x.dim() > 1) or _is_list_of_images(x) for x in args)
    return batches and len({len(x) for x in args}) == 1


def _is_list_of_images(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(x, Tensor) for x in value)


def _split(inputs: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Cut large batches: what a layer needs while it runs grows with the batch."""
    batches: list[tuple[Any, ...]] = []
    for args in inputs:
        size = LISTED if any(isinstance(x, list) for x in args) else BATCH
        parts = range(0, len(args[0]), size) if _splittable(args) else []
        batches.extend([tuple(x[at : at + size] for x in args) for at in parts] or [args])
    return batches


def _count(inputs: Sequence[tuple[Any, ...]]) -> int:
    return sum(len(args[0]) if isinstance(args[0], Tensor | list | tuple) else 1 for args in inputs)
