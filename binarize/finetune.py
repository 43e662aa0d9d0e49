"""`finetune`: trains what `convert` returned, against the original as teacher or on labels."""

import copy
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from binarize.data import Images
from binarize.errors import DataError, TrainingError
from binarize.evaluate import evaluate
from binarize.layers.binary import binary_layers
from binarize.layers.packed import PackedLayer
from binarize.passes.capture import capture
from binarize.record import attach_record, record_of
from binarize.training.batches import Batches, placed
from binarize.training.blocks import shared_taps
from binarize.training.checkpoints import Checkpoints
from binarize.training.history import History, Step
from binarize.training.objectives import ClassifierObjective, LossFunction, Objective, OwnObjective
from binarize.training.processes import Processes, find_processes
from binarize.training.run import Run
from binarize.training.settings import Losses, Settings

__all__ = ["History", "Losses", "Settings", "Step", "finetune"]

Validation = Iterable[Any] | Callable[[nn.Module], Mapping[str, float] | float]
"""Labelled batches, as `evaluate` takes them, or a function of the network that returns a figure or figures by name."""

EVERYTHING = ("binary",)


def finetune(
    net: nn.Module,
    train: Iterable[Any],
    *,
    teacher: nn.Module | None = None,
    val: Validation | None = None,
    settings: Settings | None = None,
    epochs: int | None = None,
    stages: tuple[str, ...] | None = None,
    loss_fn: LossFunction | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: Callable[[Step], None] | None = None,
) -> History:
    """Train a converted network in place; it is in evaluation mode afterwards, ready for `pack`.

    SIGINT or SIGTERM end the run after the current step, with a checkpoint where there is a folder for one. Under
    `torchrun` or `accelerate launch` all processes train one network together.

    Args:
        net: what `convert` returned, or `load` of a file in training form.
        train: batches, read once per epoch: ``(images, labels)``, or images alone with a teacher; anything with
            ``loss_fn``.
        teacher: the original; it is not changed. With one, the network learns its outputs unless `Losses` says else.
        val: measured before the first epoch and after each: labelled batches, or a function of the network that
            returns figures.
        settings: how to train.
        epochs: instead of those of ``settings``.
        stages: what to train, one after the other; the recipe's by default. See `binarize.recipe.StageSpec`.
        loss_fn: what to minimise instead: called with the network, in training mode, and a batch, on its device.
        checkpoint: folder for the checkpoint, ``log.csv`` and TensorBoard events; made if it is not there.
        resume: go on from the checkpoint in that folder, if there is one.
        progress: called after each batch, and again with `Step.val` when an epoch was validated; first as epoch 0 with
            ``val`` before training.

    Returns:
        Every epoch's figures; ``stopped`` says whether a signal ended the run early.

    Raises:
        TrainingError: the network cannot be trained, or its loss is not finite any more; the network then has the
            values from before the epoch.
        OutputError: a checkpoint cannot be written; the one before is intact.
        DataError: a batch is of no use.
    """
    settings = (settings or Settings()).resolved()
    if epochs is not None:
        settings = dataclasses.replace(settings, epochs=epochs)
    if loss_fn is None:
        settings = dataclasses.replace(settings, losses=settings.losses.resolved(teacher is not None))
    _require_trainable(net)
    _require_given(teacher, train, val)
    if teacher is net:
        raise TrainingError("cannot learn from the teacher: it is the network itself; give the original model")
    if loss_fn is not None and teacher is not None:
        raise TrainingError("cannot use both a teacher and a loss_fn: let loss_fn call the teacher itself")
    if resume and checkpoint is None:
        raise TrainingError("cannot resume: no folder for checkpoints is given; name the one of the run")
    if loss_fn is None and settings.losses.labels:
        _require_same_classes(train, val)
    processes = find_processes(net)
    device = processes.device(net)
    net.to(device)
    if settings.channels_last:
        net.to(memory_format=torch.channels_last)
    model, objective = _objective(net, teacher, loss_fn, settings, device)
    kept = None if checkpoint is None else Checkpoints(Path(checkpoint))
    if kept is not None and processes.writes:
        kept.prepare(resume)
    run = Run(
        net, model, objective,
        Batches(processes.share(train), settings.seed, device, settings.channels_last),
        _validation(net, val, device, resume), _of_teacher(teacher, val, device), settings, _stages(net, stages),
        processes, kept, progress,
    )  # fmt: skip
    history = run.go(resume)
    if objective.temperature is not None:
        losses = dataclasses.replace(settings.losses, temperature=objective.temperature)
        settings = dataclasses.replace(settings, losses=losses)
    _remember(net, settings, history, processes)
    return history


def _require_trainable(net: nn.Module) -> None:
    if any(isinstance(module, PackedLayer) for module in net.modules()):
        remedy = "convert with --trainable, or fine-tune what convert() returned before pack()"
        raise TrainingError(f"cannot fine-tune a packed network: its latent weights are gone; {remedy}")
    if not any(True for _ in binary_layers(net)):
        raise TrainingError(f"cannot fine-tune {type(net).__name__}: it has no binary layer; convert it first")


def _require_given(teacher: object, *data: object) -> None:
    if teacher is not None and not isinstance(teacher, nn.Module):
        what = f"it is a {type(teacher).__name__}, not a torch.nn.Module"
        raise TrainingError(f"cannot learn from the teacher: {what}; open the model first")
    for spec in data:
        if isinstance(spec, str):
            raise TrainingError(f"cannot read data from {spec!r}: open it by load_data")


def _require_same_classes(train: object, val: object) -> None:
    """Refuse labels that mean one thing in training and another in validation: the position of a folder does."""
    names = [tuple(getattr(data, "classes", None) or ()) for data in (train, val)]
    if all(names) and names[0] != names[1]:
        only = [", ".join(sorted({*these} - {*those})) or "none" for these, those in (names, names[::-1])]
        what = f"only the training data has the classes {only[0]}, only the validation data {only[1]}"
        if {*names[0]} == {*names[1]}:
            what = "the classes of training and validation data are in another order"
        raise DataError(f"cannot fine-tune on labels: {what}; give both the same folders for classes")


def _objective(
    net: nn.Module, teacher: nn.Module | None, loss_fn: LossFunction | None, settings: Settings, device: torch.device
) -> tuple[nn.Module, Objective]:
    """Return what is called on a batch, and what costs it."""
    if loss_fn is not None:
        return net, OwnObjective(loss_fn)
    losses, shape = settings.losses, record_of(net).input_shape
    master = None if teacher is None else _private(teacher, device)
    if losses.blocks and teacher is not None:
        graph = capture(copy.deepcopy(teacher).eval()).root.to(device).eval()
        taps = shared_taps(net, graph, losses.at)
        return taps[0], ClassifierObjective(losses, taps[1], net, shape)
    return net, ClassifierObjective(losses, master, net, shape)


def _private(teacher: nn.Module, device: torch.device) -> nn.Module:
    """Return the teacher in evaluation mode on ``device``: a copy, unless it is so already."""
    here = all(value.device == device for value in teacher.parameters())
    if here and not any(module.training for module in teacher.modules()):
        return teacher
    return copy.deepcopy(teacher).to(device).eval()


def _validation(
    net: nn.Module, val: Validation | None, device: torch.device, resume: bool
) -> Callable[[], Mapping[str, float]] | None:
    if val is None:
        return None
    if callable(val):
        own = val
        return lambda: _figures(own(net))
    if isinstance(val, Images) and val.task == "classification" and val.labels is None:
        raise DataError(f"cannot measure on val: {val.title} has no labels; give labelled images, or no val")
    if iter(val) is val:
        raise TrainingError("cannot measure on val more than once: it is used up then; give a loader, not a generator")
    loader = val
    if resume:  # else the network is measured on all of it before training
        evaluate(net, _Placed(loader, device, 1))
    return lambda: _measured(net, loader, device)


def _of_teacher(
    teacher: nn.Module | None, val: Validation | None, device: torch.device
) -> Callable[[], Mapping[str, float]] | None:
    """Return what measures the teacher; a user's own function is made for the network."""
    if teacher is None or val is None or callable(val):
        return None
    loader = val
    return lambda: _measured(_private(teacher, device), loader, device)


def _measured(model: nn.Module, loader: Iterable[Any], device: torch.device) -> Mapping[str, float]:
    return evaluate(model, _Placed(loader, device), classes=getattr(loader, "classes", None) or ()).figures()


def _figures(found: Any) -> Mapping[str, float]:
    """Return what a user's function of the network found: figures by name, or one that has none."""
    named = found if isinstance(found, Mapping) else {"figure": found}
    try:
        return {str(name): float(value) for name, value in named.items()}
    except (TypeError, ValueError) as cause:
        what = f"it returned {type(found).__name__}"
        raise TrainingError(f"cannot use what val measured: {what}; return a number, or a dict of numbers") from cause


@final
class _Placed:
    """Batches of a loader, the first ``most`` where that is given, on a device, as often as one iterates."""

    def __init__(self, loader: Iterable[Any], device: torch.device, most: int | None = None) -> None:
        self.loader, self.device, self.most = loader, device, most
        self.title = getattr(loader, "title", "the data")

    def __iter__(self) -> Iterator[Any]:
        for batch in itertools.islice(self.loader, self.most):
            yield placed(batch, self.device)


def _stages(net: nn.Module, given: tuple[str, ...] | None) -> tuple[str, ...]:
    if isinstance(given, str):
        raise TrainingError(f"cannot fine-tune in stages {given!r}: give a tuple of texts, ({given!r},)")
    if given is not None:
        return given or EVERYTHING
    return record_of(net).recipe.stages or EVERYTHING


def _remember(net: nn.Module, settings: Settings, history: History, processes: Processes) -> None:
    """Keep with the network what was done to it."""
    record = record_of(net)
    training = {"settings": dataclasses.asdict(settings), "processes": processes.count, **history.to_dict()}
    metrics = dict(record.metrics)
    after = history.epochs[-1].val if history.epochs else {}
    for when, found in (("teacher", history.teacher), ("before fine-tuning", history.before), ("fine-tuned", after)):
        metrics.pop(when, None)  # of a run before: another network's
        if found:
            metrics[when] = dict(found)
    attach_record(net, dataclasses.replace(record, training=training, metrics=metrics))
