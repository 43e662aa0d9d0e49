"""`binarize finetune`: trains a converted network against its original, or converts a model first."""

import copy
import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import click

from binarize.cli.convert import Wish, check_outputs, converted, finish
from binarize.cli.opening import open_net, open_original, open_teacher
from binarize.cli.options import SHAPE, data_options, json_option, model_options, seed_option
from binarize.cli.output import fail, note, progress_bar
from binarize.cli.preparation import (
    Glance,
    doubt_validation,
    note_classes,
    note_decisions,
    note_labels,
    note_preparation,
    require_labels,
)
from binarize.cli.training import settings_of, training_bar, training_options

if TYPE_CHECKING:
    from torch import nn

    from binarize.data import Images
    from binarize.finetune import History, Settings

__all__ = ["Course", "finetune"]

STOPPED = 130


@click.command()
@click.argument("network", metavar="NET|MODEL")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="OUT", required=True, help="File to write.")
@data_options(True, "Images to train on, with labels where there is no teacher")
@click.option("--val", metavar="SPEC", help="Labelled images to measure on, before training and after each epoch.")
@click.option("--augment", type=click.Choice(["none", "cifar", "imagenet", "flip", "zoom"]), default="none",
              show_default=True, help="Shifts and flips; crops and flips of files; flips; enlarged parts and flips.",
              )  # fmt: skip
@click.option("--batch", type=click.IntRange(1), default=128, show_default=True, help="Images per batch.")
@click.option(
    "--workers", type=click.IntRange(0), default=0, show_default=True,
    help="Threads that read image files; with any, the next batch is made while one is used.",
)  # fmt: skip
@click.option("--samples", type=click.IntRange(1), help="Train on so many images only.")
@click.option("--teacher", metavar="MODEL", help="The original; for a MODEL it is that model.")
@click.option("--teacher-arch", metavar="NAME", help="What builds the teacher of a state_dict; --arch by default.")
@click.option("--scheme", metavar="S", help="For a MODEL: what to convert it to first.")
@click.option("--ends", metavar="S", help="For a MODEL: scheme of its first and last layers, such as encoding:w=8,a=8.")
@click.option("--recipe", type=click.Path(path_type=Path), metavar="FILE.toml", help="For a MODEL: the recipe.")
@click.option(
    "--stage", metavar="STAGE", multiple=True, help="What to train, repeatable, such as activations:epochs=5."
)
@click.option("--input-shape", type=SHAPE, help="Of one image file; else the network's.")
@training_options
@click.option("--checkpoint", type=click.Path(path_type=Path), metavar="DIR", help="Keep the run's state here.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in --checkpoint, if there is one.")
@click.option("--device", default="cpu", show_default=True, help="Where to train: cpu, cuda or cuda:1.")
@click.option("--trainable", is_flag=True, help="Write the training form, with latent weights: large.")
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE.html", help="Write a page about every layer.")
@seed_option
@model_options
@json_option
def finetune(
    network: str, output: Path, report: Path | None, arch: str | None, trust: tuple[str, ...], trainable: bool,
    teacher: str | None, teacher_arch: str | None, scheme: str | None, ends: str | None, recipe: Path | None,
    as_json: bool, seed: int, **given: Any,
) -> None:  # fmt: skip
    """Train a converted NET, or convert a MODEL and train it.

    NET holds latent weights: it was written with --trainable. Under torchrun all processes train one network.
    """
    from binarize.artifact import is_artifact
    from binarize.training.memory import keep_freed_memory
    from binarize.training.processes import is_writer, leave

    keep_freed_memory()
    settings = settings_of(given, seed)
    course = Course(settings=settings, **given)
    course.require_readable()
    check_outputs(output, report, (network, arch, recipe, teacher, course.data, course.val))
    if is_artifact(network):
        _require_other(teacher, network)
        if (scheme, ends, recipe) != (None, None, None):
            raise click.UsageError(f"--scheme, --ends and --recipe are for a MODEL; {network} is converted already")
        subject = open_net(network, arch, trust, arch_used=teacher is not None and teacher_arch is None)
        net, title = subject.net, subject.title
        master = None if teacher is None else open_teacher(teacher, teacher_arch or arch, trust).net
    else:
        net, title, original = _convert(network, arch, trust, (scheme, ends), recipe, course, seed)
        master = original if teacher is None else open_teacher(teacher, teacher_arch or arch, trust).net
    history = course.run(net, master, chosen=teacher is not None)
    if history.stopped is not None:
        fail(course.stopped(history))
        leave()
        raise click.exceptions.Exit(STOPPED)
    if is_writer():
        finish(net, title, output, report, trainable, as_json, {"training": history.to_dict()})
    leave()


def _require_other(teacher: str | None, network: str) -> None:
    """Refuse the network's own file as its teacher: it would learn what it does already."""
    from binarize.errors import TrainingError

    if teacher is not None and Path(teacher).exists() and Path(teacher).samefile(network):
        raise TrainingError(f"cannot learn from the teacher {teacher}: it is the network itself; give the original")


@final
@dataclasses.dataclass(frozen=True)
class Course:
    """What to train on and how, as the options ask for it."""

    settings: "Settings"
    data: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channels: str = "rgb"
    val: str | None = None
    augment: str = "none"
    batch: int = 128
    workers: int = 0
    samples: int | None = None
    stage: tuple[str, ...] = ()
    input_shape: tuple[int, ...] | None = None
    checkpoint: Path | None = None
    resume: bool = False
    device: str = "cpu"

    def require_readable(self) -> None:
        """Read the specs and stages early, to fail early."""
        from binarize.data import DataSpec
        from binarize.errors import TrainingError
        from binarize.recipe import read_stages
        from binarize.training.checkpoints import Checkpoints

        for spec in filter(None, (self.data, self.val)):
            DataSpec.parse(spec)
        read_stages(self.stage)
        if self.resume and self.checkpoint is None:
            raise TrainingError("cannot resume: no folder for checkpoints is given; add --checkpoint DIR")
        if self.checkpoint is not None:
            Checkpoints(self.checkpoint).require_usable(self.resume)

    def run(self, net: "nn.Module", teacher: "nn.Module | None", *, chosen: bool) -> "History":
        """Train ``net`` in place, and bring it back to the processor; a teacher that was ``chosen`` may be wrong."""
        import torch

        from binarize.devices import device_why_not
        from binarize.errors import TrainingError
        from binarize.finetune import finetune as run
        from binarize.record import record_of
        from binarize.training.processes import is_writer

        reason = device_why_not(self.device)
        if reason is not None:
            raise TrainingError(f"cannot train on {self.device!r}: {reason}; use cpu, cuda or cuda:1")
        place = torch.device(self.device)
        shape = record_of(net).input_shape
        train = self._images(self.data, shape, self.augment, self.samples, shuffle=True)
        val = None if self.val is None else self._images(self.val, shape, "none", None, shuffle=False)
        done = self._passes_done() if is_writer() else None
        plain = copy.copy(train)
        plain.augment = None
        glance = Glance(net, plain)
        self._look(glance, teacher, val, chosen, silent=not is_writer() or bool(done))
        doubt = None if val is None else functools.partial(doubt_validation, glance, val)
        with training_bar(self._resumed(done), doubt) as bar:
            history = run(
                net.to(place), train, teacher=teacher, val=val, settings=self.settings, stages=self.stage or None,
                checkpoint=self.checkpoint, resume=self.resume, progress=bar,
            )  # fmt: skip
        if done and done == len(history.epochs) and history.stopped is None:
            note("nothing was left to train: the run was complete")
        net.cpu()
        return history

    def _look(
        self, glance: Glance, teacher: "nn.Module | None", val: "Images | None", chosen: bool, *, silent: bool
    ) -> None:
        """Refuse labels that cannot be learnt, and say what speaks against the data or the teacher."""
        learnt = teacher is None or self.settings.losses.labels
        if learnt:
            require_labels(glance)
        if silent:
            return
        note_preparation(glance.net if teacher is None else teacher, glance.images)
        note_decisions(glance, teacher, chosen=chosen)
        if not learnt:
            note_labels(glance)
        for images in (val, glance.images if learnt else None):
            if images is not None:
                note_classes(glance, images)

    def _passes_done(self) -> int | None:
        """Return how many passes the run has already; None where it does not go on from a checkpoint."""
        from binarize.training.checkpoints import Checkpoints

        state = Checkpoints(self.checkpoint).read() if self.resume and self.checkpoint is not None else None
        return None if state is None else len(state["history"])

    def _resumed(self, done: int | None) -> str | None:
        """Return the sentence about where a run goes on, for when it does."""
        if not self.resume:
            return None
        if done is None:
            return f"there is no checkpoint in {self.checkpoint} yet: the run starts from the beginning"
        return f"the run in {self.checkpoint} goes on after epoch {done}"

    def _images(
        self, spec: str, shape: tuple[int, ...] | None, augment: str, samples: int | None, *, shuffle: bool
    ) -> "Images":
        from binarize.data import DataSpec, load_data

        if self.input_shape is not None or DataSpec.parse(spec).task == "detection":
            shape = self.input_shape  # a detector takes images of all sizes
        return load_data(
            spec, mean=self.mean, std=self.std, channels=self.channels, input_shape=shape, batch_size=self.batch,
            limit=samples, shuffle=shuffle, seed=self.settings.seed, augment=augment, workers=self.workers,
        )  # fmt: skip

    def stopped(self, history: "History") -> str:
        """Return the line that ends a run which a signal stopped."""
        where = f"stopped by {history.stopped}"
        if self.checkpoint is None:
            return f"{where}; nothing is written, because there is no --checkpoint"
        return f"{where}; the same command with --resume goes on from {self.checkpoint}"


def _convert(
    model: str,
    arch: str | None,
    trust: tuple[str, ...],
    schemes: tuple[str | None, str | None],
    recipe: Path | None,
    course: Course,
    seed: int,
) -> "tuple[nn.Module, str, nn.Module]":
    """Return the converted model, its title and the original; ``schemes`` are that of all layers and of the ends."""
    wish = Wish(
        scheme=schemes[0], ends=schemes[1], recipe=recipe, keep=(), data=course.data, mean=course.mean, std=course.std,
        channels=course.channels, samples=None, input_shape=course.input_shape, reconstruct=False, trainable=False,
        seed=seed,
    )  # fmt: skip
    asked = wish.to_recipe()
    opened = open_original(model, arch, trust)
    for sentence in wish.announced(opened, None):
        note(sentence)
    with progress_bar() as bar:
        net = converted(opened, asked, wish, bar)
    return net, opened.name, opened.model
