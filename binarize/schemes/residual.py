"""Planes that each take the sign of what the planes before them left over, with real scales."""

import dataclasses
from typing import final

import torch
from torch import Tensor

from binarize.schemes.base import WeightBasis, check_bits, per_output, rows, sign
from binarize.schemes.estimators import CodedWeight

__all__ = ["ResidualWeight", "least_squares_units"]

ROUNDS = 4  # alternating refinement; the error changes by less than 1 % after the third round


@final
@dataclasses.dataclass(frozen=True)
class ResidualWeight(WeightBasis):
    """``W = sum_i alpha_i B_i`` with ``B_i = sign(W - sum_{j<i} alpha_j B_j)``, scales by joint least squares.

    Attributes:
        branches: planes, 1 to 8, each with its own scale per output.

    Reference:
        Li et al., Performance Guaranteed Network Acceleration via High-Order Residual Quantization, ICCV 2017 (signs);
        Zhuang et al., Structured Binary Neural Networks, CVPR 2019, arXiv:1811.10413 (sums of binary bases).
    """

    branches: int = 2

    def __post_init__(self) -> None:
        check_bits("the number of residual planes", self.branches)

    @property
    def terms(self) -> tuple[int, ...]:
        """One term of one plane for each branch."""
        return (1,) * self.branches

    def fit(self, weight: Tensor) -> Tensor:
        """Return ``(branches, o)``: greedy scales, then least squares and greedy signs in turn; the best round wins."""
        flat = rows(weight.detach()).float()
        unit = greedy_units(flat, self.branches)
        best, least = unit, error(flat, unit, self.odd(flat, unit))
        for _ in range(ROUNDS):
            unit = least_squares_units(flat, self.odd(flat, unit)).clamp_min(0).sort(0, descending=True).values
            now = error(flat, unit, self.odd(flat, unit))
            best = torch.where(now < least, unit, best)
            least = torch.minimum(now, least)
        return best.to(weight.dtype)

    def odd(self, weight: Tensor, unit: Tensor) -> Tensor:
        """Return the greedy signs ``(branches, *weight.shape)`` for the given scales."""
        rest, signs = weight, []
        for scale in unit:
            signs.append(sign(rest))
            rest = rest - per_output(scale, weight) * signs[-1]
        return torch.stack(signs)

    def __call__(self, weight: Tensor, unit: Tensor) -> Tensor:
        """Return the sum of the scaled signs; the weight gets the identity as gradient."""
        value: Tensor = CodedWeight.apply(weight, unit, self.odd(weight.detach(), unit.detach()), None)
        return value


def greedy_units(flat: Tensor, branches: int) -> Tensor:
    """Return ``(branches, o)``: each scale is the mean absolute value of what is left of ``flat`` ``(o, k)``."""
    rest, units = flat, []
    for _ in range(branches):
        units.append(rest.abs().mean(1))
        rest = rest - units[-1].unsqueeze(1) * sign(rest)
    return torch.stack(units)


def least_squares_units(flat: Tensor, signs: Tensor) -> Tensor:
    """Solve ``(B^T B + d I) alpha = B^T w`` for every output: signs ``(t, o, k)``, flat ``(o, k)`` to ``(t, o)``.

    d = 1e-6 of the diagonal keeps the system solvable where two planes coincide.
    """
    planes = signs.permute(1, 0, 2).double()
    gram = planes @ planes.transpose(1, 2)
    right = (planes @ flat.double().unsqueeze(2)).squeeze(2)
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device) * (1e-6 * flat.shape[1])
    units: Tensor = torch.linalg.solve(gram + eye, right)
    return units.T.to(flat.dtype)


def error(flat: Tensor, unit: Tensor, odd: Tensor) -> Tensor:
    """Return the squared error ``(o,)`` of each output."""
    return (flat - (unit.unsqueeze(2) * odd).sum(0)).square().sum(1)
