"""Sign planes with real scales: residual binarisation, refined until neither signs nor scales can be improved."""

import dataclasses
from typing import final

import torch
from torch import Tensor

from binarize.schemes.base import WeightBasis, check_bits, rows, sign
from binarize.schemes.encoding import EncodingWeight
from binarize.schemes.estimators import CodedWeight

__all__ = ["ResidualWeight", "least_squares_units"]

ROUNDS = 8  # of signs and scales in turn
COMPARED, COMPARED_NARROW = 5, 3  # planes up to which comparing is quicker than searching; for few weights an output
SAMPLE = 1024  # weights of an output that the rounds see


@final
@dataclasses.dataclass(frozen=True)
class ResidualWeight(WeightBasis):
    """``W = sum_i alpha_i B_i``: scales by joint least squares, signs those of the nearest sum.

    The paper takes ``B_i = sign(W - sum_{j<i} alpha_j B_j)``, one plane after the other. That is the nearest sum where
    each scale is at least the sum of the smaller ones, and further away elsewhere. For scales that are fitted to a
    layer's output, in the metric of its inputs, see `binarize.calibration.fit`.

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

    @property
    def steps(self) -> int:
        """Every sign is free of the others."""
        return (1 << self.branches) - 1

    def fit(self, weight: Tensor) -> Tensor:
        """Return ``(branches, o)``: signs and scales in turn, from two starts; the best for each output wins.

        Signs given scales are those of the nearest of the ``2 ** branches`` sums, scales given signs are least squares:
        no step makes the error larger. The starts are the greedy scales of the paper, and powers of two, so that the
        result is no worse than an encoding of as many bits. The rounds see a sample of long rows.
        """
        flat = rows(weight.detach()).float()
        few = flat[:, :: -(-flat.shape[1] // SAMPLE)]
        powers = 2.0 ** torch.arange(self.branches - 1, -1, -1, device=flat.device).unsqueeze(1)
        starts = (greedy_units(flat, self.branches), EncodingWeight(self.branches).fit(flat) * powers)
        tried = torch.stack([*starts, *(self._alternated(few, start) for start in starts)])
        errors = torch.stack([error(flat, unit, self.odd(flat, unit)) for unit in tried])
        best = tried.gather(0, errors.argmin(0).expand(1, self.branches, -1))[0]
        return best.to(weight.dtype)

    def _alternated(self, flat: Tensor, unit: Tensor) -> Tensor:
        for _ in range(ROUNDS):
            unit = least_squares_units(flat, self.odd(flat, unit)).clamp_min(0).sort(0, descending=True).values
        return unit

    def odd(self, weight: Tensor, unit: Tensor) -> Tensor:
        """Return the signs ``(branches, *weight.shape)`` whose sum with the given scales is nearest to each weight."""
        flat = rows(weight)
        sums = _sums_of_last_plane(unit)
        is_narrow = flat.shape[1] < sums.shape[1]
        if self.branches <= (COMPARED_NARROW if is_narrow else COMPARED):
            return _signs_by_comparison(flat, sums, self.branches).reshape(-1, *weight.shape)
        levels, size = sums.abs(), flat.abs().contiguous()
        if is_narrow:
            nearest = (size.unsqueeze(2) - levels.unsqueeze(1)).abs().argmin(2)
        else:
            ascending, order = levels.sort(1)
            middle = (ascending[:, 1:] + ascending[:, :-1]) / 2
            nearest = order.gather(1, torch.searchsorted(middle, size))
        turned = sign(sums).gather(1, nearest) * sign(flat)
        found = torch.stack([(1 - 2 * (nearest >> plane & 1)) * turned for plane in range(self.branches)])
        return found.reshape(-1, *weight.shape)

    def __call__(self, weight: Tensor, unit: Tensor) -> Tensor:
        """Return the sum of the scaled signs; the weight gets the identity as gradient."""
        value: Tensor = CodedWeight.apply(weight, unit, self.odd, None)
        return value


def _signs_by_comparison(flat: Tensor, sums: Tensor, branches: int) -> Tensor:
    """Return the signs ``(t, o, k)`` of the sum nearest to each of ``flat`` ``(o, k)``, of ``(o, 2 ** (t - 1))`` sums.

    Going up through the sizes of the sums, a plane's sign changes or not where the next one becomes the nearest: few
    planes have few such places, and comparing with each is quicker than a search. Training does this at every step.
    """
    ascending, order = sums.abs().sort(1)
    middle = (ascending[:, 1:] + ascending[:, :-1]) / 2
    turned = sign(sums).gather(1, order)
    size, outer = flat.detach().abs(), sign(flat)
    above = [torch.gt(size, at, out=torch.empty_like(size)) for at in middle.detach().T.unsqueeze(2)]
    found = torch.empty(branches, *flat.shape, dtype=flat.dtype, device=flat.device)
    for plane, value in enumerate(found):
        table = (1 - 2 * (order >> plane & 1)) * turned
        value.copy_(table[:, :1].expand_as(flat))
        for higher, change in zip(above, table.diff(dim=1).T.unsqueeze(2), strict=True):
            value.addcmul_(higher, change)
        value.mul_(outer)
    return found


def _sums_of_last_plane(unit: Tensor) -> Tensor:
    """Return all sums of scales ``(t, o)`` in which the last has a plus, ``(o, 2 ** (t - 1))``; bit j negates scale j.

    The other half of the sums are their opposites.
    """
    choices = torch.arange(2 ** (len(unit) - 1), device=unit.device)
    negated = choices.unsqueeze(0) >> torch.arange(len(unit), device=unit.device).unsqueeze(1) & 1
    signs = (1 - 2 * negated).to(unit.dtype)
    return (unit.unsqueeze(2) * signs.unsqueeze(1)).sum(0)  # no matmul: autocast would round it, in forward alone


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
    planes = signs.permute(1, 0, 2)
    gram = (planes @ planes.transpose(1, 2)).double()  # whole numbers, exact in float32
    right = (planes @ flat.unsqueeze(2)).squeeze(2).double()
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device) * (1e-6 * flat.shape[1])
    units: Tensor = torch.linalg.solve(gram + eye, right)
    return units.T.to(flat.dtype)


def error(flat: Tensor, unit: Tensor, odd: Tensor) -> Tensor:
    """Return the squared error ``(o,)`` of each output."""
    return (flat - (unit.unsqueeze(2) * odd).sum(0)).square().sum(1)
