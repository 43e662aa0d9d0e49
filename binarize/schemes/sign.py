"""One plane: XNOR-Net's scaled sign of weights, and the two-level activation that a trained network needs."""

import dataclasses
from typing import Literal, final

import torch
from torch import Tensor

from binarize.schemes.base import Levels, WeightBasis, even_sample, rows, sign
from binarize.schemes.estimators import CodedWeight
from binarize.schemes.thermometer import ThermometerActivation, to_levels

__all__ = ["SignActivation", "SignWeight"]


@final
@dataclasses.dataclass(frozen=True)
class SignWeight(WeightBasis):
    """``W = alpha_o * sign(W)`` with ``alpha_o = mean |W_o|``, the least-squares scale for these signs.

    Reference:
        Rastegari et al., XNOR-Net, ECCV 2016, arXiv:1603.05279, equation 6.
    """

    @property
    def terms(self) -> tuple[int, ...]:
        """One term of one plane."""
        return (1,)

    def fit(self, weight: Tensor) -> Tensor:
        """Return ``(1, o)``: the mean absolute weight of each output."""
        return rows(weight).abs().mean(1).unsqueeze(0)

    def odd(self, weight: Tensor, unit: Tensor) -> Tensor:
        """Return ``(1, *weight.shape)`` of -1 and +1."""
        return sign(weight).unsqueeze(0)

    def __call__(self, weight: Tensor, unit: Tensor) -> Tensor:
        """Return ``unit * sign(weight)``; the weight gets the identity as gradient."""
        value: Tensor = CodedWeight.apply(weight, unit, self.odd, None)
        return value


@final
@dataclasses.dataclass(frozen=True)
class SignActivation(ThermometerActivation):
    """``A = low + step * [A >= threshold]``: a sign with learnt shift, scale and offset.

    XNOR-Net's ``sign(x)`` is ``low = -1, step = 2, threshold = 0``. After a ReLU that would be the constant +1, so the
    three numbers are fitted: the two-level quantiser of least squared error (Otsu's threshold).

    Attributes:
        shift: one threshold for the ``tensor``, or one learnt for each ``channel`` (Liu et al., ReActNet, ECCV 2020,
            arXiv:2003.03488, equation 2). All channels start at the same: with two common levels no other is better.
    """

    shift: Literal["tensor", "channel"] = "tensor"

    @property
    def terms(self) -> tuple[int, ...]:
        """One term of one digit plane."""
        return (1,)

    @property
    def is_per_channel(self) -> bool:
        """Whether each channel has a shift of its own."""
        return self.shift == "channel"

    def fit(self, samples: Tensor) -> Levels:
        """Return the split of the sorted samples that leaves the least squared error about its two means."""
        x = even_sample(samples, 1 << 18).double().sort().values
        n = x.numel()
        if n == 0 or bool(x[0] == x[-1]):
            return Levels(torch.tensor(0.0), torch.tensor([1.0]), torch.zeros(1, 1))
        below = x.cumsum(0)[:-1]
        count = torch.arange(1, n, dtype=torch.float64)
        gain = below.square() / count + (below[-1] + x[-1] - below).square() / (n - count)
        gain[x[1:] == x[:-1]] = -1.0  # equal values cannot be told apart by a threshold
        at = int(gain.argmax())
        low, high = x[: at + 1].mean(), x[at + 1 :].mean()
        return to_levels(low, (high - low).reshape(1), ((x[at] + x[at + 1]) / 2).reshape(1))
