"""What each layer became and why the rest did not: as text, JSON and HTML."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from binarize.artifact import replacing
from binarize.convert import plan
from binarize.cost import example_arguments, measure_macs, packed_bytes, tensor_bytes, weight_bytes
from binarize.data import random_images
from binarize.errors import ModelError, OutputError
from binarize.layers.binary import binary_layers
from binarize.layers.packed import PackedLayer
from binarize.passes.pack import pack
from binarize.recipe import Recipe
from binarize.record import LayerRecord, Record, record_of
from binarize.schemes.presets import build_scheme
from binarize.training.curves import curves_of

__all__ = ["LayerSummary", "Summary", "Totals", "plain_table", "size", "summary", "write_html"]

FLOAT_BYTES = 4


@final
@dataclasses.dataclass(frozen=True)
class LayerSummary:
    """One weighted layer.

    Attributes:
        name: module path.
        kind: class name of the original layer.
        scheme: scheme string, or None where the layer stays in full precision.
        bytes: of its weight in packed form.
        fp32_bytes: of its weight as float32.
        reason: why it stays in full precision, or None.
        macs: multiply-accumulates for one image; None where the network could not be run.
        products: binary products per MAC; 0 in full precision.
    """

    name: str
    kind: str
    scheme: str | None
    bytes: int
    fp32_bytes: int
    reason: str | None
    macs: int | None
    products: int


@final
@dataclasses.dataclass(frozen=True)
class Totals:
    """The sums; see `binarize.cost` for the conventions.

    Attributes:
        bytes: of the whole network in packed form, biases and normalisation included.
        fp32_bytes: of the same network in float32.
        binary_macs: binary products for one image, or None.
        float_macs: MACs of the layers in full precision, or None.
        converted: how many layers.
        kept: how many layers.
    """

    bytes: int
    fp32_bytes: int
    binary_macs: int | None
    float_macs: int | None
    converted: int
    kept: int

    @property
    def ratio(self) -> float:
        """How many times smaller the packed form is."""
        return self.fp32_bytes / max(self.bytes, 1)


@final
@dataclasses.dataclass(frozen=True)
class Summary:
    """What a conversion did, or would do.

    Attributes:
        form: "original" (nothing was done yet), "training" or "packed".
        recipe: what was asked for.
        input_shape: ``(c, h, w)`` that the MACs are for, or None.
        layers: every weighted layer, in the model's order.
        totals: the sums.
        uncaptured: reason for each module that could not be captured as a graph.
        details: source, calibration, training and metrics, as the record keeps them.
    """

    form: str
    recipe: Recipe
    input_shape: tuple[int, ...] | None
    layers: tuple[LayerSummary, ...]
    totals: Totals
    uncaptured: Mapping[str, str] = dataclasses.field(default_factory=dict)
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = dataclasses.asdict(self)
        values["recipe"] = self.recipe.to_dict()
        return values

    def reasons(self) -> dict[str, list[str]]:
        """Return the layers that each reason keeps in full precision."""
        found: dict[str, list[str]] = {}
        for layer in self.layers:
            if layer.reason is not None:
                found.setdefault(layer.reason, []).append(layer.name)
        return found

    def columns(self) -> tuple[str, ...]:
        """Return the headings of `rows`."""
        return ("layer", "kind", "scheme", "fp32", "packed", "smaller", "MACs", "stays fp because")

    def rows(self) -> list[tuple[str, ...]]:
        """Return the layer table as text, one row per layer."""
        return [_row(layer) for layer in self.layers]

    def groups(self) -> Mapping[str, Mapping[str, float]]:
        """Return what reconstruction did to each group: ``before`` and ``after``, see `GroupFit`; empty without it."""
        found: Mapping[str, Mapping[str, float]] = self.details.get("calibration", {}).get("groups", {})
        return found

    def group_columns(self) -> tuple[str, ...]:
        """Return the headings of `group_rows`."""
        return ("group", "error before", "error after")

    def group_rows(self) -> list[tuple[str, ...]]:
        """Return the table of reconstructed groups as text, one row per group."""
        return [(name, f"{fit['before']:.4f}", f"{fit['after']:.4f}") for name, fit in self.groups().items()]

    def closing(self) -> list[str]:
        """Return the sentences under the table: sums, and what was left out."""
        totals = self.totals
        verb = {"original": "would be converted", "training": "converted", "packed": "converted"}[self.form]
        lines = [
            f"{totals.converted} layers {verb} ({self.recipe.scheme}), {totals.kept} kept in full precision",
            f"{size(totals.fp32_bytes)} in fp32, {size(totals.bytes)} packed: {totals.ratio:.1f} times smaller",
        ]
        if totals.binary_macs is not None and totals.float_macs is not None:
            shape = "x".join(map(str, self.input_shape or ()))
            binary, floats = count(totals.binary_macs), count(totals.float_macs)
            lines.append(f"one {shape} image: {binary} binary products, {floats} float MACs")
        if groups := self.groups():
            better = sum(fit["after"] < fit["before"] for fit in groups.values())
            lines.append(f"reconstruction brought {better} of {len(groups)} groups closer to the original")
        if self.recipe.stages:
            lines.append(f"stages of fine-tuning: {'; '.join(self.recipe.stages)}")
        lines += [f"not traced: {path or 'the model'} ({reason})" for path, reason in self.uncaptured.items()]
        return lines

    def __str__(self) -> str:
        """Return the table and the sums as plain text."""
        lines = [plain_table(self.columns(), self.rows(), left=(0, 1, 2, 7)), ""]
        if self.groups():
            lines += [plain_table(self.group_columns(), self.group_rows()), ""]
        return "\n".join((*lines, *self.closing()))


def summary(
    net: nn.Module, *, recipe: Recipe | None = None, input_shape: Sequence[int] | None = None, macs: bool = True
) -> Summary:
    """Say what each layer became and why the rest did not; for an original model, what `convert` would do.

    Args:
        net: a converted network in either form, or an original model.
        recipe: for an original model: what would be asked for.
        input_shape: ``(c, h, w)`` to count MACs for; by default the one the network was calibrated on; an
            original model without it is not run, and its MACs stay unknown.
        macs: whether to run the network once to count MACs.

    Raises:
        ModelError: the network does not run on images of that shape.
    """
    try:
        record = record_of(net)
    except ModelError:
        asked = recipe or Recipe()
        shape = None if input_shape is None else tuple(input_shape)
        record = Record(asked, plan(net, asked), input_shape=shape)
        return _summary(net, record, "original", shape, macs)
    form = "training" if any(True for _ in binary_layers(net)) else "packed"
    packed = pack(net) if form == "training" else net
    return _summary(packed, record, form, tuple(input_shape or record.input_shape or ()) or None, macs)


def _summary(net: nn.Module, record: Record, form: str, shape: tuple[int, ...] | None, macs: bool) -> Summary:
    counted = None
    if macs and shape is not None:
        counted = measure_macs(net, example_arguments(net, random_images(shape, 1)))
    modules = dict(net.named_modules(remove_duplicate=False))
    layers = tuple(_layer(layer, modules.get(layer.name), counted) for layer in record.layers)
    return Summary(
        form=form,
        recipe=record.recipe,
        input_shape=shape,
        layers=layers,
        totals=_totals(layers, tensor_bytes(net), packed=form != "original"),
        uncaptured=record.uncaptured,
        details=_details(record),
    )


def _details(record: Record) -> dict[str, Any]:
    names = ("source", "calibration", "training", "metrics")
    return {name: getattr(record, name) for name in names}


def _layer(layer: LayerRecord, module: nn.Module | None, macs: Mapping[str, int] | None) -> LayerSummary:
    scheme = None if layer.scheme is None else build_scheme(layer.scheme)
    if module is None:
        stored = 0  # never called: the graph has no place for it
    elif scheme is None or isinstance(module, PackedLayer):
        stored = weight_bytes(module)
    else:
        weight = module.weight
        stored = packed_bytes(weight.shape, scheme) if isinstance(weight, torch.Tensor) else 0
    return LayerSummary(
        name=layer.name,
        kind=layer.kind,
        scheme=layer.scheme,
        bytes=stored,
        fp32_bytes=layer.weights * FLOAT_BYTES,
        reason=layer.reason,
        macs=None if macs is None else macs.get(layer.name, 0),
        products=0 if scheme is None else scheme.products,
    )


def _totals(layers: Sequence[LayerSummary], held: int, packed: bool) -> Totals:
    saved = sum(layer.fp32_bytes - layer.bytes for layer in layers)
    known = all(layer.macs is not None for layer in layers)
    converted = sum(layer.scheme is not None for layer in layers)
    return Totals(
        bytes=held if packed else held - saved,
        fp32_bytes=held + saved if packed else held,
        binary_macs=sum((layer.macs or 0) * layer.products for layer in layers) if known else None,
        float_macs=sum(layer.macs or 0 for layer in layers if layer.scheme is None) if known else None,
        converted=converted,
        kept=len(layers) - converted,
    )


def _row(layer: LayerSummary) -> tuple[str, ...]:
    smaller = f"{layer.fp32_bytes / layer.bytes:.1f}x" if layer.scheme and layer.bytes else ""
    macs = "" if layer.macs is None else count(layer.macs)
    return (
        layer.name,
        layer.kind,
        layer.scheme or "fp",
        size(layer.fp32_bytes),
        size(layer.bytes),
        smaller,
        macs,
        layer.reason or "",
    )


def size(amount: int) -> str:
    """Return bytes for a person: powers of 1000, three digits."""
    return f"{_scaled(amount)}B"


def count(amount: int) -> str:
    """Return a count for a person: powers of 1000, three digits."""
    return _scaled(amount).rstrip()


def _scaled(amount: int) -> str:
    value = float(amount)
    for unit in ("", "k", "M", "G"):
        if value < 999.5:
            digits = 0 if not unit or value >= 99.95 else 1
            return f"{value:.{digits}f} {unit}"
        value /= 1000
    return f"{value:.1f} T"


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Return an aligned table in plain text; columns are right-aligned but for those in ``left``."""
    table = [list(columns), *[list(row) for row in rows]]
    widths = [max(len(row[index]) for row in table) for index in range(len(columns))]
    cells = [
        [cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        for row in table
    ]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join("  ".join(row).rstrip() for row in cells)


def require_html(path: Path | str) -> None:
    """Raise OutputError if an HTML report cannot be made here."""
    import importlib.util

    if importlib.util.find_spec("jinja2") is None:
        raise OutputError(
            f"cannot write the report {path}: jinja2 is not installed; run pip install 'binarize[report]'"
        )


def write_html(found: Summary, path: Path | str, *, title: str) -> None:
    """Write a self-contained page: no scripts, nothing loaded from elsewhere.

    Raises:
        OutputError: jinja2 is missing, or the file cannot be written.
    """
    require_html(path)
    import jinja2

    curves = curves_of(found.details.get("training", {}))
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_PAGE)
    text = page.render(title=title, summary=found, size=size, count=count, widest=_widest(found), curves=curves)
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


def _widest(found: Summary) -> int:
    return max((layer.fp32_bytes for layer in found.layers), default=1) or 1


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
td.why { white-space: normal; color: #666; }
td svg { display: block; }
tr.kept td { background: #fafafa; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for line in summary.closing() %}
<p>{{ line }}</p>
{% endfor %}
<h2>Layers</h2>
<table>
<tr><th>layer</th><th>kind</th><th>scheme</th><th class="n">fp32</th><th class="n">packed</th><th>bytes</th>
<th class="n">MACs</th><th>stays fp because</th></tr>
{% for layer in summary.layers %}
<tr{% if not layer.scheme %} class="kept"{% endif %}>
<td>{{ layer.name }}</td><td>{{ layer.kind }}</td><td>{{ layer.scheme or "fp" }}</td>
<td class="n">{{ size(layer.fp32_bytes) }}</td><td class="n">{{ size(layer.bytes) }}</td>
<td><svg width="120" height="10" role="img" aria-label="share of the largest layer">
<rect width="{{ (120 * layer.fp32_bytes / widest)|round(1) }}" height="10" fill="#d5dbe3"/>
<rect width="{{ (120 * layer.bytes / widest)|round(1) }}" height="10" fill="#2f6db5"/></svg></td>
<td class="n">{{ count(layer.macs) if layer.macs is not none }}</td><td class="why">{{ layer.reason or "" }}</td>
</tr>
{% endfor %}
</table>
{% if summary.reasons() %}
<h2>Kept in full precision</h2>
<ul>
{% for reason, names in summary.reasons().items() %}
<li>{{ reason }}: {{ names | join(", ") }}</li>
{% endfor %}
</ul>
{% endif %}
{% if summary.groups() %}
<h2>Reconstruction</h2>
<table>
<tr><th>group</th><th class="n">error before</th><th class="n">error after</th></tr>
{% for name, before, after in summary.group_rows() %}
<tr><td>{{ name }}</td><td class="n">{{ before }}</td><td class="n">{{ after }}</td></tr>
{% endfor %}
</table>
<p>Squared difference to the original's output of that group, over its variance, on images that were not trained on.</p>
{% endif %}
{% if curves %}
<h2>Fine-tuning</h2>
{% for curve in curves %}
<p>{{ curve.name }}: {{ "%.4g to %.4g"|format(curve.first, curve.last) }}</p>
<svg width="480" height="130" viewBox="-4 -4 488 128" role="img" aria-label="{{ curve.name }} by epoch">
<polyline points="{{ curve.points }}" fill="none" stroke="#2f6db5" stroke-width="2"/></svg>
{% endfor %}
{% endif %}
<h2>Where it came from</h2>
<dl>
{% for name, values in summary.details.items() if values %}
<dt>{{ name }}</dt>
{% for key, value in values.items() if key not in ("groups", "epochs") %}
<dd>{{ key }}: {{ value }}</dd>
{% endfor %}
{% endfor %}
</dl>
</body>
</html>
"""
