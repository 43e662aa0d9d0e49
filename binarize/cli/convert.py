"""`binarize convert`: a trained model in, a packed network out."""

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import click

from binarize.cli.opening import open_original
from binarize.cli.options import SHAPE, data_options, json_option, model_options
from binarize.cli.output import Progress, note, print_json, print_lines, progress_bar
from binarize.cli.preparation import Glance, note_decisions
from binarize.cli.recipes import read_recipe
from binarize.cli.training import training_bar
from binarize.cli.writing import require_separate, require_writable
from binarize.errors import OutputError

if TYPE_CHECKING:
    from torch import nn

    from binarize.recipe import Recipe
    from binarize.sources import Opened

__all__ = ["Wish", "check_outputs", "convert", "converted", "finish"]

NOISE_IMAGES = 8
BATCHES = {"classification": 32, "segmentation": 2, "detection": 2}


@click.command()
@click.argument("model", metavar="MODEL")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="OUT",
              help="File to write; MODEL.binarized.safetensors beside a file by default.")  # fmt: skip
@click.option("--scheme", metavar="S", help="Such as encoding:w=4,a=4 (the default) or xnor-net.")
@click.option("--recipe", type=click.Path(path_type=Path), metavar="FILE.toml", help="Scheme per layer, and more.")
@click.option("--ends", metavar="S", help="Scheme of the first and last layers: fp (the default), encoding:w=8,a=8.")
@click.option("--keep", metavar="PATTERN", multiple=True, help="Layers that stay in full precision; repeatable.")
@data_options(False, "Images to calibrate on, labels not needed")
@click.option("--samples", type=click.IntRange(1), help="Calibrate on so many images, 256 by default.")
@click.option("--input-shape", type=SHAPE, help="Of one image; else the data's or 3,224,224.")
@click.option("--reconstruct", is_flag=True, help="Follow calibration by block reconstruction against the original.")
@click.option("--finetune", "epochs", type=click.IntRange(1), metavar="EPOCHS", help="Then train against the original.")
@click.option("--trainable", is_flag=True, help="Write the training form, with latent weights: large.")
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE.html", help="Write a page about every layer.")
@click.option("--seed", type=click.IntRange(0), help="Of every random choice, 0 by default.")
@model_options
@json_option
def convert(
    model: str, arch: str | None, trust: tuple[str, ...], output: Path | None, report: Path | None, as_json: bool,
    epochs: int | None, **given: Any,
) -> None:  # fmt: skip
    """Turn a trained MODEL into a packed binary network."""
    wish = Wish(**given)
    asked = wish.to_recipe()
    if epochs is not None and wish.data is None:
        raise click.UsageError("--finetune trains on images; add --data")
    target = output or _beside(model)
    check_outputs(target, report, (model, arch, wish.recipe, wish.data))
    opened = open_original(model, arch, trust)
    for sentence in wish.announced(opened, None if output else target):
        note(sentence)
    with progress_bar() as bar:
        net = converted(opened, asked, wish, bar)
    if epochs is not None:
        _train(net, opened, wish, epochs)
    finish(net, opened.name, target, report, wish.trainable, as_json)


def _train(net: "nn.Module", opened: "Opened", wish: "Wish", epochs: int) -> None:
    """Fine-tune against the original on the calibration data; `binarize finetune` has all the options."""
    from binarize.data import load_data
    from binarize.finetune import Settings
    from binarize.finetune import finetune as run
    from binarize.training.memory import keep_freed_memory

    assert wish.data is not None
    keep_freed_memory()
    asked = wish.to_recipe()
    data = load_data(
        wish.data, mean=wish.mean, std=wish.std, channels=wish.channels, input_shape=wish.shape(opened),
        batch_size=wish.batch, shuffle=True, seed=asked.seed,
    )  # fmt: skip
    note_decisions(Glance(net, data), opened.model)
    with training_bar() as bar:
        history = run(net, data, teacher=opened.model, settings=Settings(epochs=epochs, seed=asked.seed), progress=bar)
    if history.stopped is not None:
        raise KeyboardInterrupt


@final
@dataclasses.dataclass(frozen=True)
class Wish:
    """What to convert to, and on what data, as the options ask for it."""

    scheme: str | None
    ends: str | None
    recipe: Path | None
    keep: tuple[str, ...]
    data: str | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    channels: str
    samples: int | None
    input_shape: tuple[int, ...] | None
    reconstruct: bool
    trainable: bool
    seed: int | None

    def to_recipe(self) -> "Recipe":
        """Return the recipe, options overruling the file; its data spec is read early too, to fail early."""
        from binarize.data import DataSpec

        if self.data is not None:
            DataSpec.parse(self.data)
        recipe = read_recipe(self.recipe, self.scheme, self.ends)
        return dataclasses.replace(
            recipe,
            keep=(*recipe.keep, *self.keep),
            samples=recipe.samples if self.samples is None else self.samples,
            reconstruct=recipe.reconstruct or self.reconstruct,
            seed=recipe.seed if self.seed is None else self.seed,
        )

    @property
    def data_has_shape(self) -> bool:
        """Whether the data itself says how large its images are; files of a folder are cut to the model's size."""
        from binarize.data import DataSpec

        return self.data is not None and not DataSpec.parse(self.data).is_cut_to_shape

    @property
    def batch(self) -> int:
        """How many images go through the original at once: a detector enlarges them."""
        from binarize.data import DataSpec

        assert self.data is not None
        return BATCHES[DataSpec.parse(self.data).task]

    def shape(self, opened: "Opened") -> tuple[int, ...] | None:
        """Return ``(c, h, w)`` to calibrate on; None leaves it to the data."""
        if self.input_shape is not None or self.data_has_shape:
            return self.input_shape
        return opened.input_shape or self._usual_shape

    @functools.cached_property
    def _usual_shape(self) -> tuple[int, ...]:
        """What the files of a folder say, looked at once: there may be a million."""
        from binarize.data import DataSpec
        from binarize.imagefolder import Folders, usual_shape

        return (3, 224, 224) if self.data is None else usual_shape(Folders.read(DataSpec.parse(self.data).folder).files)

    def announced(self, opened: "Opened", chosen: Path | None) -> list[str]:
        """Return a sentence for each choice that was left to us."""
        lines = []
        if self.scheme is None and self.recipe is None:
            lines.append(f"chose --scheme {self.to_recipe().scheme}")
        if self.input_shape is None and not self.data_has_shape:
            shape = ",".join(map(str, self.shape(opened) or ()))
            lines.append(f"chose --input-shape {shape}")
        if chosen is not None:
            lines.append(f"chose -o {chosen}")
        if self.data is None:
            lines.append("warning: without --data, calibration runs on noise and the accuracy then means nothing")
        return lines


def _beside(model: str) -> Path:
    """Return the default output: beside a file, in the current folder for anything else."""
    path = Path(model)
    if path.suffix and ":" not in model:
        return path.with_name(f"{path.stem}.binarized.safetensors")
    name = model.rpartition(":")[2].partition("@")[0]
    return Path(f"{name or 'model'}.binarized.safetensors")


def check_outputs(target: Path, report: Path | None, inputs: tuple[str | Path | None, ...]) -> None:
    """Ask, before the long work, whether the files can be written and overwrite nothing that is read."""
    from binarize.page import require_html

    if target.suffix == ".onnx":
        remedy = f"convert to a .safetensors file first, then `binarize export NET -o {target}` writes ONNX"
        raise OutputError(f"cannot write {target}: this command does not write ONNX; {remedy}")
    require_separate([target] if report is None else [target, report], inputs)
    require_writable(target)
    if report is not None:
        require_html(report)
        require_writable(report)


def converted(opened: "Opened", recipe: "Recipe", wish: Wish, bar: Progress | None) -> "nn.Module":
    """Return the model converted and calibrated on the data wished for."""
    from binarize.convert import convert as run
    from binarize.cost import example_arguments
    from binarize.data import load_data, random_images

    source = {"name": opened.name, "origin": opened.origin, "kind": opened.kind, "sha256": opened.sha256}
    source["arch"] = None if opened.arch is None else Path(opened.arch).name  # not where it lay on this disk
    shape = wish.shape(opened)
    if wish.data is None:
        noise = random_images(shape or (3, 224, 224), NOISE_IMAGES, recipe.seed)
        arguments = example_arguments(opened.model, noise)
        return run(opened.model, arguments, recipe=recipe, source=source, progress=bar)
    data = load_data(
        wish.data, mean=wish.mean, std=wish.std, channels=wish.channels, input_shape=shape, batch_size=wish.batch,
        limit=recipe.samples, shuffle=True, seed=recipe.seed,
    )  # fmt: skip
    return run(opened.model, recipe=recipe, data=data, source=source, progress=bar)


def finish(
    net: "nn.Module",
    title: str,
    target: Path,
    report: Path | None,
    trainable: bool,
    as_json: bool,
    more: dict[str, Any] | None = None,
) -> None:
    """Write the network and the page, and print what came of it; JSON holds ``more`` too."""
    from binarize.artifact import save
    from binarize.page import write_html
    from binarize.passes.pack import pack
    from binarize.report import summary
    from binarize.tables import size

    packed = pack(net)
    written = save(net if trainable else packed, target)
    found = summary(packed, macs=report is not None)
    if report is not None:
        write_html(found, report, title=title)
    totals = found.totals
    if as_json:
        counts = {"converted": totals.converted, "kept": totals.kept, "output": str(target), "bytes": written}
        named = {"groups": found.groups(), "warning": found.warning(), **(more or {})}
        said = {name: value for name, value in named.items() if value}
        print_json({**counts, "fp32_bytes": totals.fp32_bytes, "scheme": found.recipe.scheme, **said})
        return
    kept = [f"  kept {len(names)}: {reason}" for reason, names in found.reasons().items()]
    wrote = [f"wrote {target} ({size(written)})", *([] if report is None else [f"wrote {report}"])]
    print_lines([*found.closing(), *kept, *wrote])
