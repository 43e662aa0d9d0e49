"""Piecewise approximation: weights and activations cut into pieces, each with a value of its own."""

import dataclasses
from typing import final

import torch
from torch import Tensor

from binarize.schemes.base import Levels, check_bits, even_sample, rows
from binarize.schemes.thermometer import Pieces, ThermometerActivation, ThermometerWeight, between, to_levels

__all__ = ["PiecewiseActivation", "PiecewiseWeight"]

SPREAD = (1.2, 1.2, 1.2, 0.8, 0.8, 0.7, 0.65, 0.6)  # first distance of endpoints for 1, 2, ... of them, in deviations
ROUNDS = 20
EDGES = 256  # candidates of each kind for the endpoints of an activation
SAMPLES = 1 << 18


@final
@dataclasses.dataclass(frozen=True)
class PiecewiseWeight(ThermometerWeight):
    """``pieces`` endpoints cut the weights of an output; each piece has its mean as value, the centre piece 0.

    The endpoints start symmetric about the mean, at fixed multiples of the deviation, and alternate with the means:
    each weight then takes the nearest level, which is also how calibration rounds. There is a centre piece for an even
    number of endpoints; it is 0 after the fit wherever 0 lies inside it, and learning may move it.

    Mean, deviation and values are those of each output, not of the whole layer as in the paper: they fold into the
    scales per output that every kernel applies anyway, cost nothing, and in depthwise convolutions, whose outputs
    differ by orders of magnitude, values of the whole layer would round small outputs to 0.

    Attributes:
        pieces: endpoints, 1 to 8; as many pieces are not the centre.

    Reference:
        PA-Net, ECAI 2020, arXiv:2008.03520; which endpoints it uses is not public (docs/methods.md).
    """

    pieces: int = 4

    def __post_init__(self) -> None:
        check_bits("the number of pieces of a weight", self.pieces)

    @property
    def terms(self) -> tuple[int, ...]:
        """One term of one plane for each endpoint, and the offset."""
        return (1,) * self.pieces + (0,)

    @property
    def has_offset(self) -> bool:
        """The levels need not lie symmetric about 0."""
        return True

    def fit(self, weight: Tensor) -> Tensor:
        """Return ``(pieces + 1, o)``: half the differences of the levels, and the middle of the outer two."""
        pieces = Pieces.of(rows(weight.detach()))
        mean, spread = pieces.values.mean(1, keepdim=True), pieces.values.std(1, keepdim=True, correction=0)
        places = torch.arange(self.pieces + 1, device=weight.device) - self.pieces / 2
        levels = mean + spread * SPREAD[self.pieces - 1] * places
        for _ in range(ROUNDS):
            thresholds = between(levels)
            levels = pieces.means(thresholds, levels)
            if self.pieces % 2 == 0:
                _clear_centre(levels, thresholds)
        unit = torch.cat([levels.diff(dim=1) / 2, (levels[:, :1] + levels[:, -1:]) / 2], 1)
        return unit.T.to(weight.dtype).contiguous()


def _clear_centre(levels: Tensor, thresholds: Tensor) -> None:
    """Set the centre of levels ``(r, m + 1)`` to 0 where 0 lies between the thresholds ``(r, m)`` around it."""
    middle = thresholds.shape[1] // 2
    inside = (thresholds[:, middle - 1] <= 0) & (thresholds[:, middle] > 0)
    levels[inside, middle] = 0.0


@final
@dataclasses.dataclass(frozen=True)
class PiecewiseActivation(ThermometerActivation):
    """``A = low + sum_j d_j [A >= v_j]``: learnt endpoints v and coefficients; the first piece is 0 after a ReLU.

    Attributes:
        pieces: endpoints, 1 to 8.

    Reference:
        PA-Net, ECAI 2020, arXiv:2008.03520; Max, Quantizing for Minimum Distortion,
        IRE Transactions on Information Theory, 1960 (the fit).
    """

    pieces: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bits("the number of pieces of an activation", self.pieces)

    @property
    def terms(self) -> tuple[int, ...]:
        """One term of one digit plane for each endpoint."""
        return (1,) * self.pieces

    def fit(self, samples: Tensor) -> Levels:
        """Return the pieces of least squared error: the best of all choices of candidates, then refined in turn."""
        x = even_sample(samples, SAMPLES)
        x = x if x.numel() else x.new_zeros(1)
        pieces = Pieces.of(x.unsqueeze(0))
        from_zero = bool(x.min() == 0)
        thresholds = _best_edges(pieces, self.pieces, from_zero).unsqueeze(0)
        levels = _levels(pieces, thresholds, from_zero)
        least = pieces.error(thresholds, levels)
        for _ in range(ROUNDS):
            tried = between(levels)
            found = _levels(pieces, tried, from_zero)
            error = pieces.error(tried, found)
            if not bool(error < least):
                break
            thresholds, levels, least = tried, found, error
        return to_levels(levels[0, 0], levels[0].diff(), thresholds[0])


def _levels(pieces: Pieces, thresholds: Tensor, from_zero: bool) -> Tensor:
    """Return the best levels ``(1, m + 1)``; an empty piece, which only lies above all values, gets its lower end."""
    levels = pieces.means(thresholds, torch.cat([pieces.values[:, :1], thresholds], 1))
    if from_zero:
        levels[:, 0] = 0.0
    return levels


def _best_edges(pieces: Pieces, count: int, from_zero: bool) -> Tensor:
    """Choose ``count`` thresholds of least squared error from candidates by dynamic programming, ``(count,)``.

    Candidates are values at even ranks and at even distances, and ``count`` more above all values, for samples that
    take fewer values than there are pieces. The best choice of j + 1 of them includes a best choice of j.
    """
    edges = _candidates(pieces.values[0], count)
    ends = torch.searchsorted(pieces.values[0], torch.cat([edges.new_full((1,), -torch.inf), edges]))
    ends = torch.cat([ends, ends.new_full((1,), pieces.values.shape[1])])
    number, total, square = ends.double(), pieces.below[0][ends], pieces.squares[0][ends]
    spread = _between_all(square) - _between_all(total).square() / _between_all(number).clamp_min(1)
    cost = torch.where(_between_all(number) >= 0, spread.clamp_min(0), torch.inf).triu(1)
    cost[cost.new_ones(cost.shape, dtype=torch.bool).tril()] = torch.inf
    least = square - square[0] if from_zero else cost[0]
    least = torch.where(torch.arange(len(ends)) > 0, least, torch.inf)
    came_from = []
    for _ in range(count):
        least, start = (least.unsqueeze(1) + cost).min(0)
        came_from.append(start)
    at, chosen = len(ends) - 1, []
    for start in reversed(came_from):
        at = int(start[at])
        chosen.append(float(edges[at - 1]))
    return edges.new_tensor(chosen[::-1])


def _candidates(values: Tensor, count: int) -> Tensor:
    """Return ascending thresholds for sorted ``values`` ``(k,)``: every one leaves some value below it."""
    low, high = values[0], values[-1]
    gap = max(float(high - low), float(high.abs()), 1.0)
    ranks = torch.linspace(0, len(values) - 1, EDGES).long()
    inside = torch.cat([values[ranks], torch.linspace(float(low), float(high), EDGES, dtype=values.dtype)])
    above = high + gap * torch.arange(1, count + 1, dtype=values.dtype) / count
    candidates: Tensor = torch.cat([inside[(inside > low) & (inside <= high)], above]).unique()
    return candidates


def _between_all(sums: Tensor) -> Tensor:
    """Return ``sums[j] - sums[i]`` at ``(i, j)``."""
    return sums.unsqueeze(0) - sums.unsqueeze(1)
