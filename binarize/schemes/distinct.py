"""Splits of one tensor that differ from branch to branch."""

import torch
from torch import Tensor
from torch.nn import functional as F

from binarize.schemes.base import Levels, even_sample
from binarize.schemes.piecewise import PiecewiseActivation
from binarize.schemes.sign import SignActivation

__all__ = ["distinct_splits"]

MOST_PIECES = 8


def distinct_splits(samples: Tensor, count: int) -> list[Levels]:
    """Return ``count`` different two-level quantisers of the samples, each a fair one and together finer than one.

    The thresholds lie half way between the best single split and those of the best quantiser of ``count + 1`` levels:
    best splits alone make branches that err alike, outer thresholds alone make branches that see next to nothing. Each
    split has the means of its two sides. The middle one comes first.
    """
    x = even_sample(samples, 1 << 16).double().sort().values
    best, joint = SignActivation().fit(samples), PiecewiseActivation(min(count, MOST_PIECES)).fit(samples)
    if best.threshold is None or joint.threshold is None or x.numel() == 0 or bool(x[0] == x[-1]):
        return [best] * count
    thresholds = (_stretched(joint.threshold.flatten(), count) + best.threshold.flatten()) / 2
    middle = (count - 1) / 2
    order = sorted(range(count), key=lambda place: (abs(place - middle), place))
    return [_split(x, thresholds[place]) for place in order]


def _stretched(thresholds: Tensor, count: int) -> Tensor:
    """Return ``count`` thresholds that run as the given ones do."""
    return F.interpolate(thresholds[None, None], count, mode="linear", align_corners=True)[0, 0]


def _split(x: Tensor, threshold: Tensor) -> Levels:
    """Return the split of sorted samples at ``threshold``, with the means of its sides as values."""
    at = int(torch.searchsorted(x, threshold.to(x)))
    at = min(max(at, 1), len(x) - 1)
    low, high = x[:at].mean(), x[at:].mean()
    step = (high - low).clamp_min(torch.finfo(torch.float32).tiny)
    return Levels(low.float(), step.float().reshape(1), threshold.float().reshape(1, 1))
