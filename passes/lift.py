"""Lifts an exported program to a graph of layers, so that every pass sees one kind of graph.

`torch.export` leaves a flat list of aten calls that read their weights by path. The path names the layer: a call
whose weight stands at ``layer1.0.conv1.weight`` becomes a call of an `nn.Conv2d` at ``layer1.0.conv1``. Activations,
additions and poolings become the functions a model's author would have written. The rest stay aten calls.
"""

import operator
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["lift"]

aten = torch.ops.aten
Arguments = Mapping[str, Any]
CONVOLUTIONS: dict[Any, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {
    aten.conv1d.default: nn.Conv1d,
    aten.conv2d.default: nn.Conv2d,
    aten.conv3d.default: nn.Conv3d,
    aten.conv1d.padding: nn.Conv1d,
    aten.conv2d.padding: nn.Conv2d,
    aten.conv3d.padding: nn.Conv3d,
}
NORMS = {3: nn.BatchNorm1d, 2: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
# Operators that return a new tensor and have a plain counterpart with the same arguments in the same order.
PLAIN: dict[Any, Callable[..., Any]] = {
    aten.relu.default: F.relu,
    aten.relu6.default: F.relu6,
    aten.hardtanh.default: F.hardtanh,
    aten.hardswish.default: F.hardswish,
    aten.hardsigmoid.default: F.hardsigmoid,
    aten.leaky_relu.default: F.leaky_relu,
    aten.silu.default: F.silu,
    aten.sigmoid.default: torch.sigmoid,
    aten.tanh.default: torch.tanh,
    aten.clamp.default: torch.clamp,
    aten.add.Tensor: operator.add,
    aten.sub.Tensor: operator.sub,
    aten.mul.Tensor: operator.mul,
    aten.div.Tensor: operator.truediv,
    aten.cat.default: torch.cat,
    aten.flatten.using_ints: torch.flatten,
    aten.max_pool2d.default: F.max_pool2d,
    aten.avg_pool2d.default: F.avg_pool2d,
    aten.adaptive_avg_pool2d.default: F.adaptive_avg_pool2d,
}
# Their in-place forms: the same function, where nothing else holds the tensor that they overwrite.
IN_PLACE: dict[Any, Any] = {
    aten.relu_.default: aten.relu.default,
    aten.relu6_.default: aten.relu6.default,
    aten.hardtanh_.default: aten.hardtanh.default,
    aten.hardswish_.default: aten.hardswish.default,
    aten.hardsigmoid_.default: aten.hardsigmoid.default,
    aten.leaky_relu_.default: aten.leaky_relu.default,
    aten.silu_.default: aten.silu.default,
    aten.sigmoid_.default: aten.sigmoid.default,
    aten.add_.Tensor: aten.add.Tensor,
    aten.sub_.Tensor: aten.sub.Tensor,
    aten.mul_.Tensor: aten.mul.Tensor,
}

_LEAF = object()


def lift(program: "ExportedProgram") -> fx.GraphModule:
    """Return the program as a graph module of layers under their original paths.

    A layer whose weight is computed, or shared between unlike calls, stays an aten call. Batch sizes that the export
    fixed stay fixed. Parameters are shared with the program, not copied.

    Args:
        program: What `torch.export.export` or `torch.export.load` returned.

    Returns:
        A graph module in eval mode that takes and returns what the program does; `train()` and backward work.
    """
    return _Lifter(program).run()


@final
class _Lifter:
    """One program on its way to a graph of layers."""

    def __init__(self, program: "ExportedProgram") -> None:
        self.source = program.module(check_guards=False)
        self.spec = program.call_spec
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.made: dict[str, tuple[object, ...]] = {}  # module path -> what it was made from
        self.env: dict[fx.Node, Any] = {}

    def run(self) -> fx.GraphModule:
        for node in self.source.graph.nodes:
            if node.op != "output":
                self.env[node] = self.place(node)
        self.graph.output(self.output())
        self.graph.eliminate_dead_code(is_impure_node=_writes)
        for node in self.graph.nodes:
            if node.op == "get_attr":
                self.keep(str(node.target))
        lifted = fx.GraphModule(self.root, self.graph, "Lifted")
        lifted.graph.lint()
        return lifted.eval()

    def place(self, node: fx.Node) -> fx.Node:
        """Copy ``node``, as a layer or a plain function where it is one."""
        if node.op != "call_function":
            return self.graph.node_copy(node, self.env.__getitem__)
        target = node.target
        if target in IN_PLACE and _only_holder(node):
            target = IN_PLACE[target]
        given = _bind(node)
        made = self.layer(node, target, given)
        if made is None:
            made = self.plain(node, target)
        if made is None:
            made = self.graph.node_copy(node, self.env.__getitem__)
        return made

    def layer(self, node: fx.Node, target: Any, given: Arguments) -> fx.Node | None:
        """Add a call of the layer that ``node`` computes; None if it is none."""
        if target in (aten.dropout.default, aten.dropout_.default):  # no layer writes in place in eval mode
            return self.call(self.free_path(node), nn.Dropout(given["p"]), (target, given["p"]), node.args[0])
        weight = given.get("weight")
        if not isinstance(weight, fx.Node) or weight.op != "get_attr":
            return None
        module = self.build(target, given)
        if module is None:
            return None
        parameters = {name: str(given[name].target) for name in _parameter_names(target) if given.get(name) is not None}
        if any(given[name].op != "get_attr" for name in parameters):
            return None
        path = _layer_path(parameters["weight"])
        key = (target, *(repr(value) for value in given.values() if value is not node.args[0]))
        if path in self.made and self.made[path] != key:
            return None
        self.fill(module, parameters)
        return self.call(path, module, key, node.args[0])

    def build(self, target: Any, given: Arguments) -> nn.Module | None:
        weight = self.tensor(given["weight"])
        bias = given.get("bias") is not None
        with torch.device("meta"):
            if target in CONVOLUTIONS:
                names = ("stride", "padding", "dilation")
                stride, padding, dilation = (_each(given[name], weight.ndim - 2) for name in names)
                channels, kernel = weight.shape[1] * given["groups"], tuple(weight.shape[2:])
                kind: Any = CONVOLUTIONS[target]
                convolution: nn.Module = kind(
                    channels, weight.shape[0], kernel, stride, padding, dilation, given["groups"], bias
                )
                return convolution
            if target is aten.linear.default:
                return nn.Linear(weight.shape[1], weight.shape[0], bias)
            if target is aten.layer_norm.default:
                return nn.LayerNorm(list(given["normalized_shape"]), given["eps"], bias=bias)
            if (
                target is aten.batch_norm.default
                and not given["training"]
                and given["running_mean"] is not None
                and bias
            ):
                kind = NORMS[_dimensions(given["input"])]
                norm: nn.Module = kind(weight.shape[0], given["eps"], given["momentum"])
                return norm
        return None

    def fill(self, module: nn.Module, parameters: Mapping[str, str]) -> None:
        """Give ``module`` the program's own tensors."""
        for name, path in parameters.items():
            setattr(module, name, _get(self.source, path))
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            count = parameters["weight"].rpartition(".")[0] + ".num_batches_tracked"
            try:
                module.num_batches_tracked = _get(self.source, count)
            except AttributeError:
                module.num_batches_tracked = torch.tensor(0)

    def call(self, path: str, module: nn.Module, key: tuple[object, ...], x: Any) -> fx.Node:
        if path not in self.made:
            self.made[path] = key
            _put(self.root, path, module)
        return self.graph.call_module(path, (self.env[x],))

    def plain(self, node: fx.Node, target: Any) -> fx.Node | None:
        """Add a call of the plain function that ``node`` computes; None if it has no such form."""
        function = PLAIN.get(target)
        # Scaled additions and keyword-only arguments have no counterpart in the plain form.
        if function is None or node.kwargs:
            return None
        arguments = fx.map_arg(node.args, self.env.__getitem__)
        return self.graph.call_function(function, arguments)

    def keep(self, path: str) -> None:
        """Keep the parameter or constant at ``path``, which no layer holds."""
        value = _get(self.source, path)
        parent, _, name = path.rpartition(".")
        holder = _descend(self.root, parent)
        if hasattr(holder, name):
            return
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            holder.register_buffer(name, value)
        else:
            setattr(holder, name, value)

    def free_path(self, node: fx.Node) -> str:
        """The path of the dropout layer that the author wrote, or the node's name if there was none."""
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path, kind = stack[-1] if stack else ("", "")
        is_free = re.fullmatch(r"\w+(\.\w+)*", path) is not None and path not in self.made
        return path if is_free and "Dropout" in str(kind) else node.name

    def output(self) -> Any:
        """What the program returns; and whether the graph needs torch's codegen for trees of inputs."""
        last = next(node for node in self.source.graph.nodes if node.op == "output")
        leaves = fx.map_arg(list(last.args[0]), self.env.__getitem__)
        if _is_flat(self.spec.in_spec) and _is_plain_tree(_skeleton(self.spec.out_spec)):
            return pytree.tree_unflatten(leaves, self.spec.out_spec)
        self.graph.set_codegen(self.source.graph._codegen)
        return leaves

    def tensor(self, node: fx.Node) -> Tensor:
        value = _get(self.source, str(node.target))
        assert isinstance(value, Tensor)
        return value


def _bind(node: fx.Node) -> dict[str, Any]:
    """Return every argument of an aten call by name, defaults filled in; empty for other functions."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {}
    given = {argument.name: argument.default_value for argument in schema.arguments}
    given.update(zip(given, node.args, strict=False))
    return given | dict(node.kwargs)


def _parameter_names(target: Any) -> tuple[str, ...]:
    if target is aten.batch_norm.default:
        return ("weight", "bias", "running_mean", "running_var")
    return ("weight", "bias")


def _layer_path(weight: str) -> str:
    """``conv1.weight`` -> ``conv1``; ``attention.in_proj_weight`` -> ``attention.in_proj``."""
    parent, _, name = weight.rpartition(".")
    own = name.removesuffix("weight").rstrip("_")
    return ".".join(part for part in (parent, own) if part) or "layer"


def _only_holder(node: fx.Node) -> bool:
    """Whether the tensor that ``node`` overwrites is fresh and read by nothing else."""
    first = node.args[0]
    if not isinstance(first, fx.Node) or first.op != "call_function" or len(first.users) > 1:
        return False
    target = first.target
    if target in IN_PLACE and not _only_holder(first):
        return False
    layers = (*CONVOLUTIONS, *PLAIN, *IN_PLACE, aten.linear.default, aten.batch_norm.default, aten.layer_norm.default)
    # flatten gives a view, which another name of the same memory may be read through.
    return target in layers and target is not aten.flatten.using_ints


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.op in ("placeholder", "output") or (schema is not None and schema.is_mutable)


def _dimensions(node: fx.Node) -> int:
    return int(node.meta["val"].ndim)


def _each(value: Any, dimensions: int) -> Any:
    """One value per dimension: aten takes a single one for all."""
    if isinstance(value, str):
        return value
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * dimensions if len(values) == 1 else values


def _get(module: nn.Module, path: str) -> Any:
    return operator.attrgetter(path)(module)


def _descend(root: nn.Module, path: str) -> nn.Module:
    """Return the module at ``path``, making empty ones on the way."""
    for part in filter(None, path.split(".")):
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    return root


def _put(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    holder = _descend(root, parent)
    for child, inner in getattr(holder, name, nn.Module()).named_children():
        module.add_module(child, inner)  # layers of a layer subclass, met before it
    holder.add_module(name, module)


def _is_flat(spec: Any) -> bool:
    """Whether the inputs are positional tensors and nothing else."""
    arguments, keywords = _skeleton(spec)
    return not keywords and all(argument is _LEAF for argument in arguments)


def _is_plain_tree(tree: Any) -> bool:
    if type(tree) is dict:
        return all(map(_is_plain_tree, tree.values()))
    return tree is _LEAF or (type(tree) in (tuple, list) and all(map(_is_plain_tree, tree)))


def _skeleton(spec: Any) -> Any:
    return pytree.tree_unflatten([_LEAF] * spec.num_leaves, spec)
