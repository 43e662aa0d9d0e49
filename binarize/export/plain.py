"""The plain form: every operation of the domain replaced by its body, so that only standard ones are left.

For runtimes that know neither model-local functions nor our library. The weights stay bits in the file.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from binarize.export.clean import MOST_FOLDED_BYTES
from binarize.export.functions import DOMAIN

if TYPE_CHECKING:
    from onnx import AttributeProto, FunctionProto, ModelProto, NodeProto

__all__ = ["to_plain"]

_PRODUCTS = ("product", "unbiased")  # what the bodies call the output of their convolution or matrix product


def to_plain(model: "ModelProto") -> "ModelProto":
    """Return the model with the bodies in the place of the nodes, and what does not depend on a weight folded.

    The node that multiplies, or packs, keeps the name and the doc string of the one it stands for; the others are named
    ``<module path>/<what they make>``.
    """
    import onnx
    import onnx_ir
    import onnx_ir.passes.common as passes
    from onnxscript import optimizer

    made: ModelProto = onnx.ModelProto()
    made.CopyFrom(model)
    bodies = {body.name: body for body in model.functions}
    nodes = [part for node in model.graph.node for part in _expand(node, bodies)]
    del made.graph.node[:], made.functions[:], made.graph.value_info[:]
    made.graph.node.extend(nodes)
    for item in [item for item in made.opset_import if item.domain == DOMAIN]:
        made.opset_import.remove(item)
    plain = onnx_ir.from_proto(made)
    optimizer.fold_constants(
        plain, onnx_shape_inference=False,
        input_size_limit=MOST_FOLDED_BYTES, output_size_limit=MOST_FOLDED_BYTES,
    )  # fmt: skip
    for step in (
        passes.IdentityEliminationPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(size_limit=2**40),
        passes.RemoveUnusedNodesPass(),
    ):
        step(plain)
    for node in plain.graph:
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    return onnx_ir.to_proto(plain)


def _expand(node: "NodeProto", bodies: "dict[str, FunctionProto]") -> "Iterator[NodeProto]":
    """Yield the body of a node of the domain, with names of its own; any other node as it is."""
    if node.domain != DOMAIN:
        yield node
        return
    body = bodies[node.op_type]
    given = {attribute.name: attribute for attribute in node.attribute}
    names = dict(zip(body.input, node.input, strict=True)) | dict(zip(body.output, node.output, strict=True))
    main = next((part.output[0] for part in body.node if part.output[0] in _PRODUCTS), body.output[0])
    for part in body.node:
        made = _copy(part)
        made.name = node.name if part.output[0] == main else f"{node.name}/{part.output[0]}"
        made.doc_string = node.doc_string if made.name == node.name else ""
        made.input[:] = [names.get(name) or (f"{node.name}/{name}" if name else "") for name in part.input]
        made.output[:] = [names.get(name) or f"{node.name}/{name}" for name in part.output]
        attributes = [_resolved(attribute, given) for attribute in part.attribute]
        del made.attribute[:]
        made.attribute.extend(attributes)
        yield from _expand(made, bodies)


def _resolved(attribute: "AttributeProto", given: "dict[str, AttributeProto]") -> "AttributeProto":
    """Return an attribute of a body's node with the value that the calling node gives it."""
    if not attribute.ref_attr_name:
        return attribute
    made: AttributeProto = _copy(given[attribute.ref_attr_name])
    made.name = attribute.name
    return made


def _copy(proto: Any) -> Any:
    made = type(proto)()
    made.CopyFrom(proto)
    return made
