"""Branches, gates and routers as data and back. Their bodies are graphs, with entries of their own."""

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from binarize.artifact.binaries import BinaryRule
from binarize.artifact.values import path_of
from binarize.errors import ArtifactError
from binarize.layers.branches import Branches, Gate, Router

__all__ = ["GROUPS"]

CHOICE = "one copy of each branch"

Arguments = Mapping[str, Any]
Children = Mapping[str, nn.Module]


def _branches_arguments(group: Branches) -> dict[str, Any]:
    return {
        "count": len(group.bodies), "origin": group.origin, "scaled": group.scale is not None,
        "hands_on": group.hands_on, "sparse": group.sparse, **({"shared": True} if group.shared else {}),
    }  # fmt: skip


def _branches(arguments: Arguments, children: Children) -> Branches:
    bodies, gate, router = (children.get(name) for name in ("bodies", "gate", "router"))
    count, origin = _size(arguments, "count"), arguments["origin"]
    inner = list(bodies.children()) if type(bodies) is nn.ModuleList else []
    _require(len(inner) == count and all(isinstance(body, fx.GraphModule) for body in inner), f"{count} graphs", inner)
    _require(gate is None or (type(gate) is Gate and len(gate.theta) in (1, count)), "a gate", gate)
    _require(router is None or (type(router) is Router and router.choose.out_features == count), "a router", router)
    _require(isinstance(origin, dict), "a table of layers", origin)
    for path, original in origin.items():
        path_of(path, "a layer's path in a branch")
        path_of(original, "a layer's path")
    scaled, hands_on, sparse = (_flag(arguments, name) for name in ("scaled", "hands_on", "sparse"))
    _require(router is not None or not sparse, "branches that all run", "sparse")
    made = Branches(inner, origin, gate=gate, scaled=scaled, router=router, hands_on=hands_on)  # type: ignore[arg-type]
    made.sparse, made.shared = sparse, "shared" in arguments and _flag(arguments, "shared")
    _require(router is not None or not made.shared, "branches that all run", "shared")
    return made


def _router_arguments(router: Router) -> dict[str, Any]:
    channels, stored = router.squeeze.in_features, router.choose.out_features
    return {"channels": channels, "stored": stored, "executed": router.executed, "chooses": CHOICE}


def _router(arguments: Arguments, children: Children) -> Router:
    sizes = {name: _size(arguments, name) for name in ("channels", "stored", "executed")}
    _require(sizes["executed"] <= sizes["stored"], "branches to choose from", sizes)
    if arguments.get("chooses") != CHOICE:
        what = "its router is of an earlier version, which chose otherwise"
        raise ArtifactError(f"cannot build the branches of a group: {what}; convert the model again")
    made = Router(**sizes)
    for name, layer in made.named_children():
        given = children.get(name)
        fits = type(given) is nn.Linear and given.extra_repr() == layer.extra_repr()
        _require(fits, f"the router's {name}", given)
    return made


def _size(arguments: Arguments, name: str) -> int:
    size = arguments[name]
    _require(type(size) is int and 0 < size < 2**31, "a number of things", f"{name} {size}")
    return int(size)


def _flag(arguments: Arguments, name: str) -> bool:
    _require(type(arguments[name]) is bool, "true or false", f"{name} {arguments[name]}")
    return bool(arguments[name])


def _require(holds: bool, what: str, seen: object) -> None:
    if not holds:
        raise ArtifactError(f"cannot build the branches of a group: {str(seen)[:200]} does not do as {what}")


GROUPS: dict[str, BinaryRule] = {
    "binarize.Branches": BinaryRule(Branches, _branches_arguments, _branches),
    "binarize.Gate": BinaryRule(
        Gate, lambda gate: {"count": len(gate.theta)}, lambda arguments, _: Gate(_size(arguments, "count"))
    ),
    "binarize.Router": BinaryRule(Router, _router_arguments, _router),
}
