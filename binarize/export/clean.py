"""Make an exported graph readable and small: names from module paths, no traces of how and where it was made."""

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from binarize.export.functions import DOMAIN
from binarize.export.stand_ins import LABEL

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["clean"]

# Folding serves the arithmetic on shapes; larger constants would be stored unfolded and folded.
MOST_FOLDED_BYTES = 1024


def clean(model: "onnx_ir.Model", output_names: Sequence[str]) -> None:
    """Fold shapes, drop what nobody reads, name nodes and values by module path, and clear every trace.

    Args:
        model: as `torch.onnx.export` made it; changed in place.
        output_names: name for each output of the graph.
    """
    import onnx_ir.passes.common as passes
    from onnxscript import optimizer

    labels = {id(node): _label(node) for node in model.graph}
    optimizer.fold_constants(
        model, onnx_shape_inference=False,
        input_size_limit=MOST_FOLDED_BYTES, output_size_limit=MOST_FOLDED_BYTES, should_fold=_may_fold,
    )  # fmt: skip
    for step in (
        passes.IdentityEliminationPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(size_limit=2**40),
        passes.RemoveUnusedNodesPass(),
    ):
        step(model)
    _name(model.graph, labels, output_names)
    _clear(model)


def _may_fold(node: "onnx_ir.Node") -> bool | None:
    """Keep our own operations on constants, which only a runtime computes; leave the choice on others to onnxscript."""
    return False if node.domain == DOMAIN else None


def _label(node: "onnx_ir.Node") -> tuple[str, str, bool]:
    """Return the path of the module that a node comes from, a sentence on it, and whether the operation is ours."""
    label = node.metadata_props.get(LABEL)
    if label is not None:
        path, doc = json.loads(label)
        return path, doc, True
    scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
    path = scopes[-2] if len(scopes) > 1 else ""
    return ("" if path.startswith("_") else path), "", False


def _name(graph: "onnx_ir.Graph", labels: dict[int, tuple[str, str, bool]], output_names: Sequence[str]) -> None:
    nodes = list(graph)
    found = [labels.get(id(node), ("", "", False)) for node in nodes]
    nodes_of = Counter(path for path, _, _ in found)
    parents = {path[: dot.start()] for path in nodes_of for dot in re.finditer(r"\.", path)}
    used = {*graph.initializers, *(value.name for value in graph.inputs), *output_names}
    for value in [value for key, value in graph.initializers.items() if key.startswith("val_")]:
        value.name = _unused("constant", used)
    for node, (path, doc, ours) in zip(nodes, found, strict=True):
        whole = ours or (path and nodes_of[path] == 1 and path not in parents)
        name = path if whole else f"{path}/{node.op_type}" if path else node.op_type
        node.name = _unused(name, used)
        node.doc_string = doc or None
        for index, output in enumerate(node.outputs):
            output.name = node.name if index == 0 else _unused(f"{node.name}:{index}", used)
    for value, wished in zip(graph.outputs, output_names, strict=True):
        value.name = wished


def _unused(name: str, used: set[str | None]) -> str:
    chosen, count = name, 0
    while chosen in used:
        count += 1
        chosen = f"{name}_{count}"
    used.add(chosen)
    return chosen


def _clear(model: "onnx_ir.Model") -> None:
    """Clear metadata everywhere, and the types of values that only pass between our own operations.

    What travels there is for a runtime with kernels of its own to lay out, so the file must not promise a shape.
    """
    import onnx_ir

    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.doc_string = None
    for node in model.graph:
        node.metadata_props.clear()
    for value in _values(model.graph):
        value.metadata_props.clear()
        value.doc_string = None
        if value.dtype == onnx_ir.DataType.UINT8 and value.producer() is not None:
            value.type, value.shape = None, None


def _values(graph: "onnx_ir.Graph") -> Iterator["onnx_ir.Value"]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs
