"""The running average of a network's values."""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

__all__ = ["RunningAverage"]


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


def _floats(net: nn.Module) -> dict[str, Tensor]:
    """Return the floating-point values by key; what has several keys, as a shared activation's levels, by the first."""
    named: dict[int, tuple[str, Tensor]] = {}
    for key, value in net.state_dict(keep_vars=True).items():
        if value.is_floating_point():
            named.setdefault(id(value), (key, value))
    return dict(named.values())
