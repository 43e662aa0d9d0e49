"""`binarize inspect`: what each layer became or would become, and why the rest stays in full precision."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from binarize.cli.opening import open_subject
from binarize.cli.options import SHAPE, json_option, model_options
from binarize.cli.output import note, print_json, print_lines, print_table

if TYPE_CHECKING:
    from torch import nn

    from binarize.times import LayerTime

__all__ = ["inspect"]


@click.command()
@click.argument("network", metavar="MODEL|NET")
@click.option("--scheme", metavar="S", help="For a MODEL: what would be asked for.")
@click.option("--ends", metavar="S", help="For a MODEL: scheme of its first and last layers, such as encoding:w=8,a=8.")
@click.option("--recipe", type=click.Path(path_type=Path), metavar="FILE.toml", help="For a MODEL: the recipe.")
@click.option("--input-shape", type=SHAPE, help="Image to count MACs for.")
@click.option("--times", is_flag=True, help="Of a packed NET: run it, and list predicted and measured time per layer.")
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE.html", help="Write the same as a page.")
@model_options
@json_option
def inspect(
    network: str,
    scheme: str | None,
    ends: str | None,
    recipe: Path | None,
    input_shape: tuple[int, ...] | None,
    times: bool,
    report: Path | None,
    arch: str | None,
    trust: tuple[str, ...],
    as_json: bool,
) -> None:
    """List every layer: scheme, bytes, MACs, reasons."""
    from binarize.artifact import is_artifact
    from binarize.cli.recipes import read_recipe
    from binarize.cli.writing import require_separate
    from binarize.errors import ArtifactError
    from binarize.page import require_html, write_html
    from binarize.report import LEFT, summary

    if (scheme, ends, recipe) != (None, None, None) and is_artifact(network):
        raise click.UsageError(f"--scheme, --ends and --recipe are for a MODEL; {network} is converted already")
    if report is not None:
        require_html(report)
        require_separate([report], (network, arch, recipe))
    if network.endswith(".onnx"):
        remedy = "give the .safetensors file that it was exported from, or open it in a graph viewer"
        raise ArtifactError(f"cannot inspect {network!r}: it is an ONNX file, without layers to list; {remedy}")
    asked = read_recipe(recipe, scheme, ends)
    subject = open_subject(network, arch, trust)
    shape = input_shape or subject.input_shape
    if shape is None:
        shape = (3, 224, 224)
        note("counting MACs for an image of 3,224,224; --input-shape says otherwise")
    found = summary(subject.net, recipe=asked, input_shape=shape)
    timed = _times(subject.net, shape) if times else ()
    if report is not None:
        write_html(found, report, title=subject.title)
    if as_json:
        more = {"times": [dataclasses.asdict(row) for row in timed]} if times else {}
        print_json({**found.to_dict(), **more})
        return
    print_table(subject.title, found.columns(), found.rows(), left=LEFT)
    if found.branches:
        print_table("groups", found.branch_columns(), found.branch_rows(), left=(0, 1, 3))
    if found.groups():
        print_table("reconstruction", found.group_columns(), found.group_rows())
    if timed:
        print_table(
            "one image, one thread", ("layer", "route", "predicted", "measured"), [_cells(row) for row in timed]
        )
    print_lines(["", *found.closing(), *(_scheduled(subject.net) if times else ())])


def _times(net: "nn.Module", shape: tuple[int, ...]) -> "tuple[LayerTime, ...]":
    from binarize.times import layer_times

    return layer_times(net, input_shape=shape)


def _cells(row: "LayerTime") -> tuple[str, ...]:
    predicted = "" if row.predicted_us is None else f"{row.predicted_us:,.1f} us"
    return row.name, row.route, predicted, f"{row.measured_us:,.1f} us"


def _scheduled(net: "nn.Module") -> list[str]:
    """Return what of the network runs without torch, and why the rest does not."""
    from binarize.passes.schedule import coverage

    found = coverage(net)
    if found.reason is not None:
        return [f"every operation is called by torch: {found.reason}"]
    calls = "1 native call" if found.stretches == 1 else f"{found.stretches} native calls"
    lines = [f"{found.scheduled} operations run in {calls}, {len(found.left)} are left to torch"]
    return lines + [f"left to torch: {name} ({why})" for name, why in found.left.items()]
