"""Replace float layers by binary ones, each on its own (layer-wise decomposition)."""

import dataclasses
from collections.abc import Mapping
from typing import final

from torch import fx, nn

from binarize.layers.binary import BinaryActivation, BinaryConv2d, BinaryLayer, BinaryLinear
from binarize.layers.binary_nd import KINDS, BinaryConvNd
from binarize.passes.base import Pass, PassResult
from binarize.passes.graph import Call, calls, first_input, module_uses, swap
from binarize.passes.operations import is_inplace
from binarize.schemes.presets import Scheme

__all__ = ["CONVERTIBLE", "DecomposeLayers", "decompose"]

CONVERTIBLE: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear, *KINDS)
"""Layers that have a binary form."""


@final
@dataclasses.dataclass(frozen=True)
class DecomposeLayers(Pass):
    """Swap the named convolutions and Linear layers of one graph for binary layers.

    1. Layers that read the same tensor in the same activation basis share one `BinaryActivation`, so that the packed
       form packs that tensor once.
    2. A layer that is called several times has an activation of its own, used for all its calls.
    3. A tensor that some user overwrites in place is shared by nobody: its readers may not see the same values.

    Attributes:
        schemes: what each layer becomes, by its path in the graph.
    """

    schemes: Mapping[str, Scheme]

    def run(self, gm: fx.GraphModule) -> PassResult:
        """Swap the layers; report the ones that are named but not called here."""
        uses = module_uses(gm)
        shared: dict[tuple[fx.Node, object], BinaryActivation] = {}
        changed: list[str] = []
        for call in calls(gm, CONVERTIBLE):
            scheme = self.schemes.get(call.name)
            if scheme is not None:
                swap(gm, call, decompose(call.module, scheme, self._activation(gm, call, scheme, uses, shared)))
                changed.append(call.name)
        missing = set(self.schemes) - set(changed)
        return PassResult(tuple(changed), dict.fromkeys(sorted(missing), "not called in this graph"))

    @staticmethod
    def _activation(
        gm: fx.GraphModule,
        call: Call[nn.Module],
        scheme: Scheme,
        uses: Mapping[str, list[fx.Node]],
        shared: dict[tuple[fx.Node, object], BinaryActivation],
    ) -> BinaryActivation:
        source = first_input(call.node)
        if len(uses[call.name]) > 1 or any(is_inplace(gm, user) for user in source.users):
            return BinaryActivation(scheme.activation)
        return shared.setdefault((source, scheme.activation), BinaryActivation(scheme.activation))


def decompose(layer: nn.Module, scheme: Scheme, activation: BinaryActivation | None = None) -> BinaryLayer:
    """Return the binary form of one float layer, with an activation of its own unless one is given.

    Raises:
        TypeError: ``layer`` is neither a convolution nor a Linear.
    """
    activation = activation or BinaryActivation(scheme.activation)
    if isinstance(layer, nn.Conv2d):
        return BinaryConv2d.from_float(layer, scheme, activation)
    if isinstance(layer, nn.Linear):
        return BinaryLinear.from_float(layer, scheme, activation)
    if isinstance(layer, KINDS):
        return BinaryConvNd.from_float(layer, scheme, activation)
    raise TypeError(f"no binary form for {type(layer).__name__}")
