"""Stages: what the bases of the layers are while a stage lasts, and how one stage hands over to the next.

Going from float to binary in one step leaves few planes in a poor minimum. A stage trains an easier network with the
same topology and the same latent weights first.

Reference:
    shared: Bulat et al., High-capacity expert binary networks, ICLR 2021: one expert, then copies of it;
    tanh: the first stage of Group-Net's published code (Zhuang et al., arXiv:1811.10413); activations: Martinez et al.,
    Training binary neural networks with real-to-binary convolutions, ICLR 2020; bits: Sun et al., arXiv:1905.13389,
    section on initialisation.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from binarize.calibration.routers import split_branches
from binarize.errors import TrainingError
from binarize.layers.binary import BinaryActivation, BinaryLayer
from binarize.layers.branches import routed_groups
from binarize.recipe import StageSpec
from binarize.schemes.base import ActivationBasis, Levels, WeightBasis, even_sample
from binarize.schemes.encoding import EncodingActivation, EncodingWeight
from binarize.schemes.thermometer import ThermometerActivation, thresholds_against

__all__ = ["Bases", "LatentWeight", "SmoothActivation"]

SAMPLES = 1 << 14  # values of each batch that levels are fitted to


@final
@dataclasses.dataclass(frozen=True)
class LatentWeight(WeightBasis):
    """The latent weight itself, in place of the planes of ``inner``."""

    inner: WeightBasis

    @property
    def terms(self) -> tuple[int, ...]:
        """Those of ``inner``."""
        return self.inner.terms

    def fit(self, weight: Tensor) -> Tensor:
        """Return the units of ``inner``."""
        return self.inner.fit(weight)

    def odd(self, weight: Tensor, unit: Tensor) -> Tensor:
        """Return the odd integers of ``inner``."""
        return self.inner.odd(weight, unit)

    def __call__(self, weight: Tensor, unit: Tensor) -> Tensor:
        """Return ``weight``."""
        return weight


@final
@dataclasses.dataclass(frozen=True)
class SmoothActivation(ActivationBasis):
    """A smooth function through the same range, in place of the steps of ``inner``.

    For thresholds it is ``low + sum_j step_j / 2 (1 + tanh(2 (x - threshold_j) / step_j))``, in which each jump has
    slope 1 at its threshold; for a uniform code the input cut to the code's range; for anything else the input.
    """

    inner: ActivationBasis

    @property
    def terms(self) -> tuple[int, ...]:
        """Those of ``inner``."""
        return self.inner.terms

    def fit(self, samples: Tensor) -> Levels:
        """Return the levels of ``inner``."""
        return self.inner.fit(samples)

    def codes(self, x: Tensor, levels: Levels) -> Tensor:
        """Return the codes of ``inner``."""
        return self.inner.codes(x, levels)

    def __call__(self, x: Tensor, levels: Levels) -> Tensor:
        """Return the smooth value of each element."""
        if isinstance(self.inner, ThermometerActivation):
            jumps = zip(levels.step, thresholds_against(x, levels), strict=True)
            smooth = [step / 2 * (1 + torch.tanh(2 * (x - at) / step)) for step, at in jumps]
            return levels.low + torch.stack(smooth).sum(0)
        if isinstance(self.inner, EncodingActivation):
            return torch.minimum(torch.maximum(x, levels.low), levels.low + self.inner.top * levels.step[0])
        return x


@final
class Bases:
    """The bases that the schemes say, remembered while stages put others in their place."""

    def __init__(self, net: nn.Module) -> None:
        self.names = {module: name for name, module in net.named_modules() if isinstance(module, BinaryLayer)}
        self.layers = {module: module.scheme for module in self.names}
        self.activations = {module: module.basis for module in net.modules() if isinstance(module, BinaryActivation)}
        self.routed = routed_groups(net)

    def specs(self) -> dict[str, str]:
        """Return the scheme of each layer as text: networks of other schemes may have values of the same shapes."""
        return {f"the scheme of {name}": self.layers[layer].spec for layer, name in self.names.items()}

    def restore(self) -> None:
        """Put the schemes' own bases back; values stay."""
        for layer, scheme in self.layers.items():
            layer.scheme = scheme
            layer.unit.requires_grad_(True)
        for activation, basis in self.activations.items():
            activation.basis = basis
        for group in self.routed:
            if group.shared:
                group.split()

    def require(self, stages: Iterable[StageSpec]) -> None:
        """Check that the network has what the stages are about.

        Raises:
            TrainingError: one trains what only branches that a router chooses have.
        """
        if not self.routed and any(stage.name == "shared" for stage in stages):
            why = "no router chooses among its branches; leave the stage out, or convert with stored=N"
            raise TrainingError(f"cannot train the network in the stage 'shared': {why}")

    def enter(self, stage: StageSpec) -> None:
        """Put the bases of ``stage`` in place; values stay, and are to be fitted or loaded afterwards."""
        self.restore()
        for group in self.routed:
            group.shared = stage.name == "shared"
        for layer, scheme in self.layers.items():
            layer.scheme = dataclasses.replace(scheme, weight=_weight_in(stage, scheme.weight))
            layer.unit.requires_grad_(not isinstance(layer.scheme.weight, LatentWeight))
        for activation, basis in self.activations.items():
            activation.basis = _activation_in(stage, basis)

    def leave(self, stage: StageSpec, net: nn.Module, batches: Iterable[Tensor]) -> None:
        """End a stage, whose bases are in place: after ``shared`` there are copies, and routers start.

        Args:
            stage: that ends.
            net: the network, in evaluation mode.
            batches: images ``(n, c, h, w)``; batches of a user's own loss need not hold any: routers stay then.
        """
        if stage.name == "shared":
            try:
                images = [(batch,) for batch in batches]
            except TrainingError:
                images = []
            split_branches(net, images)

    @torch.no_grad()
    def fit(self, net: nn.Module, batches: Iterable[Tensor], before: StageSpec | None) -> None:
        """Fit what has changed since the stage ``before`` (None: since conversion).

        Args:
            net: the network, the new bases in place.
            batches: images ``(n, c, h, w)`` for the activations whose widths changed.
            before: the stage that has just ended.
        """
        for layer, scheme in self.layers.items():
            old = scheme.weight if before is None else _weight_in(before, scheme.weight)
            if layer.scheme.weight != old and not isinstance(layer.scheme.weight, LatentWeight):
                layer.unit.copy_(layer.scheme.weight.fit(layer.weight))
        changed = []
        for activation, basis in self.activations.items():
            old_basis = basis if before is None else _activation_in(before, basis)
            old_top, new_top = _top(old_basis), _top(activation.basis)
            if old_top != new_top:
                activation.step.mul_(old_top / new_top)  # the same range, until it is fitted
                changed.append(activation)
        _fit_levels(net, changed, batches)


def _weight_in(stage: StageSpec, basis: WeightBasis) -> WeightBasis:
    if stage.name in ("tanh", "activations"):
        return LatentWeight(basis)
    if stage.name == "bits" and isinstance(basis, EncodingWeight):
        return EncodingWeight(max(basis.bits, stage.w))
    return basis


def _activation_in(stage: StageSpec, basis: ActivationBasis) -> ActivationBasis:
    if stage.name == "tanh":
        return SmoothActivation(basis)
    if stage.name == "bits" and isinstance(basis, EncodingActivation):
        return EncodingActivation(max(basis.bits, stage.a))
    return basis


def _top(basis: ActivationBasis) -> int:
    return basis.top if isinstance(basis, EncodingActivation) else 1


def _fit_levels(net: nn.Module, activations: Sequence[BinaryActivation], batches: Iterable[Tensor]) -> None:
    """Fit the levels of ``activations`` to what they receive."""
    if not activations:
        return
    seen: dict[nn.Module, list[Tensor]] = {activation: [] for activation in activations}

    def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen[module].append(even_sample(inputs[0], SAMPLES))

    handles = [activation.register_forward_pre_hook(keep) for activation in activations]
    try:
        for images in batches:
            net(images)
    finally:
        for handle in handles:
            handle.remove()
    for activation in activations:
        if seen[activation]:
            activation.set_levels(activation.basis.fit(torch.cat(seen[activation])))
