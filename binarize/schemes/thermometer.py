"""Thermometer planes: signs or digits that turn one after the other as the value grows, each with a scale of its own.

A piecewise constant function with thresholds v_1 < ... < v_m and levels l_0 < ... < l_m is a sum of such planes,

    l_0 + sum_i (l_i - l_{i-1}) [x >= v_i]                                                        activations      (1)
    (l_0 + l_m) / 2 + sum_i (l_i - l_{i-1}) / 2 * sign(x - v_i)                                   weights          (2)

so m planes give m + 1 levels, wherever they lie. `Pieces` is the least-squares geometry that both sides share.

Shape letters: r rows that are fitted alone, k values of a row, m thresholds.
"""

import abc
import dataclasses
from typing import final

import torch
from torch import Tensor

from binarize.schemes.base import ActivationBasis, Levels, WeightBasis, below, per_output
from binarize.schemes.estimators import CodedWeight, Ste, ThresholdActivation

__all__ = ["Pieces", "ThermometerActivation", "ThermometerWeight"]


@final
@dataclasses.dataclass(frozen=True)
class Pieces:
    """Rows of values, sorted and summed up, so that the mean of any piece takes two look-ups.

    Attributes:
        values: ``(r, k)`` float64, ascending; one row serves thresholds of any number of rows.
        below: ``(r, k + 1)``, sums of the first values.
        squares: ``(r, k + 1)``, sums of their squares.
    """

    values: Tensor
    below: Tensor
    squares: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> "Pieces":
        """Sort ``(r, k)``."""
        values = rows.double().sort(1).values
        return cls(values, _sums(values), _sums(values.square()))

    def means(self, thresholds: Tensor, otherwise: Tensor) -> Tensor:
        """Return the mean of each piece, which is its best level, and the level of ``otherwise`` where it is empty.

        Args:
            thresholds: ``(r, m)``, ascending; piece i starts at threshold i, itself included.
            otherwise: ``(r, m + 1)``, like what is returned.
        """
        count, total = self._over(thresholds, None), self._over(thresholds, self.below)
        return torch.where(count > 0, total / count.clamp_min(1), otherwise)

    def error(self, thresholds: Tensor, levels: Tensor) -> Tensor:
        """Return the sum of squared differences ``(r,)`` to levels ``(r, m + 1)``."""
        count, total = self._over(thresholds, None), self._over(thresholds, self.below)
        return (self._over(thresholds, self.squares) - 2 * levels * total + levels.square() * count).sum(1)

    def _over(self, thresholds: Tensor, sums: Tensor | None) -> Tensor:
        """Return how many values, or what sum of them, each piece holds: ``(r, m + 1)``."""
        rows, size = len(thresholds), self.values.shape[1]
        sorted_values = self.values[0] if len(self.values) == 1 else self.values
        ends = torch.searchsorted(sorted_values, thresholds.contiguous())
        ends = torch.cat([ends.new_zeros(rows, 1), ends, ends.new_full((rows, 1), size)], 1)
        return (ends if sums is None else sums.expand(rows, -1).gather(1, ends)).diff(dim=1)


def _sums(values: Tensor) -> Tensor:
    return torch.nn.functional.pad(values.cumsum(1), (1, 0))


def between(levels: Tensor) -> Tensor:
    """Return the thresholds ``(r, m)`` of the nearest of levels ``(r, m + 1)``: their midpoints."""
    return (levels[:, 1:] + levels[:, :-1]) / 2


@dataclasses.dataclass(frozen=True)
class ThermometerWeight(WeightBasis):
    """Equation (2) with the thresholds halfway between the levels: each weight takes the nearest level.

    The terms are sign planes, each with half the height of its jump as unit; `has_offset` adds a term of no planes, the
    middle of the outer levels.
    """

    @property
    @abc.abstractmethod
    def has_offset(self) -> bool:
        """Whether the last term is the constant +1."""

    @final
    def odd(self, weight: Tensor, unit: Tensor) -> Tensor:
        """Return the signs ``(m, *weight.shape)``, and ones for the offset, of the nearest level."""
        heights = unit[:-1] if self.has_offset else unit
        middle = 2 * heights.cumsum(0) - heights - heights.sum(0)
        if self.has_offset:
            middle = middle + unit[-1]
        signs = weight.new_empty(len(unit), *weight.shape)
        for term, at in zip(signs, per_output(middle, weight.unsqueeze(0)), strict=False):
            below(weight, at, term).mul_(-2).add_(1)
        if self.has_offset:
            signs[-1] = 1
        return signs

    @final
    def __call__(self, weight: Tensor, unit: Tensor) -> Tensor:
        """Return the nearest level of each weight; the weight gets the identity as gradient."""
        value: Tensor = CodedWeight.apply(weight, unit, self.odd, None)
        return value


@dataclasses.dataclass(frozen=True)
class ThermometerActivation(ActivationBasis):
    """Equation (1): ``A = low + sum_j step_j [A >= v_j]`` with learnt v, step and low.

    The sum is the same in whatever order the thresholds stand, so training needs nothing to keep them sorted.

    Attributes:
        ste: straight-through estimator of each jump.
        temperature: of the estimator ``tanh``; `binarize.layers.binary.set_temperature` anneals it.
    """

    ste: Ste = dataclasses.field(default="clipped", kw_only=True)
    temperature: float = dataclasses.field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"the temperature must be positive, got {self.temperature}")

    @final
    def codes(self, x: Tensor, levels: Levels) -> Tensor:
        """Return ``(m, *x.shape)`` of 0 and 1."""
        return torch.stack([~(x < at) for at in thresholds_against(x, levels)]).to(x.dtype)

    @final
    def __call__(self, x: Tensor, levels: Levels) -> Tensor:
        """Return the level of the piece that each element of ``x`` ``(n, c, ...)`` lies in."""
        thresholds = thresholds_against(x, levels)
        value: Tensor = ThresholdActivation.apply(x, levels.low, levels.step, thresholds, self.ste, self.temperature)
        return value


def thresholds_against(x: Tensor, levels: Levels) -> Tensor:
    """Return the thresholds ``(m, 1)`` or ``(m, c)``, shaped so that each multiplies ``x`` ``(n, c, ...)``."""
    if levels.threshold is None:
        raise ValueError("an activation of this basis needs thresholds; fit it, or give Levels(threshold=...)")
    if levels.threshold.shape[1] == 1:
        return levels.threshold.squeeze(1)
    return levels.threshold.reshape(*levels.threshold.shape, *[1] * max(x.dim() - 2, 0))


def to_levels(low: Tensor, steps: Tensor, thresholds: Tensor) -> Levels:
    """Return `Levels` in float32 for the levels' first, their differences and their thresholds, ``()``, ``(m,)``."""
    return Levels(low.float(), steps.float(), thresholds.float().unsqueeze(1))
