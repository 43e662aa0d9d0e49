"""Weight terms merged for the int8 route: many planes with real scales as one or two whole numbers of eight bits.

A weight of K terms, sum_k unit_k * odd_k, costs K products of codes. Rounded to a grid of 8 bits per output channel it
costs one; to a grid of 16 bits, split into a high and a low half, two. Files hold the exact planes; what is merged is
made when a network is packed or loaded, and only where the recipe's ``exactness`` allows it.
Layers carry it as an attribute that no file holds beside the recipe.
"""

import dataclasses
from typing import final

import torch
from torch import Tensor, nn

from binarize.layers.geometry import Geometry

__all__ = ["Operands", "allow", "merge", "merged_geometry"]

# How far a packed weight may be from its planes, as a fraction of the largest weight of an output channel (2^-8 for
# int8) -> the terms that take their place.
_TERMS: dict[str, tuple[int, ...]] = {"exact": (), "2^-16": (8, 8), "int8": (8,)}


@final
@dataclasses.dataclass(frozen=True)
class Operands:
    """What the kernels are given for a layer.

    Attributes:
        geometry: with the weight terms that are multiplied.
        weight: in the kernels' layout.
        scale: ``(t, o)``, one per pair of weight and activation term.
    """

    geometry: Geometry
    weight: Tensor
    scale: Tensor


def merged_geometry(geometry: Geometry, exactness: str) -> Geometry | None:
    """Return the geometry of a layer whose terms are merged for the int8 route, or None where that saves nothing."""
    terms = _TERMS[exactness]
    if not terms or len(geometry.weight_terms) <= len(terms):
        return None
    return dataclasses.replace(geometry, weight_terms=terms)


def allow(net: nn.Module, exactness: str) -> None:
    """Tell every binary and packed layer of ``net`` what its kernels may do."""
    for module in net.modules():
        if hasattr(module, "exactness"):
            module.__dict__["exactness"] = exactness


def merge(odd: Tensor, unit: Tensor, terms: int) -> tuple[Tensor, Tensor]:
    """Round sum_k unit_k * odd_k to the nearest odd multiples of a unit per output channel.

    Args:
        odd: ``(k, o, ...)`` odd integers.
        unit: ``(k, o)`` their values.
        terms: 1 for eight bits, 2 for sixteen.

    Returns:
        Odd integers ``(terms, o, ...)`` from -255 to 255, high before low, and their units ``(terms, o)`` float64.
    """
    weight = torch.einsum("ko,ko...->o...", unit.double(), odd.double())
    top = 2 ** (8 * terms) - 1
    step = weight.flatten(1).abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / top
    ratio = weight / step.reshape(-1, *[1] * (weight.dim() - 1))
    whole = (2 * ((ratio - 1) / 2).round() + 1).clamp(-top, top).long()
    if terms == 1:
        return whole[None], step[None]
    high = 2 * whole.div(512, rounding_mode="floor") + 1
    return torch.stack((high, whole - 256 * high)), torch.stack((256 * step, step))
