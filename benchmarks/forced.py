"""A file against the packed network layer by layer: each layer is judged on what the file computed before it.

A whole network carries a code that rounding moved by one to its outputs, and one of random weights enlarges it on the
way. So every packed layer of the network in torch hands on what the file has at its place instead of its own output;
then what differs at a layer was made between it and the packed layers before it, and a wrong operation cannot hide. The
network runs node by node for this, as it always does where layers have hooks, and not by schedules.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

__all__ = ["worst_layer"]

_CODES = ("Threshold", "Uniform")  # what the name of a layer that answers in codes ends in


def worst_layer(net: Any, args: tuple[Any, ...], model: Any, library: str | None) -> float:
    """Return the largest relative difference of any packed layer or output; of codes, the share that differs.

    Args:
        net: packed network.
        args: its arguments.
        model: the exported file; changed.
        library: of operations; the layout of its codes is its own, so layers that answer in codes are then passed over.
    """
    from binarize.layers.packed import PackedLayer

    outputs = [slot.name for slot in model.graph.output]
    places = _open(model, dict(net.named_modules()), codes=library is None)
    seen = _run(model, args, library)
    found: list[float] = []
    count: Counter[str] = Counter()

    def force(path: str) -> Any:
        def hook(layer: Any, _: Any, own: Any) -> Any:
            given = places.get(path, [])
            place, count[path] = count[path], count[path] + 1
            return _handed_on(layer, own, seen[given[place]], found) if place < len(given) else None

        return hook

    layers = [(path, layer) for path, layer in net.named_modules() if isinstance(layer, PackedLayer)]
    handles = [layer.register_forward_hook(force(path)) for path, layer in layers]
    wanted = tensors(net(*args))
    for handle in handles:
        handle.remove()
    return max([*found, *(_far(seen[name], value) for name, value in zip(outputs, wanted, strict=True))])


def _open(model: Any, modules: dict[str, Any], *, codes: bool) -> dict[str, list[str]]:
    """Make what packed layers give outputs of the graph; return their names, call by call, for each module path."""
    from onnx import TensorProto, helper

    places: dict[str, list[str]] = {}
    known = {slot.name for slot in model.graph.output}
    for node in model.graph.node:
        for hint in node.attribute:
            if hint.name in ("y_inner", "x_inner", "residual_inner"):
                hint.i = 0  # everybody may read it now
        coded = node.op_type.endswith(_CODES)
        if node.domain != "binarize" or not node.op_type.startswith("Packed") or (coded and not codes):
            continue
        path, name = node.name if node.name in modules else re.sub(r"_\d+$", "", node.name), node.output[0]
        places.setdefault(path, []).append(name)
        if name not in known:
            kind = TensorProto.UINT8 if coded else TensorProto.FLOAT
            model.graph.output.append(helper.make_tensor_value_info(name, kind, None))
            known.add(name)
    return places


def _run(model: Any, args: tuple[Any, ...], library: str | None) -> dict[str, Any]:
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if library is not None:
        options.register_custom_ops_library(library)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {slot.name: x.contiguous().numpy() for slot, x in zip(session.get_inputs(), tensors(args), strict=True)}
    names = [slot.name for slot in session.get_outputs()]
    return {name: torch.from_numpy(value) for name, value in zip(names, session.run(None, feed), strict=True)}


def _handed_on(layer: Any, own: Any, seen: Any, found: list[float]) -> Any:
    """Note how far the file is from a layer's own output, and return the file's in the form of that output.

    None, for the layer's own, where the two are of different forms: a part of its work is in another node of the file.
    """
    import torch

    if own.is_floating_point():
        if seen.shape != own.shape or not seen.is_floating_point():
            return None
        found.append(_far(seen, own))
        return seen.clone()  # the network may write over it
    if seen.dtype != torch.uint8 or layer.reader.thresholds is not None:
        return None
    packed = layer.reader(seen.float() * layer.reader.step[0] + layer.reader.low)
    found.append(float((packed != own).float().mean()))
    return packed


def _far(seen: Any, wanted: Any) -> float:
    return float((seen - wanted).norm() / ((wanted - wanted.mean()).norm() + 1e-12))


def tensors(value: Any) -> Sequence[Any]:
    """Return the floating-point tensors inside a nested value, in order."""
    import torch
    from torchvision_sweep import tensors as found

    return list(found(torch, value))
