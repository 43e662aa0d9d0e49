"""The run of a fine-tuning as curves that a page can draw by itself."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, final

from binarize.tables import heading

__all__ = ["HEIGHT", "WIDTH", "Curve", "curves_of"]

WIDTH, HEIGHT = 480, 120


@final
@dataclasses.dataclass(frozen=True)
class Curve:
    """One figure over the epochs.

    Attributes:
        name: of the figure.
        points: places in a picture of `WIDTH` by `HEIGHT`, as SVG writes them; the largest value is on top.
        first: value of the first epoch.
        last: value of the last epoch.
        least: smallest value.
        most: largest value.
    """

    name: str
    points: str
    first: float
    last: float
    least: float
    most: float


def curves_of(training: Mapping[str, Any]) -> list[Curve]:
    """Return the loss, the accuracy met in training, and each figure of validation that was measured every epoch."""
    epochs = training.get("epochs", [])
    found = {"loss": [epoch["loss"] for epoch in epochs], "top-1 in training": [epoch["top1"] for epoch in epochs]}
    for name in epochs[0]["val"] if epochs else ():
        found[f"{heading(name)} in validation"] = [epoch["val"].get(name) for epoch in epochs]
    return [_curve(name, values) for name, values in found.items() if _is_whole(values)]


def _is_whole(values: Sequence[Any]) -> bool:
    return len(values) > 1 and all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _curve(name: str, values: Sequence[float]) -> Curve:
    least, most = min(values), max(values)
    span, last = (most - least) or 1.0, len(values) - 1
    places = [(WIDTH * i / last, HEIGHT * (1 - (value - least) / span)) for i, value in enumerate(values)]
    return Curve(name, " ".join(f"{x:.1f},{y:.1f}" for x, y in places), values[0], values[-1], least, most)
