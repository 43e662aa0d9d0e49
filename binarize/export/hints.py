"""What a runtime with kernels of its own wants to know of a node's neighbours: attributes, added to a finished graph.

Kernels see one node at a time. The attributes let producer and readers of a value agree on how to lay it out; the
bodies do without them.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from binarize.errors import ExportError
from binarize.export.functions import DOMAIN, VERSION, is_nd
from binarize.kernels.problem import Conv2dProblem
from binarize.kernels.speeds import Speeds

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = ["add_hints"]

_RESIDUAL = 4  # which input of an operation with `Add` in its name


class _Reader(NamedTuple):
    node: "NodeProto"
    place: int  # of the value among the node's inputs


def add_hints(model: "ModelProto") -> None:
    """Tell each node the work on the codes that it makes or reads, and which floats pass only between our own nodes.

    Nodes of the Nd family are left alone: our library has no kernels for them.

    Raises:
        ExportError: codes are read by an operation of another domain.
    """
    graph = model.graph
    outputs = {value.name for value in graph.output}
    readers: dict[str, list[_Reader]] = defaultdict(list)
    for node in graph.node:
        for index, name in enumerate(node.input):
            readers[name].append(_Reader(node, index))
    inner = _adopt_pools(model, readers, outputs)
    for node in _ours(model):
        name = node.output[0]
        if _makes_codes(node):
            _require_ours(node, readers[name], name in outputs)
        if is_nd(node):
            continue
        if _makes_codes(node):
            _tell_work(node, [reader.node for reader in readers[name]])
        elif _gives_images(node) and name not in outputs and _all_take_inner(readers[name]):
            inner.add(name)
            _set(node, "y_inner", 1)
            for reader in readers[name]:
                _set(reader.node, "residual_inner" if _is_layer(reader.node) else "x_inner", 1)
    kept = [info for info in graph.value_info if info.name not in inner]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def _adopt_pools(model: "ModelProto", readers: dict[str, list[_Reader]], outputs: set[str]) -> set[str]:
    """Make max-pooling between layers of ours an operation of ours; return the names of what it reads.

    Else the layer before would turn its image for it, and those after turn it back.
    """
    makers = {node.output[0]: node for node in _ours(model)}
    adopted = set()
    for node in model.graph.node:
        maker = makers.get(node.input[0]) if node.op_type == "MaxPool" and node.domain in ("", "ai.onnx") else None
        if maker is None or not _gives_images(maker) or _why_not_ours(node) is not None:
            continue
        x, y = node.input[0], node.output[0]
        if {x, y} & outputs or len(readers[x]) > 1 or not _all_take_inner(readers[y]):
            continue
        given = _attributes(node)
        node.op_type, node.domain = "MaxPool2d", DOMAIN
        del node.attribute[:]
        for name, otherwise in (("kernel_shape", []), ("strides", [1, 1]), ("pads", [0] * 4), ("dilations", [1, 1])):
            _set(node, name, list(given.get(name, otherwise)))
        for name, value in (("x_inner", 1), ("y_inner", 1), ("version", VERSION)):
            _set(node, name, value)
        makers[y] = node
        adopted.add(x)
    return adopted


def _why_not_ours(pool: "NodeProto") -> str | None:
    """Return why a standard max-pooling has no operation of ours, or None."""
    given = _attributes(pool)
    pads = given.get("pads", [0] * 4)
    if len(given["kernel_shape"]) != 2 or len(pool.output) != 1:
        return "it is not of two dimensions, or tells places"
    if given.get("ceil_mode") or given.get("auto_pad", b"NOTSET") != b"NOTSET" or pads[:2] != pads[2:]:
        return "its borders differ by side"
    return None


def _gives_images(node: "NodeProto") -> bool:
    """Whether a node of ours gives a float image."""
    return node.op_type == "MaxPool2d" or (node.op_type.startswith("PackedConv2d") and not _makes_codes(node))


def _ours(model: "ModelProto") -> "Iterator[NodeProto]":
    return (node for node in model.graph.node if node.domain == DOMAIN)


def _is_layer(node: "NodeProto") -> bool:
    return node.op_type.startswith("Packed")


def _makes_codes(node: "NodeProto") -> bool:
    return node.op_type.startswith("Pack") and (not _is_layer(node) or node.op_type.endswith(("Threshold", "Uniform")))


def _require_ours(node: "NodeProto", readers: list[_Reader], is_output: bool) -> None:
    other = next((reader.node.op_type for reader in readers if reader.node.domain != DOMAIN), None)
    if other is not None or is_output:
        raise ExportError(
            f"cannot export {node.name!r} to ONNX: its codes go to {other or 'the output'}, which reads floats; "
            "keep the layer that reads them at full precision"
        )


def _tell_work(producer: "NodeProto", readers: "list[NodeProto]") -> None:
    """Write the products that all readers make for each pixel, as planes and as codes, on all of them."""
    problems = [(_problem(reader, False), _problem(reader, True)) for reader in readers]
    work = [max(1, round(sum(_products(pair[form]) for pair in problems))) for form in (0, 1)]
    _set(producer, "reader_work" if _is_layer(producer) else "work", work)
    for reader in readers:
        _set(reader, "work", work)


def _products(problem: Conv2dProblem) -> float:
    return Speeds(1.0, 1.0).nanoseconds(problem) / math.prod(problem.stride)


def _problem(node: "NodeProto", codes: bool) -> Conv2dProblem:
    given = _attributes(node)
    outputs, channels, *kernel = given["weight_shape"]
    groups, bits = given.get("group", 1), given["activation_bits"]
    one = (1, 1)
    pads = given.get("pads", (0, 0))
    return Conv2dProblem(
        channels * groups, outputs, tuple(kernel) if kernel else one, tuple(given.get("strides", one)),
        (pads[0], pads[1]), tuple(given.get("dilations", one)), groups, tuple(given["weight_terms"]),
        (1,) * bits if "steps" in given else (bits,), codes,
    )  # fmt: skip


def _all_take_inner(readers: list[_Reader]) -> bool:
    """Whether all readers of a float image are nodes of ours that take it in any layout."""
    return bool(readers) and all(_takes_inner(reader) for reader in readers)


def _takes_inner(reader: _Reader) -> bool:
    node = reader.node
    if node.domain != DOMAIN or is_nd(node):
        return False
    if _is_layer(node):
        return node.op_type.startswith("PackedConv2d") and reader.place == _RESIDUAL
    if node.op_type == "MaxPool2d":
        return True
    return reader.place == 0 and not _attributes(node)["rows"]


def _attributes(node: "NodeProto") -> dict[str, Any]:
    import onnx.helper

    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _set(node: "NodeProto", name: str, value: int | list[int]) -> None:
    import onnx.helper

    for attribute in [given for given in node.attribute if given.name == name]:
        node.attribute.remove(attribute)
    node.attribute.append(onnx.helper.make_attribute(name, value))
