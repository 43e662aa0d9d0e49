"""Fold evaluation-mode batch normalisation into the layer that feeds it.

    y = gamma / std * conv + (beta - gamma * mean / std),    std = sqrt(var + eps)

A packed layer takes the gain into its scales and the shift into its bias; a float convolution into its weight.
torchvision's FrozenBatchNorm2d, which detectors use, is folded like any other.
"""

import dataclasses
import sys
from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from binarize.layers.packed import PackedLayer
from binarize.passes.base import Pass, PassResult
from binarize.passes.graph import Call, bypass, call_of, calls, first_input, module_uses, put

__all__ = ["FoldBatchNorm"]

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
FEEDERS = (PackedLayer, nn.Conv2d, nn.Linear)


@final
@dataclasses.dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold each evaluation-mode BatchNorm into the packed or float layer that feeds it.

    It stays where it is in training mode, without running statistics, shared by several calls, not fed by a
    convolution or linear layer, or where that layer's output has other readers or a clamp of its own.
    """

    def run(self, gm: fx.GraphModule) -> PassResult:
        """Fold what can be folded; the rest is reported with its reason."""
        changed: list[str] = []
        skipped: dict[str, str] = {}
        kinds: Any = (*NORMS, *frozen_norms())
        for norm in calls(gm, kinds):
            feeder = _feeder(gm, norm)
            if isinstance(feeder, str):
                skipped[norm.name] = feeder
                continue
            _fold(gm, feeder, norm.module)
            bypass(gm, norm)
            changed.append(norm.name)
        return PassResult(tuple(changed), skipped)


def frozen_norms() -> tuple[type[nn.Module], ...]:
    """Return torchvision's frozen normalisation if torchvision is loaded: without it no model can hold one."""
    misc = sys.modules.get("torchvision.ops.misc")
    return () if misc is None else (misc.FrozenBatchNorm2d,)


def _feeder(gm: fx.GraphModule, norm: Call[Any]) -> Call[nn.Module] | str:
    """Return the layer that ``norm`` folds into, or why there is none."""
    uses = module_uses(gm)
    if isinstance(norm.module, NORMS) and (norm.module.training or norm.module.running_mean is None):
        return "normalises by the statistics of each batch"
    if len(uses[norm.name]) > 1:
        return f"called {len(uses[norm.name])} times"
    feeder = call_of(gm, first_input(norm.node), FEEDERS)
    if feeder is None:
        return "not fed by a convolution or linear layer"
    return _why_not(feeder, len(uses[feeder.name])) or feeder


def _why_not(feeder: Call[nn.Module], times: int) -> str | None:
    if times > 1:
        return f"{feeder.name!r} is called {times} times"
    if len(feeder.node.users) > 1:
        return f"{feeder.name!r} feeds {len(feeder.node.users)} nodes"
    if isinstance(feeder.module, PackedLayer):
        clamped = (feeder.module.minimum, feeder.module.maximum) != (-float("inf"), float("inf"))
        return f"{feeder.name!r} clamps its output" if clamped or len(feeder.node.args) > 1 else None
    plain = type(feeder.module) in (nn.Conv2d, nn.Linear)
    return None if plain else f"{feeder.name!r} is a {type(feeder.module).__name__}"


def _fold(gm: fx.GraphModule, feeder: Call[nn.Module], norm: Any) -> None:
    if isinstance(feeder.module, PackedLayer):
        feeder.module.multiply(*gain_and_shift(norm))
    elif isinstance(feeder.module, nn.Conv2d):
        put(gm, feeder.name, fuse_conv_bn_eval(feeder.module, norm))
    elif isinstance(feeder.module, nn.Linear):
        put(gm, feeder.name, fuse_linear_bn_eval(feeder.module, norm))


def gain_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """Return the ``(o,)`` float32 pair that ``norm`` multiplies by and adds in evaluation mode."""
    mean, var = norm.running_mean.detach().double(), norm.running_var.detach().double()
    gain = torch.rsqrt(var + norm.eps)
    if norm.weight is not None:
        gain = gain * norm.weight.detach().double()
    shift = -gain * mean if norm.bias is None else norm.bias.detach().double() - gain * mean
    return gain.float(), shift.float()
