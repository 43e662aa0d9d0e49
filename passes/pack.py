"""From training form to packed form: bits and scales instead of floats."""

import copy
import dataclasses
from collections.abc import Iterator
from typing import final

import torch
from torch import fx, nn

from binarize.errors import ModelError
from binarize.layers.binary import BinaryActivation, BinaryConv2d, BinaryLayer, BinaryLinear, binary_layers
from binarize.layers.binary_nd import BinaryConvNd
from binarize.layers.branches import branch_groups
from binarize.layers.packed import Geometry, PackActivation, PackedConv2d, PackedLayer, PackedLinear
from binarize.layers.packed_nd import PackedConvNd
from binarize.passes.base import Pass, PassResult
from binarize.passes.dropout import TakeOutDropout
from binarize.passes.fold_batchnorm import FoldBatchNorm
from binarize.passes.fuse import FuseEpilogue, FuseReader
from binarize.passes.graph import Call, call_again, call_before, calls, first_input, put, swap
from binarize.passes.operations import is_inplace
from binarize.passes.route import route
from binarize.passes.schedule import schedule

__all__ = ["PackLayers", "graphs_of", "pack", "pack_layer"]

_PackKey = tuple[fx.Node, int, int, bool]


@final
@dataclasses.dataclass(frozen=True)
class PackLayers(Pass):
    """Swap binary layers for packed ones and pack each tensor once for all its readers.

    1. Each binary layer becomes a packed layer with the same weight planes, scales and bias.
    2. Before the first reader of a tensor a `PackActivation` is put; layers that read the same tensor through the same
       activation, with as many channel groups, read its planes.
    3. A layer whose padding is not zeros packs its padded input itself.
    4. A tensor that some user overwrites in place is packed anew for each reader.
    """

    def run(self, gm: fx.GraphModule) -> PassResult:
        """Swap all binary layers that the graph calls."""
        made: dict[_PackKey, fx.Node] = {}
        packs: dict[tuple[int, int, bool], str] = {}
        changed: list[str] = []
        done: dict[int, nn.Module] = {}
        for call in calls(gm, BinaryLayer):
            if id(call.module) not in done:
                done[id(call.module)] = pack_layer(call.module)
            if _packs_outside(call.module):
                self._read_planes(gm, call, made, packs)
            changed.append(call.name)
        for call in calls(gm, BinaryLayer):
            swap(gm, call, done[id(call.module)])
        return PassResult(tuple(dict.fromkeys(changed)))

    @staticmethod
    def _read_planes(
        gm: fx.GraphModule,
        call: Call[BinaryLayer],
        made: dict[_PackKey, fx.Node],
        packs: dict[tuple[int, int, bool], str],
    ) -> None:
        source = first_input(call.node)
        module = call.module
        kind = (id(module.activation), module.groups, isinstance(module, BinaryLinear))
        key = (source, *kind)
        if key not in made or any(is_inplace(gm, user) for user in source.users):
            if kind in packs:
                made[key] = call_again(gm, call.node, packs[kind], (source,))
            else:
                hint = f"{call.name.rpartition('.')[0]}.pack" if "." in call.name else "pack"
                pack = call_before(gm, call.node, hint, pack_activation(module), (source,))
                packs[kind], made[key] = pack.name, pack.node
        call.node.replace_input_with(source, made[key])


def _packs_outside(layer: BinaryLayer) -> bool:
    return not isinstance(layer, BinaryConv2d | BinaryConvNd) or layer.padding_mode == "zeros"


def pack_activation(layer: BinaryLayer) -> PackActivation:
    """Return the packing of the layer's input."""
    activation: BinaryActivation = layer.activation
    rows = isinstance(layer, BinaryLinear)
    return PackActivation(activation.basis.terms, activation.levels, groups=layer.groups, rows=rows)


@torch.no_grad()
def pack_layer(layer: BinaryLayer) -> PackedConv2d | PackedConvNd | PackedLinear:
    """Return the packed form of one layer: same weight planes, same scales, same bias."""
    terms = (layer.weight_basis.terms, layer.activation.basis.terms)
    packed: PackedConv2d | PackedConvNd | PackedLinear
    if isinstance(layer, BinaryConv2d):
        inside = layer.padding if layer.padding_mode == "zeros" else (0, 0)
        geometry = Geometry(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, inside, layer.dilation,
            layer.groups, *terms,
        )  # fmt: skip
        packed = PackedConv2d(geometry, pack_activation(layer), layer.scheme.spec)
        packed.crop, packed.padding_mode = layer.crop, layer.padding_mode
        packed.mode_padding = layer.padding if layer.padding_mode != "zeros" else (0, 0)
    elif isinstance(layer, BinaryConvNd):
        space = dataclasses.replace(layer.inner_geometry(), weight_terms=terms[0], activation_terms=terms[1])
        packed = PackedConvNd(space, pack_activation(layer), layer.scheme.spec)
        packed.padding_mode, packed.mode_padding = layer.padding_mode, layer.mode_padding()
    else:
        assert isinstance(layer, BinaryLinear)
        geometry = Geometry(layer.in_features, layer.out_features, weight_terms=terms[0], activation_terms=terms[1])
        packed = PackedLinear(geometry, pack_activation(layer), layer.scheme.spec)
    scale = layer.unit.unsqueeze(1) * layer.activation.step.reshape(1, -1, 1)
    bias = layer.weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias
    packed.exactness = layer.exactness
    packed.set_weight(layer.odd(), scale.flatten(0, 1), bias)
    return packed.train(layer.training)


def graphs_of(net: nn.Module) -> Iterator[tuple[str, fx.GraphModule]]:
    """Yield each graph of a captured network with its path; the whole network is at the empty path."""
    for name, module in net.named_modules():
        if isinstance(module, fx.GraphModule):
            yield name, module


def pack(net: nn.Module) -> nn.Module:
    """Return the packed form of a converted network: same outputs, bits inside. ``net`` is left as it is.

    The copy is in evaluation mode; dropout is taken out, batch normalisation folded, residual additions and clamps are
    fused, one-plane activations between convolutions become integer thresholds, and each tensor is packed once for all
    its readers. Of branches that a router chooses, only the chosen run. Each layer takes the route that is quickest on
    this machine.

    Raises:
        ModelError: ``net`` holds no binary layer, or is packed already.
    """
    if not any(True for _ in binary_layers(net)):
        if any(isinstance(module, PackedLayer) for module in net.modules()):
            raise ModelError(f"cannot pack {type(net).__name__}: it is already packed; use it as it is")
        raise ModelError(f"cannot pack {type(net).__name__}: it has no binary layers; run convert first")
    packed = copy.deepcopy(net).eval()
    for _, gm in graphs_of(packed):
        for step in (TakeOutDropout(), PackLayers(), FoldBatchNorm(), FuseEpilogue(), FuseReader()):
            step(gm)
    for name, layer in list(binary_layers(packed)):
        put(packed, name, pack_layer(layer))
    for _, group in branch_groups(packed):
        group.sparse = group.router is not None
    packed.requires_grad_(False)
    for tensor in (*packed.parameters(), *packed.buffers()):
        if tensor.dim() == 4 and tensor.is_floating_point():  # Module.to would also ask a 3-D convolution, and fail
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    route(packed)
    schedule(packed)
    return packed
