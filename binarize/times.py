"""How long each packed layer takes on this machine: as the cost model predicts it, and as it was measured."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any, final

import torch
from torch import nn

from binarize.cost import example_arguments, measure_macs
from binarize.data import random_images
from binarize.errors import ModelError
from binarize.kernels.speeds import Speeds, speeds
from binarize.layers.geometry import problem_of
from binarize.layers.packed import PackedConv2d, PackedLayer, PackedLinear
from binarize.passes.schedule import ScheduledGraph, runner_of
from binarize.passes.stretch import Stretch
from binarize.record import record_of

__all__ = ["LayerTime", "layer_times"]

TURNS = 15


@final
@dataclasses.dataclass(frozen=True)
class LayerTime:
    """One packed layer.

    Attributes:
        name: module path.
        route: "popcount" or "int8".
        predicted_us: what the cost model says, microseconds of one thread; None for what it has no model of.
        measured_us: median of some runs, microseconds; without the packing of its input where that is a step by itself.
    """

    name: str
    route: str
    predicted_us: float | None
    measured_us: float


@torch.inference_mode()
def layer_times(
    net: nn.Module, *, input_shape: Sequence[int] | None = None, turns: int = TURNS
) -> tuple[LayerTime, ...]:
    """Run a packed network on one image of noise and one thread, and time its packed layers.

    Args:
        net: from `pack` or `load`.
        input_shape: ``(c, h, w)``; by default the one that the network was calibrated on.
        turns: how often it runs.

    Raises:
        ModelError: the network is not packed, does not run on such an image, or no size is known.
    """
    layers = {name: module for name, module in net.named_modules() if isinstance(module, PackedLayer)}
    if not layers:
        raise ModelError("cannot time the layers: none is packed; pack the network first")
    shape = tuple(input_shape or record_of(net).input_shape or ())
    if not shape:
        raise ModelError("cannot time the layers: the network's record has no input shape; pass input_shape")
    arguments = example_arguments(net, random_images(shape, 1))
    macs = measure_macs(net, arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        measured = _by_schedule(net, arguments, turns)
        left = {name: layer for name, layer in layers.items() if name not in measured}
        measured |= _by_hooks(net, left, arguments, turns) if left else {}
    finally:
        torch.set_num_threads(threads)
    rates = speeds()
    return tuple(
        LayerTime(name, layer.activation.route, _predicted(layer, macs.get(name, 0), rates), measured[name] / 1e3)
        for name, layer in layers.items()
        if name in measured
    )


def _predicted(layer: PackedLayer, macs: int, rates: Speeds) -> float | None:
    if not isinstance(layer, PackedConv2d | PackedLinear):
        return None
    route = layer.activation.route
    problem = problem_of(layer.geometry_on(route), route)
    pixels = macs / (layer.geometry.out_channels * layer.depth)
    return rates.nanoseconds(problem) * pixels / 1e3


def _by_schedule(net: nn.Module, arguments: tuple[Any, ...], turns: int) -> dict[str, float]:
    """Return the median nanoseconds of each node that ran in a schedule, by its path; a node may be called often."""
    seen: list[dict[str, int]] = []
    stretches = list(_stretches(net))
    for path, stretch in stretches:
        stretch.clock = _adder(path, seen)
    try:
        for _ in range(turns):
            seen.append({})
            net(*arguments)
    finally:
        for _, stretch in stretches:
            stretch.clock = None
    return _medians(seen[1:] or seen)  # the first plans the schedules


def _stretches(net: nn.Module) -> Iterator[tuple[str, Stretch]]:
    for path, module in net.named_modules():
        runner = runner_of(module) if isinstance(module, ScheduledGraph) else None
        for item in () if runner is None else runner.items:
            if isinstance(item, Stretch):
                yield path, item


def _adder(path: str, seen: list[dict[str, int]]) -> Callable[[str, int], None]:
    def add(name: str, nanoseconds: int) -> None:
        full = f"{path}.{name}" if path else name
        seen[-1][full] = seen[-1].get(full, 0) + nanoseconds

    return add


def _medians(seen: Sequence[Mapping[str, int]]) -> dict[str, float]:
    return {name: float(median(turn.get(name, 0) for turn in seen)) for name in seen[0]}


def _by_hooks(
    net: nn.Module, layers: Mapping[str, PackedLayer], arguments: tuple[Any, ...], turns: int
) -> dict[str, float]:
    """Return the median nanoseconds of layers that torch calls one by one."""
    seen: list[dict[str, int]] = []
    with contextlib.ExitStack() as hooks:
        for name, layer in layers.items():
            started: list[int] = []
            before = layer.register_forward_pre_hook(lambda *_, s=started: s.append(time.perf_counter_ns()))
            after = layer.register_forward_hook(
                lambda *_, s=started, n=name: _add_since(seen[-1], n, s.pop())  # not the loop's last
            )
            hooks.callback(before.remove)
            hooks.callback(after.remove)
        for _ in range(turns):
            seen.append({})
            net(*arguments)
    return _medians(seen)


def _add_since(turn: dict[str, int], name: str, start: int) -> None:
    turn[name] = turn.get(name, 0) + time.perf_counter_ns() - start
