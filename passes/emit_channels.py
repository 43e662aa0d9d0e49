"""What works on channels in a schedule: normalisation that nothing took in, PReLU, and putting maps side by side."""

import dataclasses
from math import inf
from typing import final

import torch
from torch import Tensor, fx, nn

from binarize.errors import ModelError
from binarize.kernels.schedule import Draft, Value
from binarize.passes.emit import Clamped, Operation, Values, image

__all__ = ["Concatenation", "Normalisation", "Rectification"]


@final
@dataclasses.dataclass(frozen=True)
class Normalisation(Clamped):
    """A `BatchNorm2d` in evaluation, and the clamp after it."""

    node: fx.Node
    norm: nn.BatchNorm2d
    clamp: fx.Node | None
    limits: tuple[float, float]

    def emit(self, draft: Draft, values: Values) -> Value:
        """Add a pass over memory."""
        norm, x = self.norm, image(values[self.node.args[0]], self.node.name)  # type: ignore[index]
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None  # match looked
        assert variance is not None
        scale = (variance + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight.detach()
        shift = -mean * scale if norm.bias is None else norm.bias.detach() - mean * scale
        return draft.channelwise(x, scale, shift, None, *self.limits)


@final
@dataclasses.dataclass(frozen=True)
class Rectification(Operation):
    """A `PReLU`: one slope, or one for each channel."""

    node: fx.Node
    slope: Tensor

    def emit(self, draft: Draft, values: Values) -> Value:
        """Add a pass over memory."""
        x = image(values[self.node.args[0]], self.node.name)  # type: ignore[index]
        channels = x.shape[1]
        if self.slope.numel() not in (1, channels):
            raise ModelError(f"cannot schedule {self.node.name!r}: its slopes do not fit {x}")
        one, zero = torch.ones(channels), torch.full((channels,), -0.0)  # what is added changes no bit
        return draft.channelwise(x, one, zero, self.slope.detach().expand(channels), -inf, inf)


@final
@dataclasses.dataclass(frozen=True)
class Concatenation(Operation):
    """Maps side by side along their channels."""

    node: fx.Node
    parts: tuple[fx.Node, ...]

    def emit(self, draft: Draft, values: Values) -> Value:
        """Add a copy of each."""
        found = [values[part] for part in self.parts]
        alike = {(x.shape[:1], x.shape[2:], x.dtype) for x in found}
        if len(alike) > 1 or found[0].dtype != torch.float32 or len(found[0].shape) < 2:
            raise ModelError(f"cannot schedule {self.node.name!r}: it joins {', '.join(map(str, found))}")
        return draft.side_by_side(found)
