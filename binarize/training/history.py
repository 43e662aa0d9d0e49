"""What a run did, epoch by epoch, and where it is written."""

import csv
import dataclasses
import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from binarize.artifact import replacing

__all__ = ["EpochRecord", "EventLog", "History", "Step", "write_csv"]


@final
@dataclasses.dataclass(frozen=True)
class EpochRecord:
    """One pass over the training data.

    Attributes:
        stage: what was trained, as the recipe writes it.
        epoch: from 1, over all stages.
        loss: mean over the epoch's batches.
        terms: the same for each term of the loss.
        top1: share of training images decided right, as they were met; None where that means nothing.
        rate: learning rate at the end of the epoch, as a share of the highest.
        seconds: wall time of the training part.
        images_per_second: over that time.
        val: what validation found.
    """

    stage: str
    epoch: int
    loss: float
    terms: Mapping[str, float]
    top1: float | None
    rate: float
    seconds: float
    images_per_second: float
    val: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**dataclasses.asdict(self), "terms": dict(self.terms), "val": dict(self.val)}


@final
@dataclasses.dataclass(frozen=True)
class History:
    """What a run did.

    Attributes:
        epochs: every pass that was completed, those before a resume included.
        stopped: name of the signal that ended the run early, or None.
        stages: what was trained, in order.
        before: what validation found before the first epoch.
        teacher: what it found of the teacher; empty without one, or where ``val`` is a function.
    """

    epochs: tuple[EpochRecord, ...]
    stopped: str | None = None
    stages: tuple[str, ...] = ()
    before: Mapping[str, float] = dataclasses.field(default_factory=dict)
    teacher: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Wall time of all epochs."""
        return sum(epoch.seconds for epoch in self.epochs)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "epochs": [epoch.to_dict() for epoch in self.epochs],
            "stopped": self.stopped,
            "stages": list(self.stages),
            "seconds": self.seconds,
            "before": dict(self.before),
            "teacher": dict(self.teacher),
        }


@final
@dataclasses.dataclass(frozen=True)
class Step:
    """How far a run is.

    Attributes:
        stage: what is trained.
        epoch: from 1, over all stages; 0 before the first, with ``val``.
        epochs: in all.
        done: batches of this epoch.
        total: batches of an epoch; 0 where the data does not say.
        images_per_second: of this epoch so far.
        seconds_left: of the whole run at that rate; None where it cannot be known.
        loss: mean of this epoch so far.
        top1: share of this epoch's images decided right; None where that means nothing.
        val: what validation found after this epoch, of epoch 0 before the training; empty while an epoch runs.
        teacher: what it found of the teacher; of epoch 0 only.
    """

    stage: str
    epoch: int
    epochs: int
    done: int
    total: int
    images_per_second: float
    seconds_left: float | None
    loss: float
    top1: float | None
    val: Mapping[str, float] = dataclasses.field(default_factory=dict)
    teacher: Mapping[str, float] = dataclasses.field(default_factory=dict)


def write_csv(epochs: Sequence[EpochRecord], path: Path) -> None:
    """Write one row per epoch, replacing the file in one step; nothing where there are none yet."""
    if not epochs:
        return
    rows = [_row(epoch) for epoch in epochs]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with replacing(path) as draft:
        draft.write_text(text.getvalue(), encoding="utf-8")


def _row(epoch: EpochRecord) -> dict[str, Any]:
    values = epoch.to_dict()
    terms, val = values.pop("terms"), values.pop("val")
    named = {f"loss_{name}": value for name, value in terms.items()}
    return {**values, **named, **{f"val_{name}": value for name, value in val.items()}}


@final
class EventLog:
    """TensorBoard events of a run, if its package is installed; nothing otherwise."""

    def __init__(self, folder: Path) -> None:
        self._writer: Any = None
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder))

    def add(self, epoch: EpochRecord) -> None:
        """Add the figures of one epoch."""
        if self._writer is None:
            return
        for name, value in _row(epoch).items():
            if isinstance(value, int | float) and name != "epoch":
                self._writer.add_scalar(name, value, epoch.epoch)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
