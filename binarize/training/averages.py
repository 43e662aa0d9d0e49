"""Running averages: of a network's values, and of the statistics that its normalisation layers keep."""

import math
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

__all__ = ["RunningAverage", "Statistics"]

STEP, STEPS = 4, 3  # few, because compiled code is made anew for each momentum


@final
class RunningAverage:
    """``average <- share * average + (1 - share) * value`` after each step, over weights and statistics alike.

    In its first steps the share is ``(1 + steps) / (10 + steps)`` where that is smaller: so the average forgets where
    it began.

    Attributes:
        values: by state_dict key, the floating-point ones.
        steps: how often it was updated.
    """

    def __init__(self, net: nn.Module, share: float) -> None:
        self.share, self.steps = share, 0
        self.values = {key: value.detach().clone() for key, value in _floats(net).items()}

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Take the network's values in."""
        self.steps += 1
        share = min(self.share, (1 + self.steps) / (10 + self.steps))
        for key, value in _floats(net).items():
            self.values[key].lerp_(value.detach(), 1 - share)

    @torch.no_grad()
    def swap(self, net: nn.Module) -> None:
        """Exchange the averages and the network's values; a second call undoes it."""
        for key, value in _floats(net).items():
            kept = value.detach().clone()
            value.copy_(self.values[key])
            self.values[key].copy_(kept)

    def load(self, values: Mapping[str, Tensor], steps: int) -> None:
        """Take over what a checkpoint holds."""
        self.steps = steps
        for key, value in self.values.items():
            value.copy_(values[key])


@final
class Statistics:
    """Lets normalisation layers remember longer as the learning rate falls and the network changes less.

    With their usual momentum they average over some ten batches, and by the last ones alone the statistics of a network
    of few planes are too uncertain: see Wu and Johnson, Rethinking "Batch" in BatchNorm, arXiv:2105.07576, section 3.
    At ``1 / f`` of the highest rate the momentum is divided by the largest power of 4 up to f, 64 at most.

    Attributes:
        usual: momentum of each layer that has one.
    """

    def __init__(self, net: nn.Module) -> None:
        layers = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        self.usual = {layer: layer.momentum for layer in layers if layer.momentum is not None}

    def set_factor(self, factor: float) -> None:
        """Set the momenta for steps at ``factor`` times the highest rate."""
        steps = math.floor(math.log(1 / max(factor, STEP**-STEPS), STEP))
        for layer, momentum in self.usual.items():
            layer.momentum = momentum / STEP**steps

    def restore(self) -> None:
        """Set the usual momenta."""
        self.set_factor(1.0)


def _floats(net: nn.Module) -> dict[str, Tensor]:
    """Return the floating-point values by key; what has several keys, as a shared activation's levels, by the first."""
    named: dict[int, tuple[str, Tensor]] = {}
    for key, value in net.state_dict(keep_vars=True).items():
        if value.is_floating_point():
            named.setdefault(id(value), (key, value))
    return dict(named.values())
