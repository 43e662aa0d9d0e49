"""What the commands that train share: their options, and the bar that shows how a run goes."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from binarize.cli.output import note

if TYPE_CHECKING:
    from binarize.finetune import Settings, Step

__all__ = ["settings_of", "training_bar", "training_options"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

PLAIN = "binary"  # the stage that there is where nobody asks for others
SMALL, SHARE = click.FloatRange(0), click.FloatRange(0, 1, max_open=True)


def training_options(command: _Command) -> _Command:
    """Add an option for each setting; the defaults are those of `Settings` and `Losses`."""
    options = [
        click.option("--epochs", type=click.IntRange(1), default=10, show_default=True, help="Passes over the data."),
        click.option("--optimiser", type=click.Choice(["adam", "adamw", "sgd"]), help="adam by default."),
        click.option("--lr", type=SMALL, help="For adam, adamw a share of the way between levels: 0.02; for sgd 0.01."),
        click.option("--schedule", type=click.Choice(["cosine", "linear", "step", "constant"]), help="cosine."),
        click.option("--warmup", type=SHARE, help="Share of a stage over which the rate rises: 0.02."),
        click.option("--decay", type=SMALL, help="Weight decay: 0 for adam, 0.002 for adamw, 1e-4 for sgd."),
        click.option("--labels", type=SMALL, help="Weight of the labels' loss: 0 with a teacher, else 1."),
        click.option("--logits", type=SMALL, help="Weight of the loss to the teacher's outputs: 1."),
        click.option("--blocks", type=SMALL, help="Weight of the loss to the teacher's block outputs: 0."),
        click.option("--blocks-as", type=click.Choice(["attention", "features"]), help="What --blocks compares."),
        click.option("--temperature", type=click.FloatRange(0, min_open=True), help="Of --logits: 4, of maps 1."),
        click.option("--mix", type=click.FloatRange(0, 0.5), help="Mix up to so much of another image into each: 0."),
        click.option("--smoothing", type=SHARE, help="Of labels: 0."),
        click.option("--ema", type=SHARE, help="Keep a running average of all values, such as 0.999."),
        click.option("--clip", type=SMALL, help="Largest norm of the gradient; 0 for none."),
        click.option("--accumulate", type=click.IntRange(1), help="Batches for one step: 1."),
        click.option("--freeze-norm", is_flag=True, default=None, help="Keep normalisation statistics as they are."),
        click.option("--bf16", is_flag=True, default=None, help="Compute in bfloat16 where that is safe."),
        click.option("--channels-last", is_flag=True, default=None, help="Keep images channels last in memory."),
        click.option("--compile", is_flag=True, default=None, help="Run through torch.compile."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def settings_of(given: dict[str, Any], seed: int) -> "Settings":
    """Return the settings that the options of `training_options` ask for, taking them out of ``given``."""
    from binarize.finetune import Losses, Settings

    def taken(kind: type[Any]) -> dict[str, Any]:
        names = [field.name for field in dataclasses.fields(kind) if field.name in given]
        return {name: value for name in names if (value := given.pop(name)) is not None}

    losses = Losses(**taken(Losses))
    return Settings(**taken(Settings), losses=losses, seed=seed)


@contextlib.contextmanager
def training_bar(
    opening: str | None = None, doubt: "Callable[[Step], str | None] | None" = None
) -> Iterator["Callable[[Step], None] | None"]:
    """Give a callback that draws epoch, loss, accuracy, rate and the time left; without a terminal a line per epoch.

    ``opening`` is said with the first step: until then a run may be refused. ``doubt`` is asked about what validation
    found before training.
    """
    from binarize.training.processes import is_writer

    if not is_writer():
        yield None
        return
    if not sys.stderr.isatty():
        yield _with_remarks(_note_epoch, opening, doubt, note)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=None)

        def say(sentence: str) -> None:
            bar.console.print(f"binarize: {sentence}", highlight=False, markup=False)

        def report(step: "Step") -> None:
            if step.val:
                say(_validated(step))
            bar.update(task, description=_line(step), completed=step.done, total=step.total or None)

        yield _with_remarks(report, opening, doubt, say)


def _with_remarks(
    report: "Callable[[Step], None]",
    opening: str | None,
    doubt: "Callable[[Step], str | None] | None",
    say: Callable[[str], None],
) -> "Callable[[Step], None]":
    """Return ``report``, with what is to be said before the first step and about what comes before training."""
    left = [] if opening is None else [opening]

    def remarked(step: "Step") -> None:
        if left:
            say(left.pop())
        report(step)
        remark = doubt(step) if doubt is not None and step.epoch == 0 else None
        if remark is not None:
            say(remark)

    return remarked


def _note_epoch(step: "Step") -> None:
    if step.val:
        note(_validated(step))
    elif step.done == step.total:
        note(_line(step))


def _validated(step: "Step") -> str:
    when = f"after epoch {step.epoch}" if step.epoch else "before training"
    teacher = f" (the teacher: {_named(step.teacher)})" if step.teacher else ""
    return f"{when}: {_named(step.val)}{teacher}"


def _named(figures: Mapping[str, float]) -> str:
    from binarize.tables import figure

    return ", ".join(figure(name, value) for name, value in figures.items())


def _line(step: "Step") -> str:
    stage = "" if step.stage == PLAIN else f" ({step.stage})"
    parts = [f"epoch {step.epoch}/{step.epochs}{stage}", f"loss {step.loss:.4f}"]
    if step.top1 is not None:
        parts.append(f"top-1 in training {step.top1:.2%}")
    parts.append(f"{step.images_per_second:,.0f} images/s")
    if step.seconds_left is not None:
        minutes, seconds = divmod(round(step.seconds_left), 60)
        parts.append(f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left")
    return "  ".join(parts)
