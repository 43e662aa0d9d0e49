"""Weights fitted to a layer's output instead of to the weights themselves, in closed form and by descent over codes.

With binarised inputs x (rows of a design matrix) and the teacher's outputs y, both centred, a quantised weight v costs

    |X v - y|^2  =  (w - v)^T H (w - v) + constant,    H = X^T X,    w = H^{-1} X^T y                              (1)

so the best real weight w corrects what binarised inputs lost, and rounding it is a lattice problem in the metric H. A
multiple of the identity is added to H and the original weight to X^T y in proportion, so that what the rows do not
determine stays as it was trained. The bias then takes up the means.

Shape letters: g convolution groups, p rows, k inputs per output, o outputs (of one group here), t weight terms.
"""

import dataclasses
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
        rows = design.shape[1]
        gram = (design.transpose(1, 2) @ design).double() / rows
        cross = (targets.transpose(1, 2) @ design).double() / rows
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
    """Choose codes and units for (1): several starts, each descended on, and the best of them for each output.

    Coordinate descent over codes is exact per coordinate: with the others fixed, (1) is a parabola in one weight, and
    the nearest level to its minimum is the best. Units follow by least squares for fixed codes. No step makes (1)
    worse, and one start is the fit to the weights alone, so the result is at least as good as that.
    """
    groups, outputs, inputs = problem.best.shape
    shares = SHRINK if basis.count <= FEW_PLANES else (1.0,)
    on_weight = basis.fit(problem.weight.flatten(0, 1))
    on_best = basis.fit(problem.best.flatten(0, 1))
    latents = [problem.weight] + [problem.best] * len(shares)
    units = [on_weight] + [on_best * share for share in shares]
    starts = Fit(
        torch.stack(latents, 1).flatten(1, 2),
        torch.stack([unit.reshape(-1, groups, outputs) for unit in units], 2).reshape(len(on_best), -1),
    )
    fitted = _descend(basis, problem.repeated(len(units)), starts, sweeps)
    errors = problem.repeated(len(units)).errors(fitted.value(basis)).reshape(groups, len(units), outputs)
    pick = errors.argmin(1)
    latent = fitted.latent.reshape(groups, len(units), outputs, inputs)
    unit = fitted.unit.reshape(-1, groups, len(units), outputs)
    index = pick[None, :, None].expand(len(unit), -1, -1, -1)
    return Fit(latent.take_along_dim(pick[:, None, :, None], 1).squeeze(1), unit.take_along_dim(index, 2).flatten(1))


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
    best = fit
    least = problem.errors(best.value(basis))
    for _ in range(sweeps):
        swept = _sweep(basis, problem, best)
        for tried in (swept, _refit_units(basis, problem, swept)):
            errors = problem.errors(tried.value(basis))
            best, least = best.where(errors < least, tried), torch.minimum(errors, least)
    return best


def _sweep(basis: WeightBasis, problem: Problem, fit: Fit) -> Fit:
    """Set each weight in turn to the level nearest to its minimum, the others held."""
    gram, curvature = problem.gram, problem.gram.diagonal(dim1=1, dim2=2)
    value, latent = fit.value(basis), fit.latent.clone()
    slope = (problem.best - value) @ gram
    for start in range(0, value.shape[2], BLOCK):
        stop = min(start + BLOCK, value.shape[2])
        change = torch.zeros_like(value[:, :, start:stop])
        near = slope[:, :, start:stop].clone()
        for i in range(start, stop):
            latent[:, :, i] = value[:, :, i] + near[:, :, i - start] / curvature[:, None, i]
            nearest = _round(basis, latent[:, :, i], fit.unit)
            change[:, :, i - start] = nearest - value[:, :, i]
            near -= change[:, :, i - start, None] * gram[:, None, i, start:stop]
        slope -= change @ gram[:, start:stop]
    return Fit(latent, fit.unit)


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
    unit = torch.where(unit > 0, unit, fit.unit)
    return Fit(_weigh(odd, unit), unit)
