"""Binary branches of a group in a schedule: their bodies one after the other, the mixing of inputs and the sum."""

import dataclasses
from collections.abc import Sequence
from math import inf
from typing import final

import torch
from torch import fx

from binarize.kernels.schedule import Draft, Value
from binarize.layers.branches import Branches
from binarize.passes.emit import Operation, Values, added

__all__ = ["Body", "BranchesSum", "Part"]


@final
@dataclasses.dataclass(frozen=True)
class Body:
    """The graph of one branch.

    Attributes:
        path: in the network's graph.
        x: its placeholder.
        operations: all its nodes.
        output: the node whose value it gives.
    """

    path: str
    x: fx.Node
    operations: tuple[Operation, ...]
    output: fx.Node

    def emit(self, draft: Draft, x: Value) -> Value:
        """Add all that the body computes of ``x``."""
        values: Values = {self.x: x}
        for operation in self.operations:
            node = operation.node
            draft.name = f"{self.path}.{node.target if node.op == 'call_module' else node.name}"
            values[node] = operation.emit(draft, values)
        return values[self.output]


@final
@dataclasses.dataclass(frozen=True)
class BranchesSum(Operation):
    """A `Branches` without a router, equations (1) and (2) there, by the same multiply-adds."""

    node: fx.Node
    branches: Branches
    bodies: tuple[Body, ...]

    @property
    def count(self) -> int:
        """How many nodes are computed, with those of the bodies."""
        return 1 + sum(len(body.operations) for body in self.bodies)

    def emit(self, draft: Draft, values: Values) -> Value:
        """Return the sum; what the branches hand on becomes the values of the nodes that take it."""
        name = draft.name
        aggregate, *own = (values[arg] for arg in self.node.args)  # type: ignore[index]  # match looked
        found = []
        for body, x in zip(self.bodies, self._inputs(draft, aggregate, own), strict=True):
            found.append(body.emit(draft, x))
        draft.name = name
        total = self._total(draft, found)
        if self.branches.hands_on:
            values.update({user: (total, *found)[user.args[1]] for user in self.node.users})  # type: ignore[index]
        return total

    def _inputs(self, draft: Draft, aggregate: Value, own: Sequence[Value]) -> list[Value]:
        gate = self.branches.gate
        if gate is None:
            return [aggregate] * len(self.bodies)
        shares = gate.theta.detach().sigmoid()
        kept = [draft.sum(aggregate, None, -inf, inf, (left, 1.0)) for left in (1 - shares).tolist()]
        taken = shares.tolist()
        return [self._mix(draft, kept[k % len(kept)], h, taken[k % len(taken)]) for k, h in enumerate(own)]

    def _total(self, draft: Draft, found: Sequence[Value]) -> Value:
        equal = torch.full((len(found),), 1 / len(found))
        scale = self.branches.scale
        first, *rest = (equal if scale is None else equal * scale.detach()).tolist()
        total = draft.sum(found[0], None, -inf, inf, (first, 1.0))
        for value, weight in zip(found[1:], rest, strict=True):
            total = self._mix(draft, total, value, weight)
        return total

    def _mix(self, draft: Draft, a: Value, b: Value, share: float) -> Value:
        return added(draft, self.node.name, a, b, (-inf, inf), (1.0, share))


@final
@dataclasses.dataclass(frozen=True)
class Part(Operation):
    """A node that takes one of the tensors that `BranchesSum` gives."""

    node: fx.Node

    def emit(self, draft: Draft, values: Values) -> Value:
        """Add nothing: the value is there."""
        return values[self.node]
