"""`binarize export`: a converted network as one ONNX file, or as OpenVINO's two."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from binarize.cli.opening import open_net
from binarize.cli.options import FLOATS, json_option, model_options
from binarize.cli.output import print_json, print_lines, print_table

if TYPE_CHECKING:
    from torch import nn

    from binarize.data import Images

__all__ = ["export"]

LEAST = 18  # opset
OTHERS = (".xml", ".bin", ".safetensors", ".pt", ".pth", ".pt2")


@click.command()
@click.argument("network", metavar="NET")
@click.option("-o", "--output", metavar="OUT", required=True, type=click.Path(path_type=Path), help="File to write.")
@click.option(
    "--format", "kind", type=click.Choice(["onnx", "openvino"]), default="onnx", show_default=True,
    help="openvino writes OUT.xml and OUT.bin and needs the extra of that name.",
)  # fmt: skip
@click.option("--portable", is_flag=True, help="Standard operations only, for runtimes that know no functions.")
@click.option(
    "--opset", type=click.IntRange(LEAST, 26), default=LEAST, show_default=True, help="Of the standard operations."
)
@click.option("--dynamic-size", is_flag=True, help="Leave height and width open too.")
@click.option("--part", metavar="PATH", help="Of a network that was captured by parts: the one to write.")
@click.option("--check", "data", metavar="SPEC", help="Run the file on these images and compare with NET.")
@click.option("--mean", type=FLOATS, help="Subtracted from --check's images after division by 255, per channel.")
@click.option("--std", type=FLOATS, help="Divided by after --mean, per channel.")
@click.option(
    "--channels", type=click.Choice(["rgb", "bgr"]), default="rgb", show_default=True, help="Order that NET reads."
)
@click.option("--samples", type=click.IntRange(1), help="Check on the first so many images only.")
@model_options
@json_option
def export(
    network: str,
    output: Path,
    kind: str,
    portable: bool,
    opset: int,
    dynamic_size: bool,
    part: str | None,
    data: str | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    channels: str,
    samples: int | None,
    arch: str | None,
    trust: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write NET as one ONNX file.

    Bits stay packed in the file, every operation has a body in standard ones: ONNX Runtime runs it without this
    package, and by this package's kernels with `binarize.onnxruntime_library()`.
    """
    from binarize.cli.writing import require_separate, require_writable
    from binarize.export.check import compare
    from binarize.export.onnx import export_onnx
    from binarize.export.parts import part_of
    from binarize.layers.binary import binary_layers
    from binarize.passes.pack import pack
    from binarize.tables import size

    if part is not None and data is not None:
        raise click.UsageError("--check gives images to the whole network; of a --part compare the outputs yourself")
    if data is None and (mean, std, samples) != (None, None, None):
        raise click.UsageError("--mean, --std and --samples are for the images of --check; the file holds none of them")
    if kind == "openvino" and (portable or opset != LEAST):
        raise click.UsageError("--portable and --opset are for ONNX files; OpenVINO's holds its own operations")
    require_separate([output], (network, arch))
    require_writable(output)
    _require_suffix(output, kind)
    _require_converted(network)
    subject = open_net(network, arch, trust)
    whole = pack(subject.net) if any(True for _ in binary_layers(subject.net)) else subject.net
    images = None if data is None else _images(whole, data, mean, std, channels, samples)
    net, inputs = (whole, None) if part is None else part_of(whole, part)
    if kind == "openvino":
        from binarize.export.openvino import export_openvino

        export_openvino(net, output, example_inputs=inputs, dynamic_size=dynamic_size)
    else:
        export_onnx(
            net, output, example_inputs=inputs, opset=opset, dynamic_size=dynamic_size, portable=portable
        )  # fmt: skip
    written = output.stat().st_size + _weights_of(output, kind)
    if not as_json:
        print_lines([f"wrote {output} ({size(written)})"])
    form = "openvino" if kind == "openvino" else "plain" if portable else "functions"
    found = [] if images is None else compare(whole, output, images, form=form)
    if as_json:
        more = {"check": [asdict(row) for row in found]} if found else {}
        print_json({"output": str(output), "bytes": written, **more})
    elif found:
        rows = [
            (row.runtime, f"{row.agreed:.2%}", f"{row.close:.2%}", f"{row.largest:.3g} of {row.scale:.3g}")
            for row in found
        ]
        title = f"compared with {subject.title} on {found[0].samples} images"
        print_table(title, ("runtime", "decisions agreed", "images within 0.1 %", "largest difference"), rows)


def _require_converted(network: str) -> None:
    """Tell who names a model of full precision what comes first."""
    from binarize.artifact import is_artifact
    from binarize.errors import ExportError

    if network.endswith(".onnx"):
        raise ExportError(f"cannot export {network}: it is an ONNX file already; --check compares one as it is written")
    if not is_artifact(network) and (":" in network or Path(network).exists()):
        raise ExportError(
            f"cannot export {network}: it is not a converted network; "
            f"convert it first: binarize convert {network} -o NET"
        )


def _require_suffix(output: Path, kind: str) -> None:
    """Refuse a name that says another kind of file."""
    from binarize.errors import ExportError

    if kind == "onnx" and output.suffix.lower() in OTHERS:
        remedy = "add --format openvino" if output.suffix.lower() == ".xml" else "end its name in .onnx"
        raise ExportError(f"cannot write ONNX to {output}: its name says another kind of file; {remedy}")


def _weights_of(output: Path, kind: str) -> int:
    return output.with_suffix(".bin").stat().st_size if kind == "openvino" else 0


def _images(
    net: "nn.Module",
    data: str,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    channels: str,
    samples: int | None,
) -> "Images":
    """Open the images to check with, before anything is written."""
    from binarize.data import DataSpec, load_data
    from binarize.record import record_of

    spec = DataSpec.parse(data)
    shape = record_of(net).input_shape if spec.kind == "imagefolder" else None
    return load_data(spec, mean=mean, std=std, channels=channels, input_shape=shape, batch_size=64, limit=samples)
