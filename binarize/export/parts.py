"""One captured part of a network as an ONNX file: what can be exported of a detector, whose outer code cannot."""

from typing import Any

import torch
from torch import Tensor, fx, nn

from binarize.cost import example_arguments
from binarize.data import random_images
from binarize.errors import ExportError, ModelError, nearest
from binarize.passes.pack import graphs_of
from binarize.record import record_of

__all__ = ["part_of"]


def part_of(net: nn.Module, part: str, example_inputs: Any = None) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return the part of a packed network that was captured at the module path ``part``, and inputs to export it with.

    A detector's backbone with its pyramid is one part: images that were resized and normalised go in, feature maps come
    out. Whatever calls the parts stays in Python.

        graph, inputs = part_of(net, "backbone")
        export_onnx(graph, "backbone.onnx", example_inputs=inputs)

    Args:
        net: packed network, captured by parts.
        part: module path of a captured part; the record of the network names them.
        example_inputs: those of the whole network; by default noise of the shape that it was calibrated on.

    Raises:
        ExportError: there is no such part, nothing calls it, or it is called with more than tensors.
    """
    known = [name for name, _ in graphs_of(net) if name and not _is_inside(net, name)]
    if part not in known:
        names = ", ".join(known) or "none: the network was captured whole"
        raise ExportError(f"cannot export the part {part!r}: no such part{nearest(part, known)}; the parts are {names}")
    return net.get_submodule(part), _inputs(net, part, example_inputs)


@torch.no_grad()
def _inputs(net: nn.Module, part: str, example_inputs: Any) -> tuple[Tensor, ...]:
    """Return the tensors that one forward of ``net`` first calls a part with."""
    seen: list[tuple[Any, ...]] = []
    handle = net.get_submodule(part).register_forward_pre_hook(lambda module, args: seen.append(args))
    try:
        net.eval()(*_arguments(net, example_inputs))
    finally:
        handle.remove()
    if not seen:
        raise ExportError(f"cannot export the part {part!r}: nothing calls it on the example; give other inputs")
    kept = tuple(value for value in seen[0] if value is not None)
    if not kept or not all(isinstance(value, Tensor) for value in kept) or kept != seen[0][: len(kept)]:
        kinds = ", ".join(type(value).__name__ for value in seen[0]) or "keywords"
        raise ExportError(f"cannot export the part {part!r}: it is called with {kinds}; only tensors can be inputs")
    return kept


def _is_inside(net: nn.Module, path: str) -> bool:
    """Whether a graph lies in another one, as a branch does."""
    parents = path.split(".")[:-1]
    return any(isinstance(net.get_submodule(".".join(parents[: i + 1])), fx.GraphModule) for i in range(len(parents)))


def _arguments(net: nn.Module, example: Any) -> tuple[Any, ...]:
    if example is not None:
        return example if isinstance(example, tuple) else (example,)
    try:
        shape = record_of(net).input_shape
    except ModelError:
        shape = None
    if shape is None:
        raise ExportError("cannot export a part: the shape of its images is not known; give example_inputs")
    return example_arguments(net, random_images(shape, 1))
