"""Signs of shifted copies: every plane is the sign of the tensor after its own shift."""

import dataclasses
from typing import final

import torch
from torch import Tensor

from binarize.schemes.base import Levels, check_bits, even_sample, rows, sign
from binarize.schemes.residual import least_squares_units
from binarize.schemes.thermometer import Pieces, ThermometerActivation, ThermometerWeight, to_levels

__all__ = ["ShiftedActivation", "ShiftedWeight"]

SAMPLES = 1 << 16
SHARES = 24  # candidates of the first and of the last threshold


@final
@dataclasses.dataclass(frozen=True)
class ShiftedWeight(ThermometerWeight):
    """``W = sum_i alpha_i B_i``: alpha by least squares for ``B_i = sign(W - mean + u_i std)``, u_i evenly in [-1, 1].

    The paper's planes are fixed by the statistics of the weights, so that a weight keeps its planes when alpha is
    learnt. Here a weight takes the nearest of the sums that alpha allows: the same planes in the same order, turning
    where two sums are equally near, with an error that is never larger. Scales are per output, and not negative.

    Attributes:
        branches: planes, 1 to 8.

    Reference:
        Lin et al., Towards Accurate Binary Convolutional Neural Network, NIPS 2017, arXiv:1711.11294, section 3.1.
    """

    branches: int = 5

    def __post_init__(self) -> None:
        check_bits("the number of shifted planes", self.branches)

    @property
    def terms(self) -> tuple[int, ...]:
        """One term of one plane for each shift."""
        return (1,) * self.branches

    @property
    def has_offset(self) -> bool:
        """The paper's sum has none."""
        return False

    def fit(self, weight: Tensor) -> Tensor:
        """Return ``(branches, o)``, from the largest shift to the smallest: least squares for the paper's planes."""
        flat = rows(weight.detach()).float()
        unit = least_squares_units(flat, self.shifted_signs(flat)).clamp_min(0).flip(0)
        return unit.to(weight.dtype)

    def shifted_signs(self, flat: Tensor) -> Tensor:
        """Return the paper's planes ``(branches, o, k)`` of ``flat`` ``(o, k)``; one plane alone is not shifted."""
        shifts = torch.linspace(-1, 1, self.branches) if self.branches > 1 else torch.zeros(1)
        centred, spread = flat - flat.mean(1, keepdim=True), flat.std(1, keepdim=True, correction=0)
        return torch.stack([sign(centred + shift * spread) for shift in shifts.tolist()])


@final
@dataclasses.dataclass(frozen=True)
class ShiftedActivation(ThermometerActivation):
    """``A = low + sum_j 2 beta_j [A >= v_j]``: learnt shifts and scales, evenly spaced shifts at first.

    The paper's sum ``sum_j beta_j H_j`` of signs has ``low = -sum_j beta_j``; a network that was trained with ReLUs
    needs its zero, so ``low`` is learnt by itself. The shifts start evenly spaced in the range of least squared error,
    the scales at least squares for them, which are differences of conditional means.

    Attributes:
        branches: planes, 1 to 8.

    Reference:
        Lin et al., Towards Accurate Binary Convolutional Neural Network, NIPS 2017, arXiv:1711.11294, section 3.2.
    """

    branches: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bits("the number of shifted planes", self.branches)

    @property
    def terms(self) -> tuple[int, ...]:
        """One term of one digit plane for each shift."""
        return (1,) * self.branches

    def fit(self, samples: Tensor) -> Levels:
        """Return evenly spaced thresholds and the levels of least squared error between them."""
        x = even_sample(samples, SAMPLES)
        x = x if x.numel() else x.new_zeros(1)
        low, span = x.min().double(), (x.max() - x.min()).double()
        span = torch.where(span > 0, span, torch.ones_like(span))
        share = torch.linspace(0, 1, SHARES + 1, dtype=torch.float64)[1:]
        first, last = (part.flatten() for part in torch.meshgrid(share, share, indexing="ij"))
        first, last = first[first <= last], last[first <= last]
        steps = torch.linspace(0, 1, self.branches, dtype=torch.float64)
        thresholds = low + span * (first.unsqueeze(1) + (last - first).unsqueeze(1) * steps)
        levels, error = self._judged(x, thresholds)
        best = int(error.argmin())
        heights = levels[best].diff().clamp_min(1e-6 * float(span))
        return to_levels(levels[best, 0], heights, thresholds[best])

    @staticmethod
    def _judged(x: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
        """Return the best levels ``(r, m + 1)`` for candidates ``(r, m)``, and their errors ``(r,)``."""
        pieces = Pieces.of(x.unsqueeze(0))
        least = pieces.values[:, :1].expand(len(thresholds), 1)
        levels = pieces.means(thresholds, torch.cat([least, thresholds], 1))
        if bool(x.min() == 0):
            levels[:, 0] = 0.0
        return levels, pieces.error(thresholds, levels)
