"""Are the images prepared as those were that the model was trained on? Its first normalisation layer remembers them.

Wrong means and deviations are the commonest mistake of all, and nothing else shows them before accuracy is measured.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterable
from typing import Any, final

import torch
from torch import Tensor, nn

__all__ = ["Prepared", "compare_prepared"]

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
