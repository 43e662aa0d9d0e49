"""One run: stages of epochs of steps, with checkpoints between them."""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from binarize.data import IMAGE_KEYS
from binarize.errors import TrainingError, one_line
from binarize.recipe import StageSpec, read_stages
from binarize.training.averages import RunningAverage
from binarize.training.batches import Batches
from binarize.training.checkpoints import Checkpoints, random_state
from binarize.training.guard import StopSignals, first_bad_layer
from binarize.training.history import EpochRecord, EventLog, History, Step, write_csv
from binarize.training.meters import Meter
from binarize.training.objectives import Cost, Objective, images_and_labels
from binarize.training.parameters import Rates, keep_positive, rate_factor
from binarize.training.processes import Processes
from binarize.training.settings import Settings
from binarize.training.stages import Bases

__all__ = ["Place", "Run"]

FIT_BATCHES = 4
REMEDIES = {
    "stages": " (passes can change where no stage names them)",
    "batches of a pass": " images, batch size and number of processes",
}
FREE = ("epochs", "checkpoint_minutes", "compile")  # settings that may differ when a run is resumed


@final
@dataclasses.dataclass
class Place:
    """Where a run is: what a checkpoint counts.

    Attributes:
        stage: index of the stage.
        epoch: passes of this stage that are complete.
        batch: batches of the next pass that are done.
    """

    stage: int = 0
    epoch: int = 0
    batch: int = 0


@final
class Run:
    """Trains ``net`` in place.

    Args:
        net: training form.
        model: what is called: the net itself, or a view of it that returns block outputs too.
        objective: costs a batch.
        batches: this process's part of the data.
        validate: measures the network, or None; called by one process only.
        measure_teacher: measures the teacher in the same way, or None.
        settings: how.
        stages: what, in order; with epochs of their own where they have them.
        processes: who takes part.
        checkpoints: where the state is kept, or None.
        progress: called after each batch.
    """

    def __init__(
        self,
        net: nn.Module,
        model: nn.Module,
        objective: Objective,
        batches: Batches,
        validate: Callable[[], Mapping[str, float]] | None,
        measure_teacher: Callable[[], Mapping[str, float]] | None,
        settings: Settings,
        stages: tuple[str, ...],
        processes: Processes,
        checkpoints: Checkpoints | None,
        progress: Callable[[Step], None] | None,
    ) -> None:
        self.net, self.model, self.objective, self.batches, self.validate = net, model, objective, batches, validate
        self.measure_teacher = measure_teacher
        self.settings, self.texts, self.processes = settings, stages, processes
        self.stages = read_stages(stages)
        self.checkpoints, self.progress = checkpoints, progress
        self.bases, self.place, self.meter = Bases(net), Place(), Meter()
        self.bases.require(self.stages)
        self.history: list[EpochRecord] = []
        self.before: dict[str, float] = {}
        self.teacher: dict[str, float] = {}
        self.average: RunningAverage | None = None
        self.random: Mapping[str, Any] | None = None
        self.events = EventLog(checkpoints.folder / "events") if checkpoints and processes.writes else None

    def go(self, resume: bool) -> History:
        """Train to the end or to a signal; the network then has its schemes' bases and is in evaluation mode."""
        state = self.checkpoints.read() if self.checkpoints and resume else None
        if state is not None:
            self._check(state)
            self.place = Place(**state["place"])
            self.history = [EpochRecord(**epoch) for epoch in state["history"]]
            self.before, self.teacher = state.get("before", {}), state.get("teacher", {})
            self._require_passes_left()
        try:
            with StopSignals() as self.signals:
                if state is None:
                    self._measure_before()
                while self.place.stage < len(self.stages) and self._stage(state):
                    state = None
        except RuntimeError as cause:
            if not self.processes.lost_another(cause):
                raise
            remedy = "start the same command again, resuming from the last checkpoint"
            raise TrainingError(f"cannot go on: another process of the run has ended; {remedy}") from cause
        finally:
            self.bases.restore()
            self.net.eval()
            if self.events is not None:
                self.events.close()
        return History(tuple(self.history), self.signals.seen, self.texts, self.before, self.teacher)

    # Stages and epochs

    def _stage(self, state: dict[str, Any] | None) -> bool:
        """Train one stage from where the run is; return whether it came to its end."""
        index = self.place.stage
        stage = self.stages[index]
        before = self.stages[index - 1] if index else None
        if state is None and before is not None:
            self.bases.leave(before, self.net.eval(), self._images())
        self.bases.enter(stage)
        if state is None:
            self.bases.fit(self.net.eval(), self._images(), before)
        self.rates = Rates(self.net, self.settings)  # says what is trained
        self.runner = self.processes.wrap(self.model)  # all processes then have the values of the first
        if self.settings.compile:
            self.runner.compile()
        self.average = RunningAverage(self.net, self.settings.ema) if self.settings.ema else None
        if state is not None:
            self._load(state)
        epochs = self._epochs(stage)
        while self.place.epoch < epochs:
            if not self._epoch(stage, epochs):
                return False
        if self.average is not None:
            self.average.swap(self.net)
        self.place = Place(index + 1)
        return True

    def _images(self) -> Iterator[Tensor]:
        """Yield the images of some batches; nothing is read before the first is asked for."""
        for batch in itertools.islice(self.batches.epoch(0), FIT_BATCHES):
            yield images_and_labels(batch)[0]

    def _epochs(self, stage: StageSpec) -> int:
        return stage.epochs or self.settings.epochs

    def _passed(self) -> int:
        """Return the number of complete passes, over all stages."""
        return sum(map(self._epochs, self.stages[: self.place.stage])) + self.place.epoch

    def _epoch(self, stage: StageSpec, epochs: int) -> bool:
        """Make one pass, or the rest of one; return False if a signal stopped it."""
        self._to_training()
        good = {key: value.detach().clone() for key, value in self.net.state_dict().items()}
        self.written = time.monotonic()
        number = self._passed()
        batches = self.batches.epoch(number, self.place.batch, self.random)
        rate = stage.rate * rate_factor(self.settings, self._position(epochs, 0))
        start = self.meter.seconds
        clock = time.perf_counter()
        for group in _grouped(batches, self.settings.accumulate):
            rate = stage.rate * rate_factor(self.settings, self._position(epochs, len(group)))
            self.rates.set_factor(rate)
            bad = self._step(group)
            self.place.batch += len(group)
            self.meter.seconds = start + time.perf_counter() - clock
            bad_somewhere, stop = self._agreed(bad is not None)
            if bad_somewhere:
                self._diverged(good, bad, number)
            self._report(number)
            if stop:
                self._save()
                return False
            if time.monotonic() - self.written > 60 * self.settings.checkpoint_minutes:
                self._save()
        self._finish_epoch(number, rate)
        return True

    def _measure_before(self) -> None:
        """Validate what is to be trained: data that it cannot be measured on is found before the long work."""
        if self.validate is not None and self.processes.writes:
            self.net.eval()
            self.before = dict(self.validate())
            self.teacher = dict(self.measure_teacher()) if self.measure_teacher is not None else {}
            if self.before:
                self._report(-1, self.before)
        self.processes.wait()

    def _finish_epoch(self, number: int, rate: float) -> None:
        val = self._validated()
        self.processes.wait()
        self.meter.gather(self.processes)
        record = self.meter.record(self.texts[self.place.stage], number + 1, rate, val)
        self.history.append(record)
        if val:
            self._report(number, val)
        self.place.epoch, self.place.batch, self.meter = self.place.epoch + 1, 0, Meter()
        if self.events is not None:
            self.events.add(record)
        self._save()

    def _validated(self) -> dict[str, float]:
        """Return the figures of the network, or of its average where there is one."""
        if self.validate is None or not self.processes.writes:
            return {}
        self._save()  # the pass is not lost where validation fails: a run that goes on has nothing left of it
        if self.average is not None:
            self.average.swap(self.net)
        self.net.eval()
        val = dict(self.validate())
        if self.average is not None:
            self.average.swap(self.net)
        return val

    def _position(self, epochs: int, ahead: int) -> float:
        # The middle of a step, so that the first one moves something; of the pass where its length is unknown.
        within = min((self.place.batch + ahead / 2) / self.batches.count, 1.0) if self.batches.count else 0.5
        return (self.place.epoch + within) / epochs

    def _to_training(self) -> None:
        self.net.train()
        self.model.train()
        if self.settings.freeze_norm:
            for module in self.net.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    # Steps

    def _step(self, group: list[Any]) -> Any:
        """Move the weights by the gradients of a few batches; return the batch whose cost is not finite, if any."""
        bad = None
        for index, batch in enumerate(group):
            last = index == len(group) - 1
            with contextlib.nullcontext() if last else self.processes.unsynchronised(self.runner):
                cost = self._cost(batch)
                total = cost.total()
                (total / len(group)).backward()
            if bad is None and not bool(total.isfinite()):
                bad = batch
            self.meter.add(cost, _images_in(batch))
        if bad is None:
            self._move()
        self.rates.optimiser.zero_grad()
        return bad

    def _cost(self, batch: Any) -> Cost:
        with torch.autocast(self.batches.device.type, torch.bfloat16, enabled=self.settings.bf16):
            return self.objective(self.runner, batch)

    def _move(self) -> None:
        if self.settings.clip:
            values = [value for group in self.rates.optimiser.param_groups for value in group["params"]]
            nn.utils.clip_grad_norm_(values, self.settings.clip)
        self.rates.optimiser.step()
        keep_positive(self.net)
        if self.average is not None:
            self.average.update(self.net)

    def _agreed(self, bad: bool) -> tuple[bool, bool]:
        """Return whether any process met bad values, and whether any was asked to stop: all must do the same."""
        if self.processes.count == 1:
            return bad, self.signals.seen is not None
        flags = self.processes.sum(torch.tensor([bad, self.signals.seen is not None], dtype=torch.float64))
        if flags[1] and self.signals.seen is None:
            self.signals.seen = "a signal to another process"
        return bool(flags[0]), bool(flags[1])

    def _diverged(self, good: Mapping[str, Tensor], batch: Any, number: int) -> None:
        """Find the first bad layer, put the last good values back, and raise."""
        where = "another process met them first"
        if batch is not None:
            where = first_bad_layer(self.net, lambda: self._cost(batch))
        self.net.load_state_dict(good)
        what = f"cannot go on: the loss of epoch {number + 1} is not finite; {where}"
        remedy = "the network has the values from before that epoch again; lower the learning rate, or set clip"
        raise TrainingError(f"{what}; {remedy}")

    def _report(self, number: int, val: Mapping[str, float] | None = None) -> None:
        if self.progress is None:
            return
        whole = sum(map(self._epochs, self.stages))
        left = None
        if self.batches.count and self.place.batch:
            batches = (whole - number) * self.batches.count - self.place.batch
            left = batches * self.meter.seconds / self.place.batch
        step = self.meter.step(self.texts[self.place.stage], number + 1, whole, self.place.batch, self.batches.count)
        teacher = self.teacher if number < 0 else {}
        self.progress(dataclasses.replace(step, seconds_left=left, val=val or {}, teacher=teacher))

    # State

    def _save(self) -> None:
        if self.checkpoints is None or not self.processes.writes:
            return
        average = self.average
        self.checkpoints.write(
            {
                "settings": self._identity(),
                "place": dataclasses.asdict(self.place),
                "model": self.net.state_dict(),
                "optimiser": self.rates.optimiser.state_dict(),
                "average": None if average is None else {"values": average.values, "steps": average.steps},
                "meter": self.meter.to_dict(),
                "random": random_state(),
                "history": [epoch.to_dict() for epoch in self.history],
                "before": self.before,
                "teacher": self.teacher,
            }
        )
        write_csv(self.history, self.checkpoints.folder / "log.csv")
        self.written = time.monotonic()

    def _identity(self) -> dict[str, Any]:
        """Return what a run that goes on has to have in common with the one that was begun."""
        teacher = "none" if self.objective.teacher is None else "given"
        others = {"teacher": teacher, "stages": list(self.texts), "batches of a pass": self.batches.count}
        return {**self.bases.specs(), **others, **_plain(self.settings), **self.batches.prepared}

    def _check(self, state: Mapping[str, Any]) -> None:
        """Refuse to resume a run under settings that would not continue it."""
        then = {**_plain(Settings()), **state["settings"]}  # what was not there yet had no effect
        for key, value in self._identity().items():
            if key in then and key not in FREE and then[key] != value:
                what = f"it was started with {key} {then[key]!r}, now it is {value!r}"
                remedy = f"give the same{REMEDIES.get(key, '')}, or start in another folder"
                raise TrainingError(f"cannot resume the run: {what}; {remedy}")

    def _require_passes_left(self) -> None:
        """Refuse to resume a run that is past its end already: shortened, its schedule would not have come to 0."""
        if self.place.stage == len(self.stages):
            return
        begun, asked = self.place.epoch + (self.place.batch > 0), self._epochs(self.stages[self.place.stage])
        if begun > asked:
            what = f"it is in pass {begun} of stage {self.texts[self.place.stage]}, and {asked} are asked for"
            raise TrainingError(f"cannot resume the run: {what}; ask for more epochs, or start in another folder")

    def _load(self, state: Mapping[str, Any]) -> None:
        try:
            self.net.load_state_dict(state["model"])
            self.rates.optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, ValueError) as cause:
            said = one_line(cause)
            raise TrainingError(f"cannot resume the run: it trained another network ({said}); give that one") from cause
        if self.average is not None:
            self.average.load(**state["average"])
        self.meter = Meter.from_dict(state["meter"])
        self.random = state["random"]


def _grouped(batches: Iterable[Any], count: int) -> Iterable[list[Any]]:
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, count)):
        yield group


def _images_in(batch: Any) -> int:
    """Return how many images a batch of any kind holds: one as well as any number where nothing tells."""
    if isinstance(batch, Mapping):
        named = [batch[key] for key in IMAGE_KEYS if key in batch]
        return max((_images_in(part) for part in named or batch.values()), default=1)
    if isinstance(batch, tuple | list) and batch and isinstance(batch[0], Tensor | list | tuple):
        return _images_in(batch[0]) if isinstance(batch[0], Tensor) else len(batch[0])
    if isinstance(batch, tuple | list) and batch and any(isinstance(part, Tensor) for part in batch[1:]):
        return _images_in(batch[0])
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else 1
    return len(batch) if isinstance(batch, tuple | list) else 1


def _plain(settings: Settings) -> dict[str, Any]:
    """Return the settings as a checkpoint holds them."""
    values = dataclasses.asdict(settings)
    values.update(values.pop("losses"))
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
