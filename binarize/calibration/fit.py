"""Weights fitted to a layer's output instead of to the weights themselves, in closed form and by descent over codes.

With binarised inputs x (rows of a design matrix) and the teacher's outputs y, both centred, a quantised weight v costs

    |X v - y|^2  =  (w - v)^T H (w - v) + constant,    H = X^T X,    w = H^{-1} X^T y                              (1)

so the best real weight w corrects what binarised inputs lost, and rounding it is a lattice problem in the metric H. A
multiple of the identity is added to H and the original weight to X^T y in proportion, so that what the rows do not
determine stays as it was trained. The bias then takes up the means.

Shape letters: g convolution groups, p rows, k inputs per output, o outputs (of one group here), t weight terms.
"""

import dataclasses
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from binarize.schemes.base import WeightBasis

__all__ = ["Fit", "Problem", "fit_to_output", "fit_to_weight"]

BLOCK = 64  # columns whose changes are gathered before the rest of the gradient is updated
SHRINK = (
    0.8,
    0.9,
    1.0,
)  # starting units, as shares of the least-squares ones, for few planes: they end in other minima
FEW_PLANES = 4
PRECISE = 1024  # inputs up to which (1) is solved in float64; the ridge keeps float32 good enough for more


@final
@dataclasses.dataclass(frozen=True)
class Problem:
    """Problem (1) for every output of a layer.

    Attributes:
        gram: ``(g, k, k)``, H with its ridge.
        best: ``(g, o, k)``, the best real weights.
        weight: ``(g, o, k)``, the weights as trained.
    """

    gram: Tensor
    best: Tensor
    weight: Tensor

    @classmethod
    def of(cls, design: Tensor, targets: Tensor, weight: Tensor, ridge: float) -> "Problem":
        """Set up (1).

        Args:
            design: ``(g, p, k)`` centred binarised inputs.
            targets: ``(g, p, o)`` centred outputs of the teacher.
            weight: ``(g, o, k)``.
            ridge: added to H, as a share of the mean of its diagonal.
        """
        rows, inputs = design.shape[1:]
        kind = torch.float64 if inputs <= PRECISE else torch.float32
        gram = (design.transpose(1, 2) @ design).to(kind) / rows
        cross = (targets.transpose(1, 2) @ design).to(kind) / rows
        level = ridge * gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-20)
        gram.diagonal(dim1=1, dim2=2).add_(level.unsqueeze(1))
        cross += level[:, None, None] * weight
        best = torch.cholesky_solve(cross.transpose(1, 2), torch.linalg.cholesky(gram)).transpose(1, 2)
        return cls(gram.float(), best.float(), weight)

    def errors(self, value: Tensor) -> Tensor:
        """Return the cost ``(g * o,)`` of weights ``(g, o, k)``, without its constant."""
        rest = self.best - value
        return ((rest @ self.gram) * rest).sum(2).flatten()

    def repeated(self, times: int) -> "Problem":
        """Return the problem with every group's outputs written ``times`` times, one after the other."""
        return Problem(self.gram, self.best.repeat(1, times, 1), self.weight.repeat(1, times, 1))


@final
@dataclasses.dataclass(frozen=True)
class Fit:
    """A weight in a basis.

    Attributes:
        latent: ``(g, o, k)``, which the basis rounds to the fitted codes.
        unit: ``(t, g * o)``.
    """

    latent: Tensor
    unit: Tensor

    def odd(self, basis: WeightBasis) -> Tensor:
        """Return the odd integers ``(t, g, o, k)``."""
        odd = basis.odd(self.latent.flatten(0, 1), self.unit)
        return odd.reshape(len(odd), *self.latent.shape)

    def value(self, basis: WeightBasis) -> Tensor:
        """Return the weight ``(g, o, k)`` that the planes add up to."""
        return _weigh(self.odd(basis), self.unit)

    def where(self, better: Tensor, other: "Fit") -> "Fit":
        """Take the outputs ``better`` ``(g * o,)`` from ``other``."""
        mask = better.reshape(*self.latent.shape[:2], 1)
        return Fit(torch.where(mask, other.latent, self.latent), torch.where(better, other.unit, self.unit))


def fit_to_output(basis: WeightBasis, problem: Problem, sweeps: int) -> Fit:
    """Choose codes and units for (1): several starts, one sweep from each, and more from the best for each output.

    Coordinate descent over codes is exact per coordinate: with the others fixed, (1) is a parabola in one weight, and
    the nearest level to its minimum is the best. Units follow by least squares for fixed codes. No step makes (1)
    worse, and one start is the fit to the weights alone, so the result is at least as good as that.
    """
    starts = _starts(basis, problem)
    swept = _descend(basis, problem.repeated(len(starts)), _side_by_side(starts, problem), 1)
    errors = problem.repeated(len(starts)).errors(swept.value(basis))
    return _descend(basis, problem, _best_of(swept, errors, len(starts)), sweeps - 1)


def _starts(basis: WeightBasis, problem: Problem) -> list[Fit]:
    """Round the trained weights, and the best ones; smaller units to start from were tried and end no better."""
    return [Fit(weight, basis.fit(weight.flatten(0, 1))) for weight in (problem.weight, problem.best)]


def _side_by_side(fits: Sequence[Fit], problem: Problem) -> Fit:
    """Write the fits of every group one after the other, in the order of `Problem.repeated`."""
    groups, outputs, _ = problem.best.shape
    unit = torch.stack([fit.unit.unflatten(1, (groups, outputs)) for fit in fits], 2)
    return Fit(torch.cat([fit.latent for fit in fits], 1), unit.flatten(1))


def _best_of(fit: Fit, errors: Tensor, times: int) -> Fit:
    """Undo `_side_by_side`, keeping for each output the fit of least error."""
    groups, outputs = fit.latent.shape[0], fit.latent.shape[1] // times
    pick = errors.unflatten(0, (groups, times, outputs)).argmin(1, keepdim=True)
    latent = fit.latent.unflatten(1, (times, outputs)).take_along_dim(pick.unsqueeze(3), 1).squeeze(1)
    unit = fit.unit.unflatten(1, (groups, times, outputs)).take_along_dim(pick.unsqueeze(0), 2)
    return Fit(latent, unit.flatten(1))


def fit_to_weight(basis: WeightBasis, design: Tensor, targets: Tensor, weight: Tensor) -> Fit:
    """Round the weights to the nearest levels and scale each output to the teacher's by least squares.

    For layers with too many inputs for a Gram matrix. Shapes as in `Problem.of`.
    """
    unit = basis.fit(weight.flatten(0, 1))
    fit = Fit(weight, unit)
    given = design @ fit.value(basis).transpose(1, 2)
    power = given.square().sum(1)
    factor = torch.where(power > 0, (given * targets).sum(1) / power.clamp_min(1e-30), 1.0).clamp(0.5, 2.0)
    return Fit(weight * factor.unsqueeze(2), unit * factor.flatten())


def _weigh(odd: Tensor, unit: Tensor) -> Tensor:
    """Return ``sum_t unit[t] * odd[t]``: odd ``(t, g, o, ...)``, unit ``(t, g * o)``."""
    return (odd * unit.reshape(*odd.shape[:3], *[1] * (odd.dim() - 3))).sum(0)


def _descend(basis: WeightBasis, problem: Problem, fit: Fit, sweeps: int) -> Fit:
    best, least = fit, torch.full_like(fit.unit[0], torch.inf)
    for _ in range(sweeps):
        value = best.value(basis)
        slope = (problem.best - value) @ problem.gram
        least = torch.minimum(least, ((problem.best - value) * slope).sum(2).flatten())
        swept = Fit(_sweep(basis, problem.gram, value, slope, best.unit), best.unit)
        for tried in (_refit_units(basis, problem, swept), swept):
            errors = problem.errors(tried.value(basis))
            best, least = best.where(errors < least, tried), torch.minimum(errors, least)
    return best


def _sweep(basis: WeightBasis, gram: Tensor, value: Tensor, slope: Tensor, unit: Tensor) -> Tensor:
    """Set each weight in turn to the level nearest to its minimum, the others held.

    Args:
        basis: gives the levels.
        gram: ``(g, k, k)``.
        value: ``(g, o, k)``, the weights to start from.
        slope: ``(g, o, k)``, half the descent direction of (1) there; overwritten.
        unit: ``(t, g * o)``.

    Returns:
        ``(g, o, k)`` that rounds to the new levels: the minima found on the way.
    """
    curvature = gram.diagonal(dim1=1, dim2=2)
    latent = torch.empty_like(value)
    for start in range(0, value.shape[2], BLOCK):
        stop = min(start + BLOCK, value.shape[2])
        # Inside a block everything lies with the outputs innermost, so that each step touches adjacent memory.
        now, near = (x[:, :, start:stop].permute(2, 0, 1).contiguous() for x in (value, slope))
        local = gram[:, start:stop, start:stop].permute(1, 2, 0).unsqueeze(3).contiguous()
        inverse = (1 / curvature[:, start:stop]).T.unsqueeze(2)
        minima, change = torch.empty_like(now), torch.empty_like(now)
        for i in range(stop - start):
            torch.addcmul(now[i], near[i], inverse[i].expand_as(near[i]), out=minima[i])
            torch.sub(_round(basis, minima[i], unit), now[i], out=change[i])
            near[i + 1 :].sub_(local[i, i + 1 :] * change[i])
        latent[:, :, start:stop] = minima.permute(1, 2, 0)
        if stop < value.shape[2]:
            slope[:, :, stop:] -= change.permute(1, 2, 0) @ gram[:, start:stop, stop:]
    return latent


def _round(basis: WeightBasis, column: Tensor, unit: Tensor) -> Tensor:
    """Return the level nearest to one weight ``(g, o)`` of each output."""
    odd = basis.odd(column.reshape(-1, 1), unit)
    return (odd[:, :, 0] * unit).sum(0).reshape(column.shape)


def _refit_units(basis: WeightBasis, problem: Problem, fit: Fit) -> Fit:
    """Solve (1) for the units with the codes held: a system of t equations for each output."""
    odd = fit.odd(basis)
    turned = odd @ problem.gram
    left = torch.einsum("tgok,sgok->gots", turned, odd).double()
    right = torch.einsum("tgok,gok->got", turned, problem.best).double()
    left.diagonal(dim1=2, dim2=3).add_(1e-9 * left.diagonal(dim1=2, dim2=3).mean(-1, keepdim=True).clamp_min(1e-30))
    unit = torch.linalg.solve(left, right.unsqueeze(3)).squeeze(3).permute(2, 0, 1).flatten(1).float()
    free = unit.new_tensor([planes == 0 for planes in basis.terms]).bool().unsqueeze(1)  # offsets have any sign
    unit = torch.where(free | (unit > 0), unit, fit.unit)
    return Fit(_weigh(odd, unit), unit)
