"""`binarize evaluate`: accuracy on labelled data, and agreement with a teacher."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from binarize.cli.opening import open_subject
from binarize.cli.options import data_options, json_option, model_options
from binarize.cli.output import Progress, print_json, print_table, progress_bar

if TYPE_CHECKING:
    from binarize.evaluate import Evaluation

__all__ = ["evaluate"]


@click.command()
@click.argument("network", metavar="MODEL|NET")
@data_options(True, "Labelled images")
@click.option("--teacher", metavar="MODEL", help="Also count how often both decide alike.")
@click.option("--teacher-arch", metavar="NAME", help="What builds the teacher of a state_dict; --arch by default.")
@click.option("--samples", type=click.IntRange(1), help="Use the first so many images only.")
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Images per step.")
@model_options
@json_option
def evaluate(
    network: str,
    data: str,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    teacher: str | None,
    teacher_arch: str | None,
    samples: int | None,
    batch: int,
    arch: str | None,
    trust: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure accuracy of a model, a network or an ONNX file."""
    from binarize.data import DataSpec, load_data
    from binarize.evaluate import evaluate as run

    spec = DataSpec.parse(data)
    subject = open_subject(network, arch, trust, arch_used=teacher is not None and teacher_arch is None)
    master = None if teacher is None else open_subject(teacher, teacher_arch or arch, trust)
    shape = subject.input_shape if spec.kind == "imagefolder" else None
    images = load_data(spec, mean=mean, std=std, input_shape=shape, batch_size=batch, limit=samples)
    with progress_bar() as bar:
        step = None if bar is None else _counting(bar, images.samples)
        found = run(subject.net, images, teacher=None if master is None else master.net, progress=step)
    if as_json:
        print_json(found.to_dict())
    else:
        _print(subject.title, found)


def _counting(bar: Progress, total: int) -> Callable[[int], object]:
    """Return a callback that adds up images for the progress bar."""
    done = 0

    def step(images: int) -> None:
        nonlocal done
        done += images
        bar("evaluating", done, total)

    return step


def _print(title: str, found: "Evaluation") -> None:
    rows = [("top-1", f"{found.top1:.2%}"), ("top-5", f"{found.top5:.2%}"), ("samples", str(found.samples))]
    if found.agreement is not None:
        rows.insert(2, ("agreement with the teacher", f"{found.agreement:.2%}"))
    print_table(title, ("measure", "value"), rows)
