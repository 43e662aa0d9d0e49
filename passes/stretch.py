"""Stretches of a packed graph: nodes in a row that have kernels, run as native calls."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, fx, nn

from binarize.errors import BinarizeError
from binarize.kernels.schedule import Draft, Program, Value, empty
from binarize.passes.emit import Operation, Values

__all__ = ["Stretch"]

_MOST_SIZES = 16  # schedules of one stretch that are kept
_CACHED_BYTES = 2**21  # of tensors between kernel calls, what a core's caches hold about
_DTYPES = (torch.float32, torch.int32, torch.uint8)


@final
class Stretch:
    """Nodes in a row that have kernels, and a schedule for each combination of input sizes that was met.

    Attributes:
        operations: what the nodes compute, in order.
        inputs: nodes before it whose values it reads.
        outputs: its nodes that are read after it.
        clock: is told the nanoseconds of each kernel call, by the name of its node; None where nobody asks.
    """

    clock: Callable[[str, int], None] | None = None

    def __init__(self, operations: Sequence[Operation], live: set[fx.Node]) -> None:
        self.operations = tuple(operations)
        inside = {operation.node for operation in operations}
        read = {source: None for operation in operations for source in operation.node.all_input_nodes}
        self.inputs = tuple(node for node in read if node not in inside)
        self.outputs = tuple(o.node for o in operations if o.node in live)
        self.reason: str | None = None  # why the last sizes that were met could not be scheduled
        self._programs: dict[object, Program | None] = {}

    def program(self, tensors: Sequence[Tensor], orders: Sequence[bool]) -> Program | None:
        """Return the schedule for inputs like these, or None where there can be none."""
        kernel = os.environ.get("BINARIZE_KERNEL")
        key = kernel, *((x.shape, x.dtype, order) for x, order in zip(tensors, orders, strict=True))
        try:
            return self._programs[key]
        except KeyError:
            pass
        try:
            made: Program | None = self._build(tensors, orders)
        except BinarizeError as error:
            self.reason, made = str(error), None
        if len(self._programs) >= _MOST_SIZES:
            self._programs.pop(next(iter(self._programs)), None)
        self._programs[key] = made
        return made

    def _build(self, tensors: Sequence[Tensor], orders: Sequence[bool]) -> Program:
        draft = Draft()
        given = [draft.value(x.shape, x.dtype, order) for x, order in zip(tensors, orders, strict=True)]
        values: Values = dict(zip(self.inputs, given, strict=True))
        for operation in self.operations:
            draft.name = str(operation.node.target if operation.node.op == "call_module" else operation.node.name)
            values[operation.node] = operation.emit(draft, values)
        outputs = [values[node] for node in self.outputs]
        return draft.finish(given, _apart(draft, given, outputs))

    def run(self, env: dict[fx.Node, Any]) -> bool:
        """Put the values of the outputs into ``env``; False where there is no schedule for these sizes."""
        tensors = [env[node] for node in self.inputs]
        if not all(map(_is_plain, tensors)):
            self.reason = "its inputs are not float32 tensors or planes on the CPU"
            return False
        orders = []
        for index, x in enumerate(tensors):
            straight = x.is_contiguous()
            if not straight and not (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)):
                tensors[index], straight = x.contiguous(), True
            orders.append(not straight)
        outputs = self._whole(tensors, orders) if self.clock is not None else self._by_slices(tensors, orders)
        if outputs is None:
            return False
        env.update(zip(self.outputs, outputs, strict=True))
        return True

    def _whole(self, tensors: Sequence[Tensor], orders: Sequence[bool]) -> list[Tensor] | None:
        program = self.program(tensors, orders)
        if program is None or self.clock is None:
            return None if program is None else program.run(tensors)
        outputs, times = program.run_timed(tensors)
        for name, nanoseconds in times:
            self.clock(name, nanoseconds)
        return outputs

    def _by_slices(self, tensors: Sequence[Tensor], orders: Sequence[bool]) -> list[Tensor] | None:
        """Run as many images at a time as the caches hold: no operation of a schedule looks from one to another."""
        images = {len(x) if x.dim() > 1 else 1 for x in tensors}
        total = images.pop()
        one = self.program([x[:1] for x in tensors], orders) if total > 1 and not images else None
        if one is None or any(not value.shape or value.shape[0] != 1 for value in one.outputs):
            return self._whole(tensors, orders)
        size = torch.get_num_threads() * max(1, _CACHED_BYTES // max(one.arena_bytes, 1))
        if size >= total:
            return self._whole(tensors, orders)
        outputs = [empty(dataclasses.replace(value, shape=(total, *value.shape[1:]))) for value in one.outputs]
        for start in range(0, total, size):
            inside = slice(start, min(start + size, total))
            part = [x[inside] for x in tensors]
            program = self.program(part, orders)
            if program is None:  # what one image and the whole batch have, any number of images has
                return self._whole(tensors, orders)
            program.run(part, [y[inside] for y in outputs])
        return outputs


def _apart(draft: Draft, inputs: Sequence[Value], outputs: Sequence[Value]) -> list[Value]:
    """Return the outputs, copied where they would be inputs, or one tensor twice."""
    taken = {value.number for value in inputs}
    found = []
    for value in outputs:
        made = draft.sum(value, None, -float("inf"), float("inf")) if value.number in taken else value
        taken.add(made.number)
        found.append(made)
    return found


def _is_plain(x: object) -> bool:
    """Whether ``x`` is a tensor in this process's memory and nothing that stands for one."""
    known = type(x) is Tensor or type(x) is nn.Parameter
    return known and x.device.type == "cpu" and x.layout is torch.strided and x.dtype in _DTYPES and x.numel() > 0  # type: ignore[attr-defined]
