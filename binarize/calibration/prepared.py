"""Are images prepared as those were that a model was trained on, or a network calibrated on?

Wrong means and deviations are the commonest mistake of all, and nothing else shows them before accuracy is measured. A
model's first normalisation layer remembers what it was trained on; a packed network has none left, so its record keeps
what the images of calibration were like.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

__all__ = ["ImageStatistics", "Prepared", "compare_prepared", "unlike"]

IMAGES = 32  # enough: means over pixels of so many images lie within a tenth of a deviation
FEWEST = 8  # of one or two, which may be dark, too many would be suspected
FACTOR = 2.5  # of variances; other photographs than those of training stay well below, forgotten deviations far above
SHIFT = 1.0


@final
@dataclasses.dataclass(frozen=True)
class Prepared:
    """What the first normalisation layer sees, beside what it learnt in training.

    Attributes:
        layer: its module path.
        variance: seen over learnt, geometric mean over its channels.
        shift: distance of the means in learnt deviations, mean over its channels.
    """

    layer: str
    variance: float
    shift: float

    def why_not(self) -> str | None:
        """Return what speaks against images prepared as in training, or None."""
        if abs(math.log(self.variance)) > math.log(FACTOR):
            return f"{self.layer} sees {self.variance:.2g} times the variance that it learnt"
        if self.shift > SHIFT:
            return f"{self.layer} sees means that lie {self.shift:.1f} deviations from those that it learnt"
        return None

    @classmethod
    def read(cls, values: object) -> "Prepared | None":
        """Build from what a record holds; None where that is something else."""
        held = _fields(cls, values)
        if held is None or not _are_numbers(held["variance"], held["shift"]):
            return None
        return cls(**held) if held["variance"] > 0 else None


@final
@dataclasses.dataclass(frozen=True)
class ImageStatistics:
    """Mean and standard deviation of the values of images, per channel."""

    means: tuple[float, ...]
    deviations: tuple[float, ...]

    @classmethod
    def of(cls, inputs: Iterable[tuple[Any, ...]]) -> "ImageStatistics | None":
        """Measure 32 images, given as to `compare_prepared`; None for fewer than 8, or for what is no image."""
        pixels: list[Tensor] = []
        for batch, *_ in inputs:
            pixels += [image.flatten(1).double() for image in batch[: IMAGES - len(pixels)] if _is_image(image)]
            if len(pixels) >= IMAGES or not pixels:
                break
        if len(pixels) < FEWEST or len({len(image) for image in pixels}) > 1:
            return None
        values = torch.cat(pixels, 1)
        deviations = values.std(1, correction=0)
        if not bool(values.isfinite().all()) or not bool((deviations > 0).all()):
            return None
        return cls(tuple(values.mean(1).tolist()), tuple(deviations.tolist()))

    @classmethod
    def read(cls, values: object) -> "ImageStatistics | None":
        """Build from what a record holds; None where that is something else."""
        held = _fields(cls, values)
        if held is None or not all(isinstance(row, list | tuple) for row in held.values()):
            return None
        found = cls(tuple(held["means"]), tuple(held["deviations"]))
        if not _are_numbers(*found.means, *found.deviations) or len(found.means) != len(found.deviations):
            return None
        return found if min(found.deviations, default=0) > 0 else None

    def why_not(self, seen: "ImageStatistics") -> str | None:
        """Return what speaks against ``seen`` having been prepared in the same way, or None."""
        if len(seen.means) != len(self.means):
            return None  # the network refuses them itself
        pairs = zip(self.deviations, seen.deviations, strict=True)
        variance = math.exp(sum(2 * math.log(theirs / ours) for ours, theirs in pairs) / len(self.means))
        if abs(math.log(variance)) > math.log(FACTOR):
            return f"they have {variance:.2g} times the variance"
        rows = zip(self.means, seen.means, self.deviations, strict=True)
        shift = sum(abs(theirs - ours) / deviation for ours, theirs, deviation in rows) / len(self.means)
        return f"their means lie {shift:.1f} deviations from those" if shift > SHIFT else None


@torch.no_grad()
def compare_prepared(model: nn.Module, inputs: Iterable[tuple[Any, ...]]) -> Prepared | None:
    """Run ``model`` up to its first normalisation layer, on 32 images.

    Args:
        model: in evaluation mode.
        inputs: arguments of its forward: the images alone, ``(n, c, h, w)`` or a list.

    Returns:
        The comparison, or None where no such layer runs, or none that was trained, or it sees what is not finite, or
        there are fewer than 8 images.
    """
    layers = {module: name for name, module in model.named_modules() if _learnt(module)}
    if not layers:
        return None
    seen: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen.append((module, arguments[0]))
        raise _ReachedError

    handles = [module.register_forward_pre_hook(note) for module in layers]
    images = 0
    try:
        for (batch,) in inputs:
            some = batch[: IMAGES - images]
            images += len(some)
            with contextlib.suppress(_ReachedError):
                model(some)
            if images >= IMAGES or not seen:
                break
    finally:
        for handle in handles:
            handle.remove()
    if not seen or images < FEWEST:
        return None
    first = seen[0][0]
    return _compared(first, layers[first], [values for module, values in seen if module is first])


def unlike(those: str, reason: str) -> str:
    """Return the warning about images that look unlike those of ``those``, such as "training"."""
    remedy = "check mean and std (bytes are divided by 255 before), the order of channels and the size of images"
    return f"the images look unlike those of {those}: {reason}; {remedy}"


def _fields(kind: Any, values: object) -> Mapping[str, Any] | None:
    """Return ``values`` if they are those of a dataclass, by name."""
    names = {field.name for field in dataclasses.fields(kind)}
    return values if isinstance(values, Mapping) and set(values) == names else None


def _are_numbers(*values: object) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _is_image(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() == 3 and value.is_floating_point()


class _ReachedError(Exception):
    """Ends a forward pass where enough is known."""


def _learnt(module: nn.Module) -> bool:
    """Whether a layer remembers means and variances; those that it was made with are no memory."""
    if not isinstance(module, nn.modules.batchnorm._BatchNorm) or module.running_mean is None:
        return False
    assert module.running_var is not None
    return bool((module.running_mean != 0).any() or (module.running_var != 1).any())


def _compared(layer: Any, name: str, seen: list[Tensor]) -> Prepared | None:
    values = torch.cat([x.transpose(0, 1).flatten(1) for x in seen], 1).double()
    learnt = layer.running_var.double() + layer.eps
    variance = ((values.var(1, correction=0) + layer.eps) / learnt).log().mean().exp()
    shift = ((values.mean(1) - layer.running_mean) / learnt.sqrt()).abs().mean()
    found = Prepared(name, float(variance), float(shift))
    return found if math.isfinite(found.variance) and math.isfinite(found.shift) else None
