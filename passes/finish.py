"""On a GPU: packed convolutions with what follows them, PReLU and the packing for a reader, as one kernel.

The floats are stored for the other readers and packed from the registers: nothing reads them again to pack them.
"""

from collections.abc import Iterator
from math import inf
from typing import Any, final

from torch import Tensor, fx, nn

from binarize.layers.packed import PackActivation, PackedConv2d
from binarize.passes.emit import Operation, PackedConvolution, Packing
from binarize.passes.emit_channels import Rectification
from binarize.passes.graph import single_user
from binarize.passes.operations import module_of
from binarize.passes.runner import Item, Runner

__all__ = ["FinishRunner"]


@final
class Finished:
    """A packed convolution with a packing, and the PReLU between them if there is one.

    Attributes:
        operations: the convolution, the PReLU, the packing.
        inputs: what the convolution reads.
        outputs: the floats and what is packed of them.
    """

    def __init__(self, conv: PackedConvolution, prelu: Rectification | None, packing: Packing) -> None:
        self.conv, self.prelu, self.packing = conv, prelu, packing
        self.operations: tuple[Operation, ...] = tuple(step for step in (conv, prelu, packing) if step is not None)
        self.inputs: tuple[fx.Node, ...] = tuple(conv.node.all_input_nodes)
        self.outputs: tuple[fx.Node, ...] = ((prelu or conv).node, packing.node)

    def run(self, env: dict[fx.Node, Any]) -> bool:
        """Put floats and packed floats into ``env``; False where the layer has to be called by itself."""
        x, *residual = (env[node] for node in self.conv.node.args)  # type: ignore[index]  # a node each
        slope = None if self.prelu is None else self.prelu.slope
        found = self.conv.layer.and_pack(x, residual[0] if residual else None, slope, self.packing.packing)
        if found is None:
            return False
        env.update(zip(self.outputs, found, strict=True))
        return True


@final
class FinishRunner(Runner):
    """A graph cut into finished convolutions and single nodes."""

    device = "cuda"

    @staticmethod
    def missing() -> str | None:
        """Return None: what a GPU has no kernel for, the op says."""
        return None

    def _cut(self) -> Iterator[Item | fx.Node]:
        taken: set[fx.Node] = set()
        for node in self.gm.graph.nodes:
            if node.op in ("placeholder", "output") or node in taken:
                continue
            found = _finished(self.gm, node)
            if found is None:
                yield node
                continue
            taken.update(operation.node for operation in found.operations)
            yield found


def _called(gm: fx.GraphModule, node: fx.Node | None) -> nn.Module | None:
    """Return the module that a node calls by tensors of the graph alone, and that runs its own code."""
    module = None if node is None else module_of(gm, node)
    plain = node is not None and not node.kwargs and all(isinstance(arg, fx.Node) for arg in node.args)
    return module if plain and module is not None and "forward" not in module.__dict__ else None


def _finished(gm: fx.GraphModule, node: fx.Node) -> Finished | None:
    layer = _called(gm, node)
    if not isinstance(layer, PackedConv2d) or layer.reader is not None:
        return None
    prelu = _prelu(gm, node, layer)
    last = node if prelu is None else prelu.node
    reader = last.next
    while last.users and reader not in last.users:
        reader = reader.next
    packing = _called(gm, reader)  # the first reader: what comes after another may be written over by then
    if not isinstance(packing, PackActivation) or packing.rows:
        return None
    return Finished(PackedConvolution(node, layer), prelu, Packing(reader, packing))


def _prelu(gm: fx.GraphModule, node: fx.Node, layer: PackedConv2d) -> Rectification | None:
    user = single_user(node)
    module = _called(gm, user)
    if user is None or type(module) is not nn.PReLU or (layer.minimum, layer.maximum) != (-inf, inf):
        return None
    slope: Tensor = module.weight
    return Rectification(user, slope) if slope.numel() in (1, layer.geometry.out_channels) else None
