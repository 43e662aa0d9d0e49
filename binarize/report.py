"""What each layer became and why the rest did not, as data and as text; `binarize.page` makes HTML of it."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, final

import torch
from torch import nn

from binarize.calibration.places import layer_copies
from binarize.calibration.prepared import Prepared, unlike
from binarize.calibration.reconstruct import WHOLE
from binarize.convert import plan
from binarize.cost import example_arguments, measure_macs, packed_bytes, tensor_bytes, weight_bytes, weight_shape
from binarize.data import random_images
from binarize.errors import ModelError
from binarize.layers.binary import binary_layers
from binarize.layers.branches import branch_groups
from binarize.layers.packed import PackedLayer
from binarize.passes.pack import pack
from binarize.recipe import Recipe
from binarize.record import GroupRecord, LayerRecord, Record, record_of
from binarize.schemes.presets import Scheme, build_scheme
from binarize.tables import count, figure, plain_table, size

__all__ = ["LEFT", "LayerSummary", "Summary", "Totals", "summary"]

FLOAT_BYTES = 4
LEFT = (0, 1, 2, 3, 8)  # columns of the layer table that hold words


@final
@dataclasses.dataclass(frozen=True)
class LayerSummary:
    """One weighted layer.

    Attributes:
        name: module path.
        kind: class name of the original layer.
        scheme: scheme string, or None where the layer stays in full precision.
        bytes: of its weight in packed form, in all branches.
        fp32_bytes: of its weight as float32.
        reason: why it stays in full precision, or None.
        macs: multiply-accumulates for one image, in one branch if it is binary, in all that run if it is not; None
            where the network could not be run.
        products: binary products per MAC, those of all branches that run; 0 in full precision.
        group: the group that it is copied with into branches, or None.
        route: how it, or its first copy, runs on this machine: "popcount" or "int8"; None in full precision.
    """

    name: str
    kind: str
    scheme: str | None
    bytes: int
    fp32_bytes: int
    reason: str | None
    macs: int | None
    products: int
    group: str | None = None
    route: str | None = None


@final
@dataclasses.dataclass(frozen=True)
class Totals:
    """The sums; see `binarize.cost` for the conventions.

    Attributes:
        bytes: of the whole network in packed form, biases and normalisation included.
        fp32_bytes: of the same network in float32.
        binary_macs: binary products for one image, or None.
        float_macs: MACs of the layers in full precision and of routers, or None.
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
        branches: every group that was to become branches.
        uncaptured: reason for each module that could not be captured as a graph.
        details: source, calibration, training and metrics, as the record keeps them.
    """

    form: str
    recipe: Recipe
    input_shape: tuple[int, ...] | None
    layers: tuple[LayerSummary, ...]
    totals: Totals
    branches: tuple[GroupRecord, ...] = ()
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
        return ("layer", "kind", "scheme", "route", "fp32", "packed", "smaller", "MACs", "stays fp because")

    def rows(self) -> list[tuple[str, ...]]:
        """Return the layer table as text, one row per layer."""
        return [_row(layer) for layer in self.layers]

    def branch_columns(self) -> tuple[str, ...]:
        """Return the headings of `branch_rows`."""
        return ("group", "kind", "branches", "connection")

    def branch_rows(self) -> list[tuple[str, ...]]:
        """Return the table of groups as text, one row per group that was to become branches."""
        return [_branch_row(group) for group in self.branches]

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

    def warning(self) -> str | None:
        """Return what speaks against the way in which the images of calibration were prepared, or None."""
        prepared = Prepared.read(self.details.get("calibration", {}).get("prepared"))
        reason = None if prepared is None else prepared.why_not()
        return None if reason is None else unlike("training", reason)

    def closing(self) -> list[str]:
        """Return the sentences under the table: sums, and what was left out."""
        totals = self.totals
        verb = {"original": "would be converted", "training": "converted", "packed": "converted"}[self.form]
        layers = f"{totals.converted} layer{'s' * (totals.converted != 1)}"
        lines = [
            f"{layers} {verb} ({self._by_scheme()}), {totals.kept} kept in full precision",
            f"{size(totals.fp32_bytes)} in fp32, {size(totals.bytes)} packed: {totals.ratio:.1f} times smaller",
        ]
        if totals.binary_macs is not None and totals.float_macs is not None:
            shape = "x".join(map(str, self.input_shape or ()))
            binary, floats = count(totals.binary_macs), count(totals.float_macs)
            lines.append(f"one {shape} image: {binary} binary products, {floats} float MACs")
        if self.branches:
            lines.append(_on_branches(self.branches))
        if self.recipe.exactness != "exact":
            lines.append(f"exactness {self.recipe.exactness} is accepted on route int8; popcount is always exact")
        if groups := self.groups():
            alone = [fit for name, fit in groups.items() if not name.endswith(WHOLE)]
            better = sum(fit["after"] < fit["before"] for fit in alone)
            lines.append(f"reconstruction brought {better} of {len(alone)} groups closer to the original")
        if self.recipe.stages:
            lines.append(f"stages of fine-tuning: {'; '.join(self.recipe.stages)}")
        if warning := self.warning():
            lines.append(f"warning: {warning}")
        lines += self._reached()
        lines += [f"not traced: {path or 'the model'} ({reason})" for path, reason in self.uncaptured.items()]
        return lines

    def _reached(self) -> list[str]:
        """Return what fine-tuning did, and the figures measured so far."""
        lines = []
        if epochs := self.details.get("training", {}).get("epochs"):
            last = [*takewhile(lambda epoch: epoch["stage"] == epochs[-1]["stage"], reversed(epochs))][::-1]
            passes = f"{len(epochs)} epoch{'s' if len(epochs) > 1 else ''}"
            where = f" in stage {last[0]['stage']}" if len(last) < len(epochs) else ""
            losses = " to ".join(f"{epoch['loss']:.4f}" for epoch in (last[0], *last[1:][-1:]))
            lines.append(f"fine-tuned for {passes}, loss{where} {losses}")
        for when, found in self.details.get("metrics", {}).items():
            figures = found if isinstance(found, Mapping) else {"": found}
            named = [figure(name, value) for name, value in figures.items() if isinstance(value, float)]
            lines += [f"{when}: {', '.join(named)}"] if named else []
        return lines

    def _by_scheme(self) -> str:
        """Return the schemes, with how many layers have each where there are several."""
        found = Counter(layer.scheme for layer in self.layers if layer.scheme is not None)
        if len(found) < 2:
            return next(iter(found), None) or self.recipe.scheme
        return ", ".join(f"{number} {scheme}" for scheme, number in found.most_common())

    def __str__(self) -> str:
        """Return the table and the sums as plain text."""
        lines = [plain_table(self.columns(), self.rows(), left=LEFT), ""]
        if self.branches:
            lines += [plain_table(self.branch_columns(), self.branch_rows(), left=(0, 1, 3)), ""]
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
        record = dataclasses.replace(plan(net, asked), input_shape=shape)
        return _summary(net, record, "original", shape, macs)
    form = "training" if any(True for _ in binary_layers(net)) else "packed"
    packed = pack(net) if form == "training" else net
    return _summary(packed, record, form, tuple(input_shape or record.input_shape or ()) or None, macs)


def _summary(net: nn.Module, record: Record, form: str, shape: tuple[int, ...] | None, macs: bool) -> Summary:
    counted = None
    if macs and shape is not None:
        counted = measure_macs(net, example_arguments(net, random_images(shape, 1)))
    layers = tuple(_Layers(net, record, counted).summary(layer) for layer in record.layers)
    return Summary(
        form=form,
        recipe=record.recipe,
        input_shape=shape,
        layers=layers,
        totals=_totals(layers, net, counted, packed=form != "original"),
        branches=record.groups,
        uncaptured=record.uncaptured,
        details=_details(record),
    )


def _details(record: Record) -> dict[str, Any]:
    names = ("source", "calibration", "training", "metrics")
    return {name: getattr(record, name) for name in names}


@final
class _Layers:
    """The layers of one network, wherever their copies are."""

    def __init__(self, net: nn.Module, record: Record, macs: Mapping[str, int] | None) -> None:
        self.modules = dict(net.named_modules(remove_duplicate=False))
        self.copies, self.macs = layer_copies(net), macs
        self.groups = {group.name: group for group in record.groups}

    def summary(self, layer: LayerRecord) -> LayerSummary:
        """Return the row of one layer, its copies added up."""
        scheme = None if layer.scheme is None else build_scheme(layer.scheme)
        return LayerSummary(
            name=layer.name,
            kind=layer.kind,
            scheme=layer.scheme,
            bytes=self._bytes(layer, scheme),
            fp32_bytes=layer.weights * FLOAT_BYTES,
            reason=layer.reason,
            macs=None if self.macs is None else self._macs(layer, self.macs),
            products=0 if scheme is None else scheme.products,
            group=layer.group,
            route=self._route(layer),
        )

    def _route(self, layer: LayerRecord) -> str | None:
        module = self.modules.get(next(iter(self.copies.get(layer.name, ())), layer.name))
        if not isinstance(module, PackedLayer):
            return None
        chosen = module.activation.route
        merges = module.geometry_on(chosen) is not module.geometry
        return f"{chosen} ({module.exactness})" if merges else chosen

    def _bytes(self, layer: LayerRecord, scheme: Scheme | None) -> int:
        if layer.name in self.copies:
            return sum(weight_bytes(self.modules[path]) for path in self.copies[layer.name])
        module, stored = self.modules.get(layer.name), self._group(layer).stored
        if module is None:
            return 0  # never called: the graph has no place for it
        if scheme is None or isinstance(module, PackedLayer):
            return weight_bytes(module) * stored
        held = isinstance(module.weight, torch.Tensor)
        return packed_bytes(weight_shape(module), scheme) * stored if held else 0

    def _macs(self, layer: LayerRecord, macs: Mapping[str, int]) -> int:
        executed = self._group(layer).executed
        if layer.name not in self.copies:  # one layer, or the original of those that branches would hold
            return macs.get(layer.name, 0) * (1 if layer.scheme else executed)
        ran = sum(macs.get(path, 0) for path in self.copies[layer.name])
        return ran // executed if layer.scheme else ran

    def _group(self, layer: LayerRecord) -> GroupRecord:
        return self.groups.get(layer.group or "", GroupRecord("", ""))


def _totals(layers: Sequence[LayerSummary], net: nn.Module, macs: Mapping[str, int] | None, *, packed: bool) -> Totals:
    held = tensor_bytes(net)
    saved = sum(layer.fp32_bytes - layer.bytes for layer in layers)
    known = all(layer.macs is not None for layer in layers)
    converted = sum(layer.scheme is not None for layer in layers)
    floats = sum(layer.macs or 0 for layer in layers if layer.scheme is None) + _router_macs(net, macs or {})
    return Totals(
        bytes=held if packed else held - saved,
        fp32_bytes=held + saved - _added_bytes(net) if packed else held,
        binary_macs=sum((layer.macs or 0) * layer.products for layer in layers) if known else None,
        float_macs=floats if known else None,
        converted=converted,
        kept=len(layers) - converted,
    )


def _added_bytes(net: nn.Module) -> int:
    """Return the bytes that the original has nothing like: norms and biases of all branches but one, gates, routers."""
    added = 0
    for _, group in branch_groups(net):
        one = group.bodies[0]
        weights = [sum(weight_bytes(body.get_submodule(name)) for name in group.origin) for body in group.bodies]
        added += (tensor_bytes(group) - sum(weights)) - (tensor_bytes(one) - weights[0])
    return added


def _router_macs(net: nn.Module, macs: Mapping[str, int]) -> int:
    routers = [f"{path}.router." for path, group in branch_groups(net) if group.router is not None]
    return sum(count for name, count in macs.items() if name.startswith(tuple(routers)))


def _branch_row(group: GroupRecord) -> tuple[str, ...]:
    if group.path is None:
        return (group.name, "", "", f"layer by layer: {group.reason}")
    counts = str(group.stored) if group.stored == group.executed else f"{group.executed} of {group.stored}"
    return (group.name, group.kind, counts, str(group.gate))


def _on_branches(groups: Sequence[GroupRecord]) -> str:
    made = [group for group in groups if group.path is not None]
    gated = sum(group.gate == "gated" for group in made)
    left = len(groups) - len(made)
    groups_made = f"{len(made)} group{'s' * (len(made) != 1)}"
    return f"{groups_made} of branches, {gated} gated" + (f"; {left} layer by layer" if left else "")


def _row(layer: LayerSummary) -> tuple[str, ...]:
    smaller = f"{layer.fp32_bytes / layer.bytes:.1f}x" if layer.scheme and layer.bytes else ""
    macs = "" if layer.macs is None else count(layer.macs)
    return (
        layer.name,
        layer.kind,
        layer.scheme or "fp",
        layer.route or "",
        size(layer.fp32_bytes),
        size(layer.bytes),
        smaller,
        macs,
        layer.reason or "",
    )
