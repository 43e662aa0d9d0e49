"""The route of each packed layer on this machine: planes by popcount, or whole codes by int8 products.

Both give the same integers, so that a route changes how long a network takes and nothing else. No file holds one:
routes are chosen where a network is packed or loaded, for a GPU where it first runs there.
"""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import final

from torch import fx, nn

from binarize.errors import ModelError, NoKernelError, nearest
from binarize.kernels.dispatch import choose
from binarize.kernels.speeds import Speeds, speeds
from binarize.layers.geometry import problem_of
from binarize.layers.gpu_routes import GpuRoutes
from binarize.layers.packed import ROUTES, Geometry, PackActivation, PackedConv2d, PackedLayer
from binarize.passes.base import Pass, PassResult
from binarize.passes.graph import Call, call_of, calls

__all__ = ["ChooseRoutes", "asked_route", "route", "why_not"]

_VARIABLE = "BINARIZE_ROUTE"


def asked_route() -> str | None:
    """Return the route that ``BINARIZE_ROUTE`` asks for, or None.

    Raises:
        ModelError: there is no such route.
    """
    asked = os.environ.get(_VARIABLE) or None
    if asked is not None and asked not in ROUTES:
        raise ModelError(f"cannot route: {_VARIABLE} is {asked!r}{nearest(asked, ROUTES)}; use {' or '.join(ROUTES)}")
    return asked


def why_not(geometry: Geometry, route: str) -> str | None:
    """Return why no kernel here runs a layer of that geometry on ``route``, or None."""
    try:
        choose(problem_of(geometry, route))
    except NoKernelError as error:
        return f"no kernel runs it on the route {route}: {'; '.join(dict.fromkeys(error.reasons.values()))}"
    return None


@final
@dataclasses.dataclass(frozen=True)
class ChooseRoutes(Pass):
    """Let each packing give the form in which all its readers together are quickest.

    Args:
        speeds: the constants of the cost model.
        asked: take this route wherever a kernel runs it.
    """

    speeds: Speeds
    asked: str | None = None

    def run(self, gm: fx.GraphModule) -> PassResult:
        """Set the route of each layer's packing; report which changed and which cannot go where was asked."""
        changed: list[str] = []
        skipped: dict[str, str] = {}
        reading: dict[int, tuple[PackActivation, list[Call[PackedLayer]]]] = {}
        for call in calls(gm, PackedLayer):
            packing = _packing(gm, call)
            reading.setdefault(id(packing), (packing, []))[1].append(call)
        for packing, readers in reading.values():
            layers = [call.module for call in readers]
            before, packing.route = packing.route, self.quickest(layers)
            geometries = tuple(layer.geometry for layer in layers)
            packing.gpu, packing.channels = GpuRoutes(geometries, self.asked), layers[0].channels
            for layer in layers:
                layer.activation.route = packing.route
                layer.activation.gpu, layer.activation.channels = packing.gpu, layer.channels
            if packing.route != before:
                changed += [call.name for call in readers]
            if self.asked not in (None, packing.route):
                skipped.update({call.name: self._reason(layers) for call in readers})
        return PassResult(tuple(dict.fromkeys(changed)), skipped)

    def quickest(self, layers: Sequence[PackedLayer]) -> str:
        """Return the route on which layers that read one packing take the least time together."""
        times = {route: sum(self._nanoseconds(layer, route) for layer in layers) for route in ROUTES}
        if self.asked is not None and times[self.asked] < math.inf:
            return self.asked
        return min(ROUTES, key=lambda route: times[route])

    def _nanoseconds(self, layer: PackedLayer, route: str) -> float:
        """Return the predicted time of a layer per pixel of its input, or infinity where no kernel runs it."""
        geometry = layer.geometry_on(route)
        if why_not(geometry, route) is not None:
            return math.inf
        return self.speeds.nanoseconds(problem_of(geometry, route)) / math.prod(geometry.stride)

    def _reason(self, layers: Sequence[PackedLayer]) -> str:
        assert self.asked is not None
        found = (why_not(layer.geometry, self.asked) for layer in layers)
        return next(why for why in found if why is not None)


def _packing(gm: fx.GraphModule, call: Call[PackedLayer]) -> PackActivation:
    """Return what packs the input of a layer: a node of its own, the epilogue of the layer before, or the layer."""
    before = next(iter(call.node.args), None)  # a damaged file may call it with nothing
    packing, feeder = call_of(gm, before, PackActivation), call_of(gm, before, PackedConv2d)
    if packing is not None:
        return packing.module
    reader = None if feeder is None else feeder.module.reader
    return call.module.activation if reader is None else reader


def route(net: nn.Module) -> None:
    """Choose the route of every packed layer of ``net``, in place; ``BINARIZE_ROUTE`` asks for one.

    Raises:
        ModelError: ``BINARIZE_ROUTE`` names no route.
    """
    layers = [module for module in net.modules() if isinstance(module, PackedLayer)]
    asked = asked_route()
    if not layers:
        return
    step = ChooseRoutes(speeds(), asked)
    for layer in layers:  # those that no graph calls pack their own input
        layer.activation.route = step.quickest([layer])
        layer.activation.gpu, layer.activation.channels = GpuRoutes((layer.geometry,), asked), layer.channels
    for module in net.modules():
        if isinstance(module, fx.GraphModule):
            step(module)
