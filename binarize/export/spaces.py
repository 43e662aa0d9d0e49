"""Codes for convolutions that are not of two dimensions, or are transposed: operations of their own make them.

Runtimes with kernels lay codes out as these like, and ours has kernels for two dimensions only. Therefore codes are of
two families that never meet: what `PackedConvNd` and `PackedConvTranspose` read is made by operations whose names end
in `Nd`. A runtime that has kernels for one family runs the bodies of the other.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from binarize.export.functions import DOMAIN, is_nd

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = ["part_families"]

_READER = "reader_"


def part_families(model: "ModelProto") -> None:
    """Give every reader of the Nd family codes of its own family, and make none that nobody reads."""
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    nodes = [part for node in model.graph.node for part in _parted(node, readers)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _parted(node: "NodeProto", readers: "dict[str, list[NodeProto]]") -> "Iterator[NodeProto]":
    """Yield the nodes that stand for ``node``: itself, or also a maker of codes for readers of the Nd family."""
    name = node.output[0] if node.output else ""
    nd = [reader for reader in readers.get(name, ()) if is_nd(reader) and reader.input[0] == name]
    if node.domain != DOMAIN or is_nd(node) or not nd:
        yield node
        return
    maker = node
    if node.op_type.startswith("PackedConv2d"):
        maker = _maker_of(node)
        yield node
    only = len(nd) == len(readers[name])
    if not only:
        yield maker
    yield _nd_maker(maker, nd, keep_name=only)


def _nd_maker(maker: "NodeProto", readers: "list[NodeProto]", *, keep_name: bool) -> "NodeProto":
    made = type(maker)()
    made.CopyFrom(maker)
    made.op_type = f"{maker.op_type}Nd"
    if not keep_name:
        made.name, made.output[0] = f"{maker.name}/nd", f"{maker.output[0]}/nd"
    for reader in readers:
        reader.input[0] = made.output[0]
    return made


def _maker_of(layer: "NodeProto") -> "NodeProto":
    """Turn a layer that answers in codes into one that answers in floats, and return the node that packs these."""
    import onnx.helper

    given = {item.name: onnx.helper.get_attribute_value(item) for item in layer.attribute}
    mine = {name: value for name, value in given.items() if not name.startswith(_READER)}
    code = {name.removeprefix(_READER): value for name, value in given.items() if name.startswith(_READER)}
    values, codes = f"{layer.output[0]}/values", layer.output[0]
    inputs, kind = [values], "PackUniform"
    if layer.op_type == "PackedConv2dThreshold":
        inputs, kind = [values, layer.input.pop()], "PackThresholds"
        code["groups"] = 1
    layer.op_type, layer.output[0] = "PackedConv2d", values
    del layer.attribute[:]
    layer.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in mine.items())
    return onnx.helper.make_node(
        kind, inputs, [codes], f"{layer.name}/reader", doc_string=layer.doc_string, domain=DOMAIN, rows=0, x_inner=0,
        version=given["version"], **code,
    )  # fmt: skip
