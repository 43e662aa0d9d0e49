"""`binarize demo`: trains a small network on real handwritten digits, then does what a user would type."""

import contextlib
import io
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any, final

import click

from binarize.cli.options import json_option, seed_option
from binarize.cli.output import note, print_json, print_lines, print_table, progress_bar

__all__ = ["demo"]


@click.command()
@click.option(
    "--folder", type=click.Path(path_type=Path), default=Path("demo"), show_default=True, help="Where to write."
)
@click.option("--scheme", metavar="S", default="encoding:w=4,a=4", show_default=True, help="What to convert to.")
@click.option("--epochs", type=click.IntRange(1), default=12, show_default=True, help="Of training the original.")
@seed_option
@json_option
def demo(folder: Path, scheme: str, epochs: int, seed: int, as_json: bool) -> None:
    """Do all of it on real handwritten digits.

    Trains a small network, then converts, evaluates, inspects, exports and times it as a user would, and prints
    accuracy, bytes and latency of fp32, int8 and ours.
    """
    from binarize.cli.recipes import read_recipe

    read_recipe(None, scheme)
    # The commands' own output is no part of the one JSON object.
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        _train(folder, epochs, seed)
        tour = _Tour(folder, scheme, seed)
        tour.walk()
        measured = tour.benchmark()
    if as_json:
        print_json(measured)
    else:
        _print(measured)


def _train(folder: Path, epochs: int, seed: int) -> None:
    """Write ``network.py`` and ``digits.pt``: a model file and a plain checkpoint, as any user has them."""
    import torch

    from binarize.demo import network, training
    from binarize.errors import OutputError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(network.__file__, folder / "network.py")
    except OSError as cause:
        raise OutputError(f"cannot write to {folder}: {cause.strerror}; give another --folder") from cause
    torch.manual_seed(seed)
    model = network.network()
    start = time.perf_counter()
    with progress_bar() as bar:
        step = None if bar is None else lambda done, total: bar("training the original", done, total)
        training.train(model, epochs=epochs, seed=seed, progress=step)
    torch.save(model.state_dict(), folder / "digits.pt")
    size = sum(parameter.numel() for parameter in model.parameters())
    note(f"trained {size:,} parameters on digits:train in {time.perf_counter() - start:.0f} s: {folder / 'digits.pt'}")


@final
class _Tour:
    """The commands of a first session, typed one after the other."""

    def __init__(self, folder: Path, scheme: str, seed: int) -> None:
        self.folder, self.scheme, self.seed = folder, scheme, seed
        self.original = str(folder / "digits.pt")
        self.factory = f"{folder / 'network.py'}:network"
        self.packed = str(folder / "digits.safetensors")
        self.exported = str(folder / "digits.onnx")

    def walk(self) -> None:
        """Convert, evaluate, inspect, export, and check in ONNX Runtime."""
        arch, test = ("--arch", self.factory), ("--data", "digits:test")
        self._type(
            "convert", self.original, *arch, "--data", "digits:train", "--scheme", self.scheme,
            "--seed", str(self.seed), "-o", self.packed,
        )  # fmt: skip
        self._type("evaluate", self.original, *arch, *test)
        self._type("evaluate", self.packed, *test, "--teacher", self.original, "--teacher-arch", self.factory)
        self._type("inspect", self.packed)
        self._type("export", self.packed, "-o", self.exported)
        self._type("evaluate", self.exported, *test, "--teacher", self.packed)

    def benchmark(self) -> dict[str, Any]:
        """Return what the benchmark command prints as JSON, accuracy on the test images included."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            self._type(
                "benchmark", self.packed, "--against", self.original, "--arch", self.factory,
                "--data", "digits:test", "--threads", "1", "--json",
            )  # fmt: skip
        found: dict[str, Any] = json.loads(printed.getvalue())
        return found

    @staticmethod
    def _type(*words: str) -> None:
        click.echo(err=True)
        click.secho(f"$ binarize {' '.join(words)}", bold=True, err=True)
        context = click.get_current_context()
        code = context.find_root().command.main(list(words), prog_name="binarize", standalone_mode=False)
        if code:
            context.exit(code)


def _print(measured: dict[str, Any]) -> None:
    from binarize.tables import size

    rows = [
        (
            row["name"],
            f"{row['top1']:.1%}",
            size(row["bytes"]),
            f"{row['median_us']:,.0f} us",
            f"{row['p10_us']:,.0f} us",
        )
        for row in measured["rows"]
    ]
    click.echo()
    first = measured["rows"][0]
    title = f"digits:test, batch {first['batch']}, {first['threads']} threads"
    print_table(title, ("network", "accuracy", "file", "latency", "p10"), rows)
    print_lines(["", *_verdict(measured)])


def _verdict(measured: dict[str, Any]) -> list[str]:
    from binarize.benchmark import Benchmark, Row

    found = Benchmark(tuple(Row(**row) for row in measured["rows"]), tuple(measured["notes"]))
    small = "images of 8x8 take microseconds: most of our time is the cost of calls, not of kernels; see benchmarks/"
    return [*found.verdict(), *found.notes, small]
