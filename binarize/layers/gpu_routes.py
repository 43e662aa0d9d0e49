"""The route of a packed tensor on a GPU: chosen where it is first packed there, since that may be another machine."""

from collections.abc import Sequence
from typing import final

import torch

from binarize.kernels.cuda.rates import gpu_rates
from binarize.kernels.speeds import Speeds
from binarize.layers.geometry import Geometry, problem_of

__all__ = ["GpuRoutes", "quickest"]


@final
class GpuRoutes:
    """The route of one packing on each GPU.

    Args:
        readers: the layers that read what it packs.
        asked: the route that is asked for, or None.
    """

    def __init__(self, readers: Sequence[Geometry], asked: str | None = None) -> None:
        self.readers, self.asked = tuple(readers), asked
        self._known: dict[int | None, str] = {}

    def route(self, device: torch.device, on_cpu: str) -> str:
        """Return the route on which all readers are quickest together on the GPU ``device``, else ``on_cpu``."""
        if device.type != "cuda":
            return on_cpu
        if device.index not in self._known:
            self._known[device.index] = self.asked or quickest(self.readers, gpu_rates(device))
        return self._known[device.index]


def quickest(readers: Sequence[Geometry], rates: Speeds) -> str:
    """Return the quicker route at these rates; every layer runs on both."""

    def nanoseconds(route: str) -> float:
        return sum(rates.nanoseconds(problem_of(reader, route)) for reader in readers)

    return min(("popcount", "int8"), key=nanoseconds)
