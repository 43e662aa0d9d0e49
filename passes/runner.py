"""Runs a packed graph by something better than one call a node, as long as what was learnt of it stays true."""

import abc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol, final

import torch
from torch import Tensor, fx, nn

from binarize.layers.branches import Branches
from binarize.layers.packed import PackActivation, PackedLayer
from binarize.passes.emit import Operation
from binarize.passes.lists import Interpreter

__all__ = ["Item", "Runner"]

_ABSENT = object()


class Item(Protocol):
    """Nodes that are run together, by less than a call each.

    Attributes:
        operations: what the nodes compute, in order.
        inputs: nodes before it whose values it reads.
        outputs: its nodes that are read after it.
    """

    operations: tuple[Operation, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]

    def run(self, env: dict[fx.Node, Any]) -> bool:
        """Put the values of the outputs into ``env``; False where the nodes have to be run one by one."""


class Runner(abc.ABC):
    """A graph cut into items and single nodes, and the facts under which it was cut so.

    Attributes:
        device: the kind of device that every tensor it is given has to lie on.
        reasons: node that is run by itself -> why.
    """

    device: ClassVar[str]

    @final
    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm, self.graph, self.by_torch = gm, gm.graph, Interpreter(gm)
        self.reasons: dict[str, str] = {}
        self.items = tuple(self._cut())
        self.placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
        self.output = next(iter(reversed(gm.graph.nodes)))
        self.last = _last_uses(self.items, self.output)
        self._learn()

    @final
    def __deepcopy__(self, memo: object) -> None:
        """A copy of a graph makes its own."""

    @final
    def __reduce__(self) -> tuple[Any, ...]:
        """Files hold none."""
        return type(None), ()

    @staticmethod
    @abc.abstractmethod
    def missing() -> str | None:
        """Return why no graph is run so on this machine, or None."""

    @abc.abstractmethod
    def _cut(self) -> "Iterator[Item | fx.Node]":
        """Yield what is run, in order; tell in `reasons` why single nodes are."""

    @final
    def _learn(self) -> None:
        """Remember what was looked at, also of modules that are run by themselves: what they are has decided that."""
        together = {o.node for item in self.items if not isinstance(item, fx.Node) for o in item.operations}
        called = [node for node in self.gm.graph.nodes if node.op == "call_module"]
        held = _modules(self.gm, (node for node in called if node in together))
        modules = _modules(self.gm, called)
        self._same = [*_places(self.gm, (str(node.target) for node in called))]
        for module in modules:
            self._same += _attributes(module)
        self._hooks: list[Mapping[Any, Any]] = list(_GLOBAL_HOOKS)
        for module in (*held, self.gm):
            self._hooks += [module._forward_hooks, module._forward_pre_hooks]
        tensors = [t for module in modules for t in _tensors(module)]
        self._parameters = [t for t in tensors if isinstance(t, nn.Parameter)]
        # An alias keeps its memory, so that nothing new comes to lie there: `half()` swaps the data of a parameter.
        self._memory = [(t, t.data_ptr(), t.detach()) for t in tensors]
        tensors = [t for module in held for t in _tensors(module)]
        self._versions = [(t, t._version) for t in tensors if not t.is_inference()]  # those of inference have none

    @final
    def is_current(self) -> bool:
        """Whether graph, modules and weights are those that the schedules were made for."""
        if self.graph is not self.gm.graph:
            return False
        for home, key, held in self._same:
            if home.get(key, _ABSENT) is not held:
                return False
        if any(tensor.data_ptr() != place for tensor, place, _ in self._memory):
            return False
        return all(tensor._version == version for tensor, version in self._versions)

    @final
    def _is_elsewhere(self, x: object) -> bool:
        """Whether ``x`` is on another device, or stands for a tensor (a subclass, what `torch.fx` traces with)."""
        if isinstance(x, Tensor):
            return x.device.type != self.device or type(x) not in (Tensor, nn.Parameter)
        return isinstance(x, fx.Proxy)

    @final
    def may_run(self, args: Sequence[object]) -> bool:
        """Whether nobody has to see single operations: no hooks, no gradients, no tensor that stands for another."""
        if any(self._hooks) or len(args) != len(self.placeholders) or any(map(self._is_elsewhere, args)):
            return False
        if not torch.is_grad_enabled():
            return True
        return not any(isinstance(x, Tensor) and x.requires_grad for x in (*args, *self._parameters))

    @final
    def run(self, args: Sequence[object]) -> Any:
        """Run the graph on the inputs, one for each placeholder."""
        env: dict[fx.Node, Any] = dict(zip(self.placeholders, args, strict=True))
        for index, item in enumerate(self.items):
            if isinstance(item, fx.Node):
                env[item] = self._call(item, env)
            elif not item.run(env):
                for operation in item.operations:
                    env[operation.node] = self._call(operation.node, env)
            for node in self.last[index]:
                env.pop(node, None)
        return fx.node.map_arg(self.output.args[0], env.__getitem__)

    @final
    def _call(self, node: fx.Node, env: Mapping[fx.Node, Any]) -> Any:
        """Run one node by torch."""
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
        return getattr(self.by_torch, node.op)(node.target, args, kwargs)


_GLOBAL_HOOKS = (
    nn.modules.module._global_forward_hooks,
    nn.modules.module._global_forward_pre_hooks,
)


def _modules(gm: fx.GraphModule, nodes: Iterable[fx.Node]) -> list[nn.Module]:
    """Return the modules that nodes call, with all inside them, each once."""
    found = {id(m): m for node in nodes for m in gm.get_submodule(str(node.target)).modules()}
    return list(found.values())


def _tensors(module: nn.Module) -> list[Tensor]:
    return [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]


def _places(gm: fx.GraphModule, paths: Iterable[str]) -> Iterator[tuple[Mapping[str, Any], str, object]]:
    """Yield where each module stands, all the way down from the graph."""
    for path in paths:
        home: nn.Module = gm
        for part in path.split("."):
            yield home._modules, part, home._modules[part]
            home = home.get_submodule(part)


_FIELDS: dict[type[nn.Module], tuple[str, ...]] = {
    PackedLayer: ("geometry", "exactness", "minimum", "maximum", "reader", "crop", "padding_mode", "dtype"),
    PackActivation: ("terms", "low", "step", "inverse_step", "groups", "rows", "route"),
    Branches: ("hands_on",),
    fx.GraphModule: ("_graph", "_code"),
    nn.Conv2d: ("stride", "padding", "dilation", "groups", "padding_mode"),
    nn.modules.pooling._MaxPoolNd: ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    nn.AvgPool2d: ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    nn.Dropout: ("training",),
    nn.BatchNorm2d: ("training", "eps"),
    nn.Hardtanh: ("min_val", "max_val"),
    nn.AdaptiveAvgPool2d: ("output_size",),
    nn.Flatten: ("start_dim", "end_dim"),
    nn.Module: ("inplace", "forward"),
}


def _attributes(module: nn.Module) -> Iterator[tuple[Mapping[str, Any], str, object]]:
    """Yield where each tensor and each number stands that a schedule was made from."""
    for home in (module._parameters, module._buffers, module._modules):
        for key, held in home.items():
            yield home, key, held
    for kind, names in _FIELDS.items():
        if isinstance(module, kind):
            for name in names:
                yield module.__dict__, name, module.__dict__.get(name, _ABSENT)


def _last_uses(items: Sequence[Item | fx.Node], output: fx.Node) -> list[tuple[fx.Node, ...]]:
    """Return for each item the nodes whose values nothing reads after it."""
    seen = set(output.all_input_nodes)
    found: list[tuple[fx.Node, ...]] = []
    for item in reversed(items):
        touched = (item, *item.all_input_nodes) if isinstance(item, fx.Node) else (*item.inputs, *item.outputs)
        found.append(tuple(node for node in touched if node not in seen))
        seen.update(touched)
    return found[::-1]
