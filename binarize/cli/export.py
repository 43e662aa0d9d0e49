"""`binarize export`: a converted network as one ONNX file."""

from pathlib import Path

import click

from binarize.cli.opening import open_net
from binarize.cli.options import json_option, model_options
from binarize.cli.output import print_json, print_lines

__all__ = ["export"]


@click.command()
@click.argument("network", metavar="NET")
@click.option(
    "-o", "--output", metavar="OUT.onnx", required=True, type=click.Path(path_type=Path), help="File to write."
)
@click.option("--part", metavar="PATH", help="Of a network that was captured by parts: the one to write.")
@model_options
@json_option
def export(
    network: str, output: Path, part: str | None, arch: str | None, trust: tuple[str, ...], as_json: bool
) -> None:
    """Write NET as one ONNX file.

    Bits stay packed in the file, every operation has a body in standard ones: ONNX Runtime runs it without this
    package.
    """
    from binarize.cli.writing import require_separate, require_writable
    from binarize.export.onnx import export_onnx
    from binarize.export.parts import export_part
    from binarize.tables import size

    require_separate([output], (network, arch))
    require_writable(output)
    subject = open_net(network, arch, trust)
    if part is None:
        export_onnx(subject.net, output)
    else:
        export_part(subject.net, output, part)
    written = output.stat().st_size
    if as_json:
        print_json({"output": str(output), "bytes": written})
    else:
        print_lines([f"wrote {output} ({size(written)})"])
