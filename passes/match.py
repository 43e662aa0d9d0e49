"""Which operation a node of a packed graph is in a schedule; what none is, torch runs, and the reason is kept."""

import operator
from collections.abc import Callable
from math import inf
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from binarize.kernels import steps
from binarize.kernels.finish import name_of
from binarize.layers.branches import Branches
from binarize.layers.geometry import problem_of
from binarize.layers.packed import PackActivation, PackedConv2d, PackedLinear
from binarize.passes.emit import (
    Addition,
    Clamp,
    Flatten,
    FloatConvolution,
    FloatRows,
    Mean,
    Operation,
    PackedConvolution,
    PackedRows,
    Packing,
    Pooling,
    Same,
)
from binarize.passes.emit_branches import Body, BranchesSum, Part
from binarize.passes.emit_channels import Concatenation, Normalisation, Rectification
from binarize.passes.operations import add_of, clamp_of, is_inplace, module_of

__all__ = ["operation_of"]


def operation_of(gm: fx.GraphModule, node: fx.Node) -> Operation | str:
    """Return what ``node`` computes in a schedule, or why it is left to torch."""
    found = _operation(gm, node)
    if isinstance(found, str):
        return found
    if is_inplace(gm, node) and not _owns_input(gm, node):
        return "it writes over a tensor that others may read"
    if not found.makes_new and any(is_inplace(gm, user) for user in node.users):
        return "what reads it writes over its input"
    return found


def _owns_input(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the tensor that ``node`` writes over was made for it alone, so that a new one may be given instead."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or len(source.users) > 1:
        return False
    found = _operation(gm, source)
    return not isinstance(found, str) and found.makes_new


def _operation(gm: fx.GraphModule, node: fx.Node) -> Operation | str:
    if _is_concatenation(node):
        return _concatenation(node)
    if not node.args or not isinstance(node.args[0], fx.Node):
        return f"{_name(node.target)} takes no tensor by position"
    bounds, terms = clamp_of(gm, node), add_of(node)
    if terms is not None:
        return Addition(node, terms, *_clamp_after(gm, node))
    if bounds is not None:
        feeder = node.args[0]
        taken = _operation(gm, feeder) if feeder.op != "placeholder" else None
        return Same(node) if isinstance(taken, Operation) and taken.absorbed is node else Clamp(node, feeder, bounds)
    module = module_of(gm, node)
    if node.target is operator.getitem and isinstance(_operation(gm, node.args[0]), BranchesSum):
        return Part(node)
    if module is None:
        return _function(node) or f"{_name(node.target)} has no kernel"
    if "forward" in module.__dict__:
        return "its forward was replaced"
    made = _MODULES.get(type(module))
    return f"{type(module).__name__} has no kernel" if made is None else made(gm, node, module)


def _is_concatenation(node: fx.Node) -> bool:
    return node.target in (torch.cat, torch.concat) and bool(node.args)


def _concatenation(node: fx.Node) -> Operation | str:
    parts = node.args[0]
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    if not isinstance(parts, (list, tuple)) or not all(isinstance(part, fx.Node) for part in parts) or not parts:
        return "it joins no tensors that the graph names"
    if axis != 1 or set(node.kwargs) - {"dim"}:
        return "it joins along another axis than the channels"
    return Concatenation(node, tuple(parts))  # type: ignore[arg-type]  # all are nodes


def _name(target: object) -> str:
    return str(getattr(target, "__name__", target))


def _function(node: fx.Node) -> Operation | None:
    """Return what a function or method that is no module computes."""
    if _is_flatten(node):
        return Flatten(node)
    size = node.args[1] if len(node.args) > 1 else None
    if node.target is F.adaptive_avg_pool2d and size in (1, (1, 1), [1, 1]) and len(node.args) == 2 and not node.kwargs:
        return Mean(node)
    named = node.target is torch.mean or node.target == "mean"
    if named and isinstance(size, (list, tuple)) and sorted(size) in _PIXELS and not set(node.kwargs) - {"keepdim"}:
        keeps = node.kwargs.get("keepdim", False)
        return Mean(node, flat=not keeps) if len(node.args) == 2 and isinstance(keeps, bool) else None
    return None


_PIXELS = ([2, 3], [-2, -1])


def _is_flatten(node: fx.Node) -> bool:
    known = {torch.flatten, torch.ops.aten.flatten.using_ints}
    return (node.target in known or node.target == "flatten") and tuple(node.args[1:]) == (1,) and not node.kwargs


def _clamp_after(gm: fx.GraphModule, node: fx.Node) -> tuple[fx.Node | None, tuple[float, float]]:
    """Return the clamp that is the only reader of ``node``, and its bounds."""
    user = next(iter(node.users)) if len(node.users) == 1 else None
    bounds = clamp_of(gm, user)
    reads_it = user is not None and bool(user.args) and user.args[0] is node
    return (user, bounds) if user is not None and reads_it and bounds is not None else (None, (-inf, inf))


def _packed_conv(gm: fx.GraphModule, node: fx.Node, layer: PackedConv2d) -> Operation | str:
    if any(layer.crop):
        return "its output is cropped"
    if layer.padding_mode != "zeros":
        return f"it pads by {layer.padding_mode}"
    return _if_compiled(layer) or PackedConvolution(node, layer)


def _packed_linear(gm: fx.GraphModule, node: fx.Node, layer: PackedLinear) -> Operation | str:
    if len(node.args) > 1:
        return "it adds to rows"
    return _if_compiled(layer) or PackedRows(node, layer)


def _if_compiled(layer: PackedConv2d | PackedLinear) -> str | None:
    if layer.dtype != torch.float32:
        return f"it gives {name_of(layer.dtype)}"
    return steps.why_not_conv2d(problem_of(layer.geometry, layer.activation.route))


def _float_conv(gm: fx.GraphModule, node: fx.Node, conv: nn.Conv2d) -> Operation | str:
    spans = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    if conv.padding_mode != "zeros":
        return f"it pads by {conv.padding_mode}"
    if conv.padding == "same" and any(span % 2 for span in spans):
        return "it pads unevenly"
    if not _is_float(conv.weight, conv.bias):
        return "its weights are not float32 on the CPU"
    if conv.groups > 1 and not steps.is_depthwise(conv) and conv.out_channels // conv.groups < 16:
        return "its groups are too narrow"
    return FloatConvolution(node, conv, *_clamp_after(gm, node))


def _float_linear(gm: fx.GraphModule, node: fx.Node, linear: nn.Linear) -> Operation | str:
    known = _is_float(linear.weight, linear.bias)
    return FloatRows(node, linear) if known else "its weights are not float32 on the CPU"


def _is_float(*tensors: Tensor | None) -> bool:
    return all(t is None or (t.dtype == torch.float32 and t.device.type == "cpu") for t in tensors)


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _max_pool(gm: fx.GraphModule, node: fx.Node, module: nn.MaxPool2d) -> Operation | str:
    if module.ceil_mode or module.return_indices:
        return "it pools by ceil_mode or gives indices"
    fields = module.kernel_size, module.stride, module.padding, module.dilation
    return Pooling(node, tuple(size for field in fields for size in _pair(field)), largest=True)


def _average_pool(gm: fx.GraphModule, node: fx.Node, module: nn.AvgPool2d) -> Operation | str:
    if module.ceil_mode:
        return "it pools by ceil_mode"
    fields = module.kernel_size, module.stride, module.padding, 1
    window = tuple(size for field in fields for size in _pair(field))
    return Pooling(node, window, False, module.count_include_pad, module.divisor_override)


def _adaptive_pool(gm: fx.GraphModule, node: fx.Node, module: nn.AdaptiveAvgPool2d) -> Operation | str:
    return Mean(node) if module.output_size in (1, (1, 1)) else "it pools to more than one pixel"


def _dropout(gm: fx.GraphModule, node: fx.Node, module: nn.Dropout) -> Operation | str:
    return "it drops values in training" if module.training else Same(node)


def _branches(gm: fx.GraphModule, node: fx.Node, branches: Branches) -> Operation | str:
    if branches.router is not None:
        return "it chooses branches"
    if not all(isinstance(arg, fx.Node) for arg in node.args) or node.kwargs:
        return "it takes no tensors by position"
    if branches.hands_on and not _takes_follow(node):
        return "what it hands on is taken later"
    bodies = []
    for k, body in enumerate(branches.bodies):
        found = _body(f"{node.target}.bodies.{k}", body)  # type: ignore[arg-type]  # a graph
        if isinstance(found, str):
            return found
        bodies.append(found)
    return BranchesSum(node, branches, tuple(bodies))


def _takes_follow(node: fx.Node) -> bool:
    """Whether the next nodes take each its part of a tuple, and nothing else reads it."""
    after, left = node.next, len(node.users)
    while left and after.target is operator.getitem and after.args[0] is node and isinstance(after.args[1], int):
        after, left = after.next, left - 1
    return not left


def _body(path: str, body: fx.GraphModule) -> Body | str:
    """Return the graph of a branch, or why torch has to run it."""
    inputs = [node for node in body.graph.nodes if node.op == "placeholder"]
    output = body.graph.output_node().args[0]
    if len(inputs) != 1 or not isinstance(output, fx.Node):
        return "a branch of it maps no tensor to one"
    operations = []
    for node in body.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        found = "a constant" if node.op == "get_attr" else operation_of(body, node)
        if isinstance(found, str):
            return f"{node.name} of a branch: {found}"
        operations.append(found)
    return Body(path, inputs[0], tuple(operations), output)


def _batch_norm(gm: fx.GraphModule, node: fx.Node, norm: nn.BatchNorm2d) -> Operation | str:
    if norm.training or norm.running_mean is None:
        return "it takes the statistics of its batch"
    if not _is_float(norm.running_mean, norm.weight):
        return "its numbers are not float32 on the CPU"
    return Normalisation(node, norm, *_clamp_after(gm, node))


def _prelu(gm: fx.GraphModule, node: fx.Node, module: nn.PReLU) -> Operation | str:
    return Rectification(node, module.weight) if _is_float(module.weight) else "its slopes are not float32 on the CPU"


_MODULES: dict[type[nn.Module], Callable[[fx.GraphModule, fx.Node, Any], Operation | str]] = {
    PackActivation: lambda gm, node, module: Packing(node, module),
    PackedConv2d: _packed_conv,
    PackedLinear: _packed_linear,
    nn.Conv2d: _float_conv,
    nn.Linear: _float_linear,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _average_pool,
    nn.AdaptiveAvgPool2d: _adaptive_pool,
    nn.Flatten: lambda gm, node, module: (
        Flatten(node) if (module.start_dim, module.end_dim) == (1, -1) else "it keeps dimensions"
    ),
    nn.Dropout: _dropout,
    nn.BatchNorm2d: _batch_norm,
    nn.PReLU: _prelu,
    Branches: _branches,
    nn.Identity: lambda gm, node, module: Same(node),
}
