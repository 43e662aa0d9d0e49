"""The {-1,+1} encoding decomposition: the bit planes of a uniform k-bit code are the binary branches."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import final

import torch
from torch import Tensor

from binarize.schemes.base import ActivationBasis, Levels, WeightBasis, check_bits, even_sample, per_output, rows
from binarize.schemes.estimators import CodedActivation, CodedWeight, code_of

__all__ = ["EncodingActivation", "EncodingWeight"]

BLOCK = 1 << 14  # weights searched together: they stay in the cache, and below the size at which torch spins up threads
CLIPS = 14  # candidates of a clip search; refined by alternation afterwards
ROUNDS = 5


@final
@dataclasses.dataclass(frozen=True)
class EncodingWeight(WeightBasis):
    """``W = unit_o * odd``, odd integers in ``[-(2**bits - 1), 2**bits - 1]``: one term of ``bits`` planes.

    With ``c = (odd + 2**bits - 1) / 2`` this is ``q = 2 c / (2**bits - 1) - 1`` scaled by the clip
    ``unit * (2**bits - 1)``; bit m of c is plane m. Zero is not representable.

    Reference:
        Sun et al., Multi-Precision Quantized Neural Networks via Encoding Decomposition of {-1,+1}, AAAI 2019,
        arXiv:1905.13389, equations 3 to 15.
    """

    bits: int = 4

    def __post_init__(self) -> None:
        check_bits("the bits of a weight", self.bits)

    @property
    def terms(self) -> tuple[int, ...]:
        """One term of ``bits`` planes."""
        return (self.bits,)

    @property
    def limit(self) -> int:
        """The largest odd integer."""
        return (1 << self.bits) - 1

    def fit(self, weight: Tensor) -> Tensor:
        """Return ``(1, o)``: the unit of least squared error, by search over clips and alternating least squares."""
        flat = rows(weight.detach()).float()
        blocks = flat.split(max(BLOCK // flat.shape[1], 1))
        return torch.cat([self._fit_rows(block) for block in blocks]).unsqueeze(0).to(weight.dtype)

    def _fit_rows(self, flat: Tensor) -> Tensor:
        top = flat.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny)
        unit, least = top / self.limit, torch.full_like(top, torch.inf)
        smallest = 0.25 if self.bits > 1 else 0.05
        for share in torch.linspace(smallest, 1.0, CLIPS).tolist():
            unit, least = self._better(flat, top * share / self.limit, unit, least)
        for _ in range(ROUNDS):
            odd = self.odd(flat, unit.unsqueeze(0))[0]
            unit, least = self._better(flat, (flat * odd).sum(1) / odd.square().sum(1), unit, least)
        return unit

    def _better(self, flat: Tensor, tried: Tensor, unit: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
        tried = tried.clamp_min(torch.finfo(torch.float32).tiny)
        value = self.odd(flat, tried.unsqueeze(0))[0].mul_(tried.unsqueeze(1))
        now = value.sub_(flat).square_().sum(1)
        return torch.where(now < least, tried, unit), torch.minimum(now, least)

    def odd(self, weight: Tensor, unit: Tensor) -> Tensor:
        """Return the nearest odd integers ``(1, *weight.shape)``."""
        ratio = weight.detach() / per_output(unit[0].detach(), weight)
        code = ratio.add_(self.limit + 1).mul_(0.5).floor_().clamp_(0, self.limit)
        return code.mul_(2).sub_(self.limit).unsqueeze(0)

    def __call__(self, weight: Tensor, unit: Tensor) -> Tensor:
        """Return the nearest level of each weight; gradients stop outside the clip."""
        value: Tensor = CodedWeight.apply(weight, unit, self.odd, float(self.limit))
        return value


@final
@dataclasses.dataclass(frozen=True)
class EncodingActivation(ActivationBasis):
    """``A = low + step * c``, c in ``[0, 2**bits - 1]``: one term of ``bits`` digit planes.

    ``low = 0`` is the unsigned code of a ReLU's output, in which zero is exact; ``low = -clip`` is the symmetric code
    of the paper; anything between serves activations such as SiLU's.

    Reference:
        Sun et al., arXiv:1905.13389, equation 15 (symmetric); Zhou et al., DoReFa-Net, arXiv:1606.06160, section 2.3
        (unsigned).
    """

    bits: int = 4

    def __post_init__(self) -> None:
        check_bits("the bits of an activation", self.bits)

    @property
    def terms(self) -> tuple[int, ...]:
        """One term of ``bits`` digit planes."""
        return (self.bits,)

    @property
    def top(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    def fit(self, samples: Tensor) -> Levels:
        """Return ``low`` and ``step`` of least squared error; ``low`` is 0 where no sample is negative."""
        x = even_sample(samples, 1 << 16)
        if x.numel() == 0 or bool((x == 0).all()):
            return Levels(torch.tensor(0.0), torch.tensor([1.0]))
        smallest, largest = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
        low, high = smallest, largest
        for _ in range(3 if smallest < 0 else 1):
            high = self._search(x, high, largest, partial(_with_low, low)) if largest > 0 else high
            low = self._search(x, low, smallest, partial(_with_high, high)) if smallest < 0 else low
        return self._refined(x, low, high)

    def _search(self, x: Tensor, now: float, end: float, ends: Callable[[float], tuple[float, float]]) -> float:
        best, least = now, self._error(x, *ends(now))
        for share in torch.linspace(0.04, 1.0, 3 * CLIPS + 7).tolist():
            error = self._error(x, *ends(end * share))
            if error < least:
                best, least = end * share, error
        return best

    def _error(self, x: Tensor, low: float, high: float) -> float:
        step = x.new_tensor(max((high - low) / self.top, 1e-30))
        offset = x.new_tensor(low)
        return float((x - (offset + step * code_of(x, offset, step, self.top))).square().mean())

    def _refined(self, x: Tensor, low: float, high: float) -> Levels:
        best = (low, high)
        least = self._error(x, *best)
        for _ in range(ROUNDS):
            offset, step = x.new_tensor(best[0]), x.new_tensor((best[1] - best[0]) / self.top)
            code = code_of(x, offset, step, self.top)
            if low == 0.0:
                new_low, new_step = 0.0, float((x * code).sum() / code.square().sum().clamp_min(1e-30))
            else:
                spread = (code - code.mean()).square().sum().clamp_min(1e-30)
                new_step = float(((code - code.mean()) * x).sum() / spread)
                new_low = float(x.mean() - new_step * code.mean())
            error = self._error(x, new_low, new_low + new_step * self.top) if new_step > 0 else torch.inf
            if error >= least:
                break
            best, least = (new_low, new_low + new_step * self.top), error
        return Levels(torch.tensor(best[0]), torch.tensor([(best[1] - best[0]) / self.top]))

    def codes(self, x: Tensor, levels: Levels) -> Tensor:
        """Return ``(1, *x.shape)``: whole numbers from 0 to ``2**bits - 1``."""
        return code_of(x, levels.low, levels.step[0], self.top).unsqueeze(0)

    def __call__(self, x: Tensor, levels: Levels) -> Tensor:
        """Return the nearest level of each element; gradients stop outside the range."""
        value: Tensor = CodedActivation.apply(x, levels.low, levels.step[0], self.top)
        return value


def _with_low(low: float, high: float) -> tuple[float, float]:
    return low, high


def _with_high(high: float, low: float) -> tuple[float, float]:
    return low, high
