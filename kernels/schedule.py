"""Schedules: the kernel calls of a stretch of a network, planned once for given sizes and run as one native call.

A `Draft` collects calls and the tensors between them; `Draft.finish` gives every tensor its place, in one arena that
the calls reuse, and builds the native schedule. Nothing is allocated from call to call but the outputs, which the
caller keeps. The kernels are those behind ``torch.ops.binarize.*``: a packed layer gives the same bits here and there.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor

from binarize.errors import ModelError
from binarize.kernels.compiled import native
from binarize.kernels.dispatch import names_in

__all__ = ["Draft", "Program", "Value", "dense_level", "empty", "why_not_compiled"]

_ALIGNMENT = 64  # bytes
_FIXED, _ARENA, _INPUT, _OUTPUT = 1, 2, 3, 4  # Place::Kind of native/schedule.h
_NOWHERE = (0, 0)
_BYTES = {torch.float32: 4, torch.int32: 4, torch.uint8: 1}

Place = tuple[int, int]
_Emit = Callable[[Any, Callable[["Value | None"], Place]], None]


def why_not_compiled() -> str | None:
    """Return why no schedule can be built here, or None."""
    if native is None:
        return "not compiled (installed with BINARIZE_NO_KERNELS=1)"
    if os.environ.get("BINARIZE_KERNEL") == "reference":
        return "BINARIZE_KERNEL=reference"
    return None


def dense_level() -> int:
    """Return the number of the best level of float kernels, or of those that ``BINARIZE_KERNEL`` comes with."""
    return _dense_level(os.environ.get("BINARIZE_KERNEL") or "")


@functools.lru_cache(maxsize=16)
def _dense_level(forced: str) -> int:
    rows: list[tuple[str, bool]] = native.dense_levels()
    wanted = names_in(forced)
    here = [
        index
        for index, (name, runs) in enumerate(rows)
        if runs and (not forced or any(level.startswith(name) for level in wanted))
    ]
    return here[0] if here else len(rows) - 1  # scalar


@final
@dataclasses.dataclass(frozen=True)
class Value:
    """One tensor of a draft.

    Attributes:
        number: Which memory; two values of one number are two views of it.
        shape: As torch sees it.
        dtype: float32, or of planes int32, or of codes uint8.
        channels_last: Whether the memory of an image ``(n, c, h, w)`` is in the order (n, h, w, c).
    """

    number: int
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    @property
    def bytes(self) -> int:
        """Size of its memory."""
        return math.prod(self.shape) * _BYTES[self.dtype]


@final
@dataclasses.dataclass(frozen=True)
class _Call:
    name: str
    emit: _Emit
    reads: tuple[int, ...]
    writes: tuple[Value, ...]


@final
@dataclasses.dataclass(frozen=True)
class Pooled:
    """A pooling: the numbers that the native call takes, its input and its output."""

    numbers: tuple[Any, ...]
    x: Value
    out: Value


@final
class Draft:
    """The calls of a schedule in order, before its tensors have places."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._count = 0
        self._kept: list[Tensor] = []
        self._pooled: Pooled | None = None
        self.name = ""  # of what is being added: the place in the network

    def value(self, shape: Sequence[int], dtype: torch.dtype = torch.float32, channels_last: bool = False) -> Value:
        """Return a new tensor."""
        self._count += 1
        return Value(self._count - 1, tuple(shape), dtype, channels_last)

    def keep(self, tensor: Tensor | None) -> int:
        """Return the address of a weight or table in order, which then lives as long as the schedule; 0 for None."""
        if tensor is None:
            return 0
        self._kept.append(tensor.contiguous())
        return int(self._kept[-1].data_ptr())

    def call(self, emit: _Emit, reads: Sequence[Value | None], writes: Value) -> Value:
        """Add one kernel call; ``emit`` adds it to the native schedule once every value has a place."""
        numbers = tuple(value.number for value in reads if value is not None)
        self._calls.append(_Call(self.name, emit, numbers, (writes,)))
        self._pooled = None
        return writes

    def pooling_of(self, x: Value) -> Pooled | None:
        """Return the pooling that is the last call so far and whose output is ``x``, as it is: it may be taken back."""
        return self._pooled if self._pooled is not None and self._pooled.out == x else None

    def pool(self, emit: _Emit, numbers: tuple[Any, ...], x: Value, out: Value) -> Value:
        """Add a pooling: see `pooling_of`."""
        self.call(emit, [x], out)
        self._pooled = Pooled(numbers, x, out)
        return out

    def also(self, emit: _Emit, packed: Value) -> Value:
        """Let the last call write ``packed`` as well, under its name; ``emit`` takes the place of what it did."""
        last = self._calls.pop()
        self._calls.append(dataclasses.replace(last, emit=emit, writes=(*last.writes, packed)))
        self._pooled = None
        return packed

    def transposed(self, x: Value) -> Value:
        """Return an image in the other order of memory."""
        n, c, h, w = x.shape
        sizes = (n, h * w, c) if x.channels_last else (n, c, h * w)
        out = self.value(x.shape, x.dtype, not x.channels_last)
        level = dense_level()
        return self.call(lambda to, at: to.transpose(level, *sizes, at(x), at(out)), [x], out)

    def channels_last(self, x: Value) -> Value:
        """Return an image in the order (n, h, w, c)."""
        _, c, h, w = x.shape
        if x.channels_last or c == 1 or h * w == 1:
            return dataclasses.replace(x, channels_last=True)
        return self.transposed(x)

    def plain(self, x: Value) -> Value:
        """Return an image in the order (n, c, h, w)."""
        _, c, h, w = x.shape
        if not x.channels_last or c == 1 or h * w == 1:
            return dataclasses.replace(x, channels_last=False)
        return self.transposed(x)

    def channelwise(
        self, x: Value, scale: Tensor, shift: Tensor, slope: Tensor | None, minimum: float, maximum: float
    ) -> Value:
        """Add ``clamp(y)``, with y an image times and plus a number for each channel, and less steep below 0."""
        x = self.channels_last(x)
        out = self.value(x.shape, x.dtype, channels_last=True)
        n, c, h, w = x.shape
        held = [0 if t is None else self.keep(t) for t in (scale, shift, slope)]
        numbers = dense_level(), n * h * w, c, *held, minimum, maximum
        return self.call(lambda to, at: to.channelwise(*numbers, at(x), at(out)), [x], out)

    def side_by_side(self, parts: Sequence[Value]) -> Value:
        """Add tensors ``(n, c, ...)`` one after another along their channels."""
        last = all(len(x.shape) == 4 and x.channels_last for x in parts)
        if not last and len(parts[0].shape) == 4:
            parts = [self.plain(x) for x in parts]
        n, _, *sizes = parts[0].shape
        pixels = math.prod(sizes)
        channels = sum(x.shape[1] for x in parts)
        out = self.value((n, channels, *sizes), torch.float32, last)
        rows, each = (n * pixels, 1) if last else (n, pixels)
        offset = 0
        for x in parts:
            self.call(_placing(rows, x.shape[1] * each, channels * each, offset, x, out), [x], out)
            offset += x.shape[1] * each
        return out

    def sum(
        self, a: Value, b: Value | None, minimum: float, maximum: float, shares: tuple[float, float] = (1.0, 1.0)
    ) -> Value:
        """Add ``clamp(share_a a + share_b b)`` by one multiply-add, or without ``b``."""
        out = self.value(a.shape, a.dtype, a.channels_last)
        numbers = dense_level(), math.prod(a.shape), minimum, maximum, *shares
        return self.call(lambda to, at: to.sum(*numbers, at(a), at(b), at(out)), [a, b], out)

    def finish(self, inputs: Sequence[Value], outputs: Sequence[Value]) -> "Program":
        """Plan the memory and build the schedule.

        Raises:
            ModelError: an output is an input as it is, or two outputs are one tensor.
        """
        taken = {value.number for value in inputs}
        for value in outputs:
            if value.number in taken:
                raise ModelError("cannot schedule: an output is an input, or another output, as it is")
            taken.add(value.number)
        places: dict[int, Place] = {value.number: (_INPUT, index) for index, value in enumerate(inputs)}
        places.update({value.number: (_OUTPUT, index) for index, value in enumerate(outputs)})
        size = self._plan(places)
        made = native.Schedule()

        def at(value: Value | None) -> Place:
            return _NOWHERE if value is None else places[value.number]

        for call in self._calls:
            call.emit(made, at)
        names = tuple(call.name for call in self._calls)
        return Program(made, size, tuple(outputs), names, tuple(self._kept))

    def _plan(self, places: dict[int, Place]) -> int:
        """Give a place in the arena to every tensor that has none, the largest first; return the arena's size."""
        lives: dict[int, tuple[int, int, int]] = {}
        for index, call in enumerate(self._calls):
            sizes = {value.number: value.bytes for value in call.writes}
            for number in (*call.reads, *sizes):
                if number not in places:
                    first, _, size = lives.get(number, (index, index, sizes.get(number, 0)))
                    lives[number] = first, index, size
        placed: list[tuple[int, int, int, int]] = []  # start, end, first and last call
        top = 0
        for number, (first, last, size) in sorted(lives.items(), key=lambda item: -item[1][2]):
            start = 0
            for low, high, born, dead in sorted(placed):
                if born <= last and first <= dead and low < start + size:
                    start = max(start, high)
            end = start + -(-size // _ALIGNMENT) * _ALIGNMENT
            placed.append((start, end, first, last))
            places[number] = _ARENA, start
            top = max(top, end)
        return top


@final
class Program:
    """A schedule that is ready to run. Threads may run it at the same time: each takes an arena of its own.

    Attributes:
        arena_bytes: Memory of all tensors between the calls.
        names: Where in the network each call comes from.
        outputs: What it gives.
    """

    def __init__(
        self, schedule: Any, arena_bytes: int, outputs: tuple[Value, ...], names: tuple[str, ...], kept: object
    ) -> None:
        self.arena_bytes, self.names, self.outputs = arena_bytes, names, outputs
        self._schedule, self._kept = schedule, kept
        self._arenas: list[Tensor] = []  # those that nobody uses; list methods are atomic

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Map tensors, in the memory order that was planned for, to new ones, or into ``outputs``.

        Raises:
            ModelError: a border class lies outside its table, which a bug of the planning would be.
        """
        status, filled = self._run(self._schedule.run, inputs, outputs)
        if status:
            raise ModelError("cannot run a schedule: a border class lies outside its table; report this")
        return filled

    def run_timed(self, inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[tuple[str, int]]]:
        """Run once; return also the nanoseconds of each call, with the place in the network that it comes from."""
        spent, outputs = self._run(self._schedule.run_timed, inputs)
        return outputs, list(zip(self.names, spent, strict=True))

    def _run(
        self, run: Callable[..., Any], inputs: Sequence[Tensor], outputs: Sequence[Tensor] | None = None
    ) -> tuple[Any, list[Tensor]]:
        try:
            arena = self._arenas.pop()
        except IndexError:
            arena = torch.empty(self.arena_bytes + _ALIGNMENT, dtype=torch.uint8)
        filled = list(map(empty, self.outputs)) if outputs is None else list(outputs)
        start = -(-arena.data_ptr() // _ALIGNMENT) * _ALIGNMENT
        addresses = [x.data_ptr() for x in inputs], [x.data_ptr() for x in filled]
        found = run(start, *addresses, torch.get_num_threads())
        self._arenas.append(arena)
        return found, filled


def _placing(rows: int, width: int, stride: int, offset: int, x: Value, out: Value) -> _Emit:
    return lambda to, at: to.place(rows, width, stride, offset, at(x), at(out))


def empty(value: Value) -> Tensor:
    """Return a new tensor of the shape and memory order of ``value``."""
    if value.channels_last and len(value.shape) == 4:
        return torch.empty(value.shape, dtype=value.dtype, memory_format=torch.channels_last)
    return torch.empty(value.shape, dtype=value.dtype)
