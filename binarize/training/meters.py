"""Sums over one epoch."""

import dataclasses
from collections.abc import Mapping
from typing import Any, final

import torch

from binarize.training.history import EpochRecord, Step
from binarize.training.objectives import Cost
from binarize.training.processes import Processes

__all__ = ["Meter"]


@final
@dataclasses.dataclass
class Meter:
    """What an epoch's batches add up to.

    Attributes:
        terms: sum over batches of each term of the loss.
        batches: how many.
        images: how many.
        hits: images decided right.
        judged: images that had a label to decide by.
        seconds: wall time.
    """

    terms: dict[str, float] = dataclasses.field(default_factory=dict)
    batches: int = 0
    images: int = 0
    hits: int = 0
    judged: int = 0
    seconds: float = 0.0

    def add(self, cost: Cost, images: int) -> None:
        """Take one batch in."""
        for name, term in cost.terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + float(term.detach())
        self.batches += 1
        self.images += images
        if cost.hits is not None:
            self.hits += int(cost.hits)
            self.judged += images

    def gather(self, processes: Processes) -> None:
        """Add up over all processes."""
        if processes.count == 1:
            return
        counts = [float(self.batches), float(self.images), float(self.hits), float(self.judged)]
        total = processes.sum(torch.tensor([*counts, *self.terms.values()], dtype=torch.float64)).tolist()
        self.batches, self.images, self.hits, self.judged = (int(value) for value in total[:4])
        self.terms = dict(zip(self.terms, total[4:], strict=True))

    def record(self, stage: str, epoch: int, rate: float, val: Mapping[str, float]) -> EpochRecord:
        """Return the epoch's figures."""
        terms = {name: value / max(self.batches, 1) for name, value in self.terms.items()}
        top1 = self.hits / self.judged if self.judged else None
        return EpochRecord(stage, epoch, sum(terms.values()), terms, top1, rate, self.seconds, self._speed(), val)

    def step(self, stage: str, epoch: int, epochs: int, done: int, total: int) -> Step:
        """Return how far the epoch is."""
        loss = sum(self.terms.values()) / max(self.batches, 1)
        top1 = self.hits / self.judged if self.judged else None
        return Step(stage, epoch, epochs, done, total, self._speed(), None, loss, top1)

    def _speed(self) -> float:
        return self.images / max(self.seconds, 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Meter":
        """Build from what `to_dict` gave."""
        return cls(**values)
