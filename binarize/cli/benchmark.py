"""`binarize benchmark`: ours, torch fp32, ONNX Runtime fp32 and int8, timed in one run."""

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from binarize.cli.opening import Subject, open_net, open_original
from binarize.cli.options import data_options, json_option, model_options
from binarize.cli.output import note, print_json, print_lines, print_table

if TYPE_CHECKING:
    from torch import Tensor, nn

    from binarize.benchmark import Benchmark, Row
    from binarize.data import Images

__all__ = ["benchmark"]

INT8_SAMPLES = 128


@click.command()
@click.argument("network", metavar="NET")
@click.option("--against", metavar="MODEL", help="The original; --arch builds it from a state_dict.")
@click.option("--device", type=click.Choice(["cpu"]), default="cpu", show_default=True, help="Where to run.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Images per call.")
@click.option("--threads", type=click.IntRange(1), help="For every contender alike; all cores by default.")
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True, help="Turns of each contender.")
@click.option("--openvino", is_flag=True, help="Time OpenVINO too, fp32 and int8; needs openvino and nncf.")
@data_options(False, "Images to time on; with labels, each contender's accuracy is measured too")
@model_options
@json_option
def benchmark(
    network: str, against: str | None, device: str, batch: int, threads: int | None, rounds: int,
    openvino: bool, data: str | None, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, channels: str,
    arch: str | None, trust: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Time NET beside its original in fp32 and int8."""
    from binarize.benchmark import benchmark as run

    subject = open_net(network, arch, trust, arch_used=against is not None)
    images = None if data is None else _load(subject, data, mean, std, channels)
    original, trained = _original(subject, against, arch, trust)
    found = run(
        subject.net, against=original, images=_stacked(images, batch), data=_labelled(images),
        batch=batch, threads=threads, rounds=rounds, openvino=openvino,
    )  # fmt: skip
    _print(found if trained else _timing_only(found), as_json)


def _load(
    subject: Subject, data: str, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, channels: str
) -> "Images":
    from binarize.data import DataSpec, load_data
    from binarize.errors import DataError

    spec = DataSpec.parse(data)
    if spec.task == "detection":
        what = "its images have sizes of their own, and what a detector does depends on what it sees"
        raise DataError(f"cannot time on {spec.title}: {what}; leave out --data to time on noise")
    size = 64 if spec.task == "classification" else 4
    return load_data(spec, mean=mean, std=std, channels=channels, input_shape=subject.input_shape, batch_size=size)


def _stacked(images: "Images | None", batch: int) -> "Tensor | None":
    import torch

    if images is None:
        return None
    pieces: list[Tensor] = []
    for piece, _ in images:
        pieces.append(piece)
        if sum(map(len, pieces)) >= max(INT8_SAMPLES, batch):
            break
    return torch.cat(pieces)


def _labelled(images: "Images | None") -> "Images | None":
    return images if images is not None and images.labels is not None else None


def _original(
    subject: Subject, against: str | None, arch: str | None, trust: tuple[str, ...]
) -> tuple["nn.Module | None", bool]:
    """Return the original and whether its weights are the ones NET was made from.

    Without --against a torchvision network is built anew: untrained weights take the same time.
    """
    from binarize.record import record_of

    if against is not None:
        return open_original(against, arch, trust).model, True
    source: dict[str, Any] = dict(record_of(subject.net).source)
    if source.get("origin") != "torchvision" or not source.get("arch"):
        note("only one row: name the original with --against to time it too")
        return None, True
    from binarize.sources import open_model

    note(f"timing {source['arch']} with random weights: name the original with --against to compare decisions")
    return open_model(str(source["arch"])).model, False


def _timing_only(found: "Benchmark") -> "Benchmark":
    rows = tuple(dataclasses.replace(row, agreement=None, top1=None) for row in found.rows)
    return dataclasses.replace(found, rows=rows)


def _print(found: "Benchmark", as_json: bool) -> None:
    if as_json:
        print_json(found.to_dict())
        return
    ours = found.rows[0]
    columns = ["contender", "median", "p10", "time", "file", "bytes"]
    optional = [name for name in ("agreement", "top1") if any(getattr(row, name) is not None for row in found.rows)]
    rows = [[*_cells(row, ours), *(_percent(getattr(row, name)) for name in optional)] for row in found.rows]
    print_table(f"batch {ours.batch}, {ours.threads} threads", [*columns, *optional], rows)
    print_lines(["", *found.verdict(), *found.notes])


def _cells(row: "Row", ours: "Row") -> list[str]:
    from binarize.tables import size

    times = (f"{row.median_us:,.0f} us", f"{row.p10_us:,.0f} us", f"{row.median_us / ours.median_us:.2f}x")
    return [row.name, *times, size(row.bytes), f"{row.bytes / ours.bytes:.1f}x"]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
