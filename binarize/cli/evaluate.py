"""`binarize evaluate`: accuracy, intersection over union or mean average precision, and agreement with a teacher."""

from collections.abc import Callable

import click

from binarize.cli.opening import open_subject, open_teacher
from binarize.cli.options import SHAPE, data_options, json_option, model_options
from binarize.cli.output import Progress, print_json, print_table, progress_bar
from binarize.cli.preparation import Glance, note_classes, note_preparation

__all__ = ["evaluate"]

BATCH, SCENES = 64, 4


@click.command()
@click.argument("network", metavar="MODEL|NET")
@data_options(True, "Images, labelled unless a teacher is given")
@click.option("--teacher", metavar="MODEL", help="Also count how often both decide alike.")
@click.option("--teacher-arch", metavar="NAME", help="What builds the teacher of a state_dict; --arch by default.")
@click.option("--samples", type=click.IntRange(1), help="Use the first so many images only.")
@click.option("--input-shape", type=SHAPE, help="To resize image files or scenes to; else the network's or their own.")
@click.option("--batch", type=click.IntRange(1), help="Images per step: 64, of scenes with masks or boxes 4.")
@model_options
@json_option
def evaluate(
    network: str,
    data: str,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    channels: str,
    input_shape: tuple[int, ...] | None,
    teacher: str | None,
    teacher_arch: str | None,
    samples: int | None,
    batch: int | None,
    arch: str | None,
    trust: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure a model, a network or an ONNX file: top-1 and top-5 by labels, mIoU by masks, COCO's mAP by boxes."""
    from binarize.data import DataSpec, load_data
    from binarize.evaluate import evaluate as run

    spec = DataSpec.parse(data)
    subject = open_subject(network, arch, trust, arch_used=teacher is not None and teacher_arch is None)
    master = None if teacher is None else open_teacher(teacher, teacher_arch or arch, trust)
    batch = batch or (BATCH if spec.task == "classification" else SCENES)
    shape = input_shape or (subject.input_shape if spec.is_cut_to_shape else None)
    images = load_data(
        spec, mean=mean, std=std, channels=channels, input_shape=shape, batch_size=batch, limit=samples
    )  # fmt: skip
    note_preparation(subject.net, images)
    note_classes(Glance(subject.net, images), images)
    with progress_bar() as bar:
        step = None if bar is None else _counting(bar, images.samples)
        found = run(subject.net, images, teacher=None if master is None else master.net, progress=step)
    if as_json:
        print_json(found.to_dict())
    else:
        print_table(subject.title, ("measure", "value"), found.rows())


def _counting(bar: Progress, total: int) -> Callable[[int], object]:
    """Return a callback that adds up images for the progress bar."""
    done = 0

    def step(images: int) -> None:
        nonlocal done
        done += images
        bar("evaluating", done, total)

    return step
