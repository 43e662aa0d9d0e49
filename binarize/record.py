"""What a conversion did, kept with the network: per layer what it became or why not, and where it all came from."""

import dataclasses
from collections.abc import Mapping
from typing import Any, final

from torch import fx, nn

from binarize.errors import ModelError
from binarize.recipe import Recipe

__all__ = ["GroupRecord", "LayerRecord", "Record", "attach_record", "record_of"]

KEY = "_binarize_record"


@final
@dataclasses.dataclass(frozen=True)
class LayerRecord:
    """One weighted layer of the model.

    Attributes:
        name: module path in the original model.
        kind: class name of the original layer.
        weights: number of weights.
        scheme: scheme string it was converted with, or None.
        reason: why it stayed in full precision, or None.
        group: name of the group that it is copied with into branches, or None; a layer that stays in full precision is
            copied with its group too.
    """

    name: str
    kind: str
    weights: int
    scheme: str | None = None
    reason: str | None = None
    group: str | None = None


@final
@dataclasses.dataclass(frozen=True)
class GroupRecord:
    """One group of the graph that was to become branches.

    Attributes:
        name: what its layers' paths have in common.
        kind: how its paths meet ("residual", "concat", "gate", "branches", "chain"), or "stage" or "network".
        path: module path of its branches, or None where its layers were replaced one by one.
        executed: branches that run for one image.
        stored: branches that there are.
        gate: why its branches read the aggregate alone, or "gated".
        reason: why it did not become branches, or None.
    """

    name: str
    kind: str
    path: str | None = None
    executed: int = 1
    stored: int = 1
    gate: str | None = None
    reason: str | None = None


@final
@dataclasses.dataclass(frozen=True)
class Record:
    """What a conversion did.

    Attributes:
        recipe: what was asked for.
        layers: every weighted layer, in the model's order.
        groups: every group that was to become branches, in the model's order.
        parts: module paths that were captured as graphs; the empty path is the whole model.
        uncaptured: reason for each module that could not be captured as a graph.
        input_shape: ``(c, h, w)`` that the network was calibrated on, or None.
        source: name, origin, architecture and sha256 of the model, library versions.
        calibration: what was fitted on how many samples, with the errors found.
        training: stages, settings and epochs of the last fine-tuning.
        metrics: accuracies measured so far.
    """

    recipe: Recipe
    layers: tuple[LayerRecord, ...]
    groups: tuple[GroupRecord, ...] = ()
    parts: tuple[str, ...] = ("",)
    uncaptured: Mapping[str, str] = dataclasses.field(default_factory=dict)
    input_shape: tuple[int, ...] | None = None
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    calibration: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def converted(self) -> list[LayerRecord]:
        """Layers that have a scheme."""
        return [layer for layer in self.layers if layer.scheme is not None]

    @property
    def kept(self) -> list[LayerRecord]:
        """Layers that stayed in full precision."""
        return [layer for layer in self.layers if layer.scheme is None]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = dataclasses.asdict(self)
        values["recipe"] = self.recipe.to_dict()
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Record":
        """Build from what `to_dict` gave, after JSON."""
        given = dict(values)
        given["recipe"] = Recipe.from_dict(given["recipe"])
        given["layers"] = tuple(LayerRecord(**layer) for layer in given["layers"])
        given["groups"] = tuple(GroupRecord(**group) for group in given.get("groups", ()))
        given["parts"] = tuple(given["parts"])
        shape = given["input_shape"]
        given["input_shape"] = None if shape is None else tuple(shape)
        return cls(**given)


def attach_record(net: nn.Module, record: Record) -> None:
    """Keep ``record`` with ``net``; copies of the network keep it too."""
    if isinstance(net, fx.GraphModule):
        net.meta[KEY] = record  # a GraphModule copies its meta, but no other plain attribute
    else:
        net.__dict__[KEY] = record


def record_of(net: nn.Module) -> Record:
    """Return the record kept with ``net``.

    Raises:
        ModelError: it has none: it was not made by `convert` or `load`.
    """
    home = net.meta if isinstance(net, fx.GraphModule) else net.__dict__
    record = home.get(KEY)
    if not isinstance(record, Record):
        raise ModelError(f"cannot tell how {type(net).__name__} was converted: it was not made by convert or load")
    return record
