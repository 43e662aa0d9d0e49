"""Batches of whatever loader there is: in an order that a seed and an epoch decide, on the device that computes."""

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any, final

import torch
from torch import Tensor

from binarize.errors import DataError
from binarize.training.checkpoints import seed_everything, set_random_state

__all__ = ["Batches", "placed"]

EPOCHS = 1 << 20  # more than anyone runs: seeds of two epochs of two runs do not meet


@final
class Batches:
    """A loader, its passes reproducible.

    Attributes:
        count: batches of a pass; 0 where the loader does not say.
        prepared: how a loader of `load_data` prepares its images, by option; empty for others.
    """

    def __init__(self, loader: Iterable[Any], seed: int, device: torch.device, channels_last: bool) -> None:
        self.loader, self.seed, self.device, self.channels_last = loader, seed, device, channels_last
        self.count = _length(loader)
        prepared = getattr(loader, "prepared", None)
        self.prepared: Mapping[str, str] = prepared if isinstance(prepared, Mapping) else {}
        self._seen = False

    def epoch(self, number: int, skip: int = 0, state: Mapping[str, Any] | None = None) -> Iterator[Any]:
        """Yield the batches of pass ``number`` but for the first ``skip``.

        Every global random generator is seeded for the pass first, so that a loader's order and changes, and all else
        that is drawn, are the same again after a resume; after what is skipped they go on from ``state``.
        """
        seed = self.seed * EPOCHS + number
        seed_everything(seed)
        self._announce(number, seed)
        empty = True
        for index, batch in enumerate(self.loader):
            empty, self._seen = False, True
            if index < skip - 1:
                continue
            if index == skip - 1:
                if state is not None:
                    set_random_state(state)
            else:
                yield placed(batch, self.device, self.channels_last)
        if empty:
            why = "can be read once only; give a loader, not a generator" if self._seen else "yields no batch; give one"
            raise DataError(f"cannot fine-tune: the data {why}")

    def _announce(self, number: int, seed: int) -> None:
        """Tell the loader, its sampler or its generator which pass comes."""
        sampler = getattr(self.loader, "sampler", None)
        for part in (self.loader, sampler, getattr(sampler, "sampler", None)):
            set_epoch = getattr(part, "set_epoch", None)
            if callable(set_epoch):
                set_epoch(number)
            generator = getattr(part, "generator", None)
            if isinstance(generator, torch.Generator):
                generator.manual_seed(seed)


def placed(batch: Any, device: torch.device, channels_last: bool = False) -> Any:
    """Return ``batch`` with every tensor in it on ``device``."""
    if isinstance(batch, Tensor):
        moved = batch.to(device, non_blocking=True)
        return moved.contiguous(memory_format=torch.channels_last) if channels_last and moved.dim() == 4 else moved
    if isinstance(batch, dict):
        return {key: placed(value, device, channels_last) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(placed(value, device, channels_last) for value in batch)
    return batch


def _length(loader: Iterable[Any]) -> int:
    if not isinstance(loader, Sized):
        return 0
    try:
        return len(loader)
    except TypeError:  # a DataLoader over an iterable data set has a length only to look at
        return 0
