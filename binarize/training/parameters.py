"""Which values are trained, how fast each moves, and which decay."""

import math
from typing import Any, final

import torch
from torch import nn
from torch.optim import Optimizer

from binarize.layers.binary import BinaryActivation, BinaryLayer
from binarize.training.settings import Settings
from binarize.training.stages import LatentWeight

__all__ = ["Rates", "keep_positive", "rate_factor"]

FLOATS = 0.25  # what keeps its value in full precision moves this much slower: it is in place already
LEVELS = 0.05  # and levels and units so: each is shared by thousands of values
SMALLEST = 1e-6


@final
class Rates:
    """An optimiser over the values of ``net`` that are trained, with a rate for each.

    A latent weight has whatever scale its layer has, and Adam moves every value by about the learning rate: so its rate
    is a share of the distance between two levels, which is how far it has to go to become another one: weights of one
    bit move some five times as fast as those of four. Anything else moves by a smaller share of a mean size: its own,
    that of the steps for levels and thresholds, that of what it is added to for a bias.

    A level ``low`` of 0 is not trained: it keeps zeros exact after a ReLU. Only weights decay, whatever their kind:
    scales, levels, gates, normalisation and biases would be drawn to 0 without being redundant.

    Attributes:
        optimiser: the optimiser, one group per value.
    """

    def __init__(self, net: nn.Module, settings: Settings) -> None:
        self.settings = settings
        freeze_exact_zeros(net)
        seen: set[int] = set()
        groups: list[dict[str, Any]] = []
        for module in net.modules():
            for name, value in module.named_parameters(recurse=False):
                if value.requires_grad and id(value) not in seen:
                    seen.add(id(value))
                    groups.append(self._group(net, module, name, value))
        self.optimiser = self._build(groups)

    def _build(self, groups: list[dict[str, Any]]) -> Optimizer:
        rate, momentum = self.settings.rate, self.settings.momentum
        if self.settings.optimiser == "sgd":
            return torch.optim.SGD(groups, rate, momentum=momentum, nesterov=momentum > 0)
        return (torch.optim.Adam if self.settings.optimiser == "adam" else torch.optim.AdamW)(groups, rate)

    def _group(self, net: nn.Module, module: nn.Module, name: str, value: nn.Parameter) -> dict[str, Any]:
        decay = self.settings.weight_decay if name == "weight" and value.dim() > 1 else 0.0
        if self.settings.optimiser == "sgd":
            share = _sgd_share(net, module, name)
        else:
            share = _adam_share(module, name, value)
            decay = decay / share if self.settings.optimiser == "adamw" else decay  # AdamW multiplies by the rate
        return {"params": [value], "share": share, "lr": self.settings.rate * share, "weight_decay": decay}

    def set_factor(self, factor: float) -> None:
        """Set every rate to ``factor`` times its highest."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.rate * factor * group["share"]


def freeze_exact_zeros(net: nn.Module) -> None:
    """Take the levels ``low`` that are 0 out of training."""
    for module in net.modules():
        if isinstance(module, BinaryActivation) and float(module.low.detach()) == 0.0:
            module.low.requires_grad_(False)


def _adam_share(module: nn.Module, name: str, value: nn.Parameter) -> float:
    if isinstance(module, BinaryActivation):
        return LEVELS * _size(module.step)
    if isinstance(module, BinaryLayer) and name == "unit":
        return LEVELS * _size(value)
    if isinstance(module, BinaryLayer) and name == "weight" and not isinstance(module.weight_basis, LatentWeight):
        return _spacing(module)
    weight = getattr(module, "weight", None)
    if name == "bias" and isinstance(weight, nn.Parameter):  # what the bias is added to has about this size
        return FLOATS * (_size(weight) if weight.dim() == 1 else _size(weight.detach().flatten(1).norm(dim=1)))
    return FLOATS * _size(value)


def _spacing(layer: BinaryLayer) -> float:
    """Return the mean distance between neighbouring levels of a layer's weight, or what a float weight gets if larger.

    It is larger from about six bits on, whose levels are so close that the weight is all but a float.
    """
    basis = layer.weight_basis
    largest = [unit.detach().abs() * (2**bits - 1) for unit, bits in zip(layer.unit, basis.terms, strict=True)]
    return max(2 * float(torch.stack(largest).sum(0).mean()) / basis.steps, FLOATS * _size(layer.weight))


def _sgd_share(net: nn.Module, module: nn.Module, name: str) -> float:
    """Return 1, or for a level ``1 / sqrt(weights)``: its gradient is a sum over them (LSQ, section 2.2)."""
    if isinstance(module, BinaryActivation):
        readers = [m for m in net.modules() if isinstance(m, BinaryLayer) and m.activation is module]
        return 1 / math.sqrt(readers[0].weight.numel()) if readers else 1.0
    if isinstance(module, BinaryLayer) and name == "unit":
        return 1 / math.sqrt(module.weight[0].numel())
    return 1.0


def _size(value: torch.Tensor) -> float:
    size = float(value.detach().abs().mean())
    return size if size > 0 else 1.0


@torch.no_grad()
def keep_positive(net: nn.Module) -> None:
    """Raise steps and single units that a step made 0 or negative: a code has no meaning there."""
    for module in net.modules():
        if isinstance(module, BinaryActivation) and len(module.step) == 1:
            module.step.clamp_(min=SMALLEST)
        elif isinstance(module, BinaryLayer) and len(module.unit) == 1:
            module.unit.clamp_(min=SMALLEST)


def rate_factor(settings: Settings, position: float) -> float:
    """Return what the highest learning rate is multiplied by at ``position``, a share of the stage in [0, 1]."""
    if position < settings.warmup:
        return position / settings.warmup
    after = (position - settings.warmup) / (1 - settings.warmup)
    if settings.schedule == "cosine":
        return (1 + math.cos(math.pi * after)) / 2
    if settings.schedule == "linear":
        return 1 - after
    if settings.schedule == "step":
        return settings.drop ** sum(position >= milestone for milestone in settings.milestones)
    return 1.0
