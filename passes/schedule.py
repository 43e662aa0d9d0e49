"""Schedules of packed graphs: stretches whose every node has a kernel run as one native call, the rest by torch.

`ScheduledGraph` is the class of a packed graph: a call plans one schedule for each stretch and each combination of
sizes that it meets, and runs them in order. A packed layer gives the same bits as when it is called by itself, because
the same kernels run; a float layer sums in another order than torch does. Where torch has to see every operation
(tracing, gradients, hooks, another device), the graph runs node by node as any other.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from binarize.kernels.schedule import why_not_compiled
from binarize.layers.branches import Branches
from binarize.layers.packed import PackActivation, PackedLayer
from binarize.passes.emit import Operation
from binarize.passes.lists import Interpreter
from binarize.passes.match import operation_of
from binarize.passes.stretch import Stretch

__all__ = ["Coverage", "ScheduledGraph", "coverage", "schedule", "why_not"]

_VARIABLE = "BINARIZE_SCHEDULE"


def why_not() -> str | None:
    """Return why nothing is scheduled here, or None."""
    if os.environ.get(_VARIABLE) == "off":
        return f"{_VARIABLE}=off"
    return why_not_compiled()


def _is_elsewhere(x: object) -> bool:
    """Whether ``x`` is on another device, or stands for a tensor (a subclass, what `torch.fx` traces with)."""
    if isinstance(x, Tensor):
        return x.device.type != "cpu" or type(x) not in (Tensor, nn.Parameter)
    return isinstance(x, fx.Proxy)


_ABSENT = object()


@final
class Runner:
    """A graph cut into stretches and single nodes, and the facts under which it was cut so."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm, self.graph, self.by_torch = gm, gm.graph, Interpreter(gm)
        self.reasons: dict[str, str] = {}
        self.items = tuple(self._cut())
        self.placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
        self.output = next(iter(reversed(gm.graph.nodes)))
        self.last = _last_uses(self.items, self.output)
        self._learn()

    def __deepcopy__(self, memo: object) -> None:
        """A copy of a graph makes its own."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Files hold none."""
        return type(None), ()

    def _cut(self) -> Iterator[Stretch | fx.Node]:
        run: list[Operation] = []
        rest: list[Stretch | fx.Node] = []
        for node in self.gm.graph.nodes:
            if node.op in ("placeholder", "output"):
                continue
            found = "a constant" if node.op == "get_attr" else operation_of(self.gm, node)
            if isinstance(found, Operation):
                run.append(found)
                continue
            if node.op != "get_attr":
                self.reasons[node.name] = found
            rest += [*self._stretch(run), node]
            run = []
        return iter([*rest, *self._stretch(run)])

    @staticmethod
    def _stretch(run: Sequence[Operation]) -> list[Stretch | fx.Node]:
        if not run:
            return []
        inside = {operation.node for operation in run}
        live = {node for node in inside if any(user not in inside for user in node.users)}
        return [Stretch(run, live)]

    def _learn(self) -> None:
        modules = {id(m): m for path in self._paths() for m in self.gm.get_submodule(path).modules()}
        self._same = [*_places(self.gm, self._paths())]
        tensors: list[Tensor] = []
        self._hooks: list[Mapping[Any, Any]] = list(_GLOBAL_HOOKS)
        for module in modules.values():
            self._same += _attributes(module)
            tensors += [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
            self._hooks += [module._forward_hooks, module._forward_pre_hooks]
        self._hooks += [self.gm._forward_hooks, self.gm._forward_pre_hooks]
        self._parameters = [t for t in tensors if isinstance(t, nn.Parameter)]
        self._versions = [(t, t._version) for t in tensors if not t.is_inference()]  # those of inference have none

    def _paths(self) -> list[str]:
        nodes = (o.node for item in self.items if isinstance(item, Stretch) for o in item.operations)
        return list(dict.fromkeys(str(node.target) for node in nodes if node.op == "call_module"))

    def is_current(self) -> bool:
        """Whether graph, modules and weights are those that the schedules were made for."""
        if self.graph is not self.gm.graph:
            return False
        for home, key, held in self._same:
            if home.get(key, _ABSENT) is not held:
                return False
        return all(tensor._version == version for tensor, version in self._versions)

    def may_run(self, args: Sequence[object]) -> bool:
        """Whether nobody has to see single operations: no hooks, no gradients, no tensor that stands for another."""
        if any(self._hooks) or len(args) != len(self.placeholders) or any(map(_is_elsewhere, args)):
            return False
        if not torch.is_grad_enabled():
            return True
        return not any(isinstance(x, Tensor) and x.requires_grad for x in (*args, *self._parameters))

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

    def _call(self, node: fx.Node, env: Mapping[fx.Node, Any]) -> Any:
        """Run one node by torch."""
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
        return getattr(self.by_torch, node.op)(node.target, args, kwargs)


_GLOBAL_HOOKS = (
    nn.modules.module._global_forward_hooks,
    nn.modules.module._global_forward_pre_hooks,
)


def _places(gm: fx.GraphModule, paths: Iterable[str]) -> Iterator[tuple[Mapping[str, Any], str, object]]:
    """Yield where each module stands, all the way down from the graph."""
    for path in paths:
        home: nn.Module = gm
        for part in path.split("."):
            yield home._modules, part, home._modules[part]
            home = home.get_submodule(part)


_FIELDS: dict[type[nn.Module], tuple[str, ...]] = {
    PackedLayer: ("geometry", "exactness", "minimum", "maximum", "reader", "crop", "padding_mode"),
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


def _last_uses(items: Sequence[Stretch | fx.Node], output: fx.Node) -> list[tuple[fx.Node, ...]]:
    """Return for each item the nodes whose values nothing reads after it."""
    seen = set(output.all_input_nodes)
    found: list[tuple[fx.Node, ...]] = []
    for item in reversed(items):
        touched = (item, *item.all_input_nodes) if isinstance(item, fx.Node) else (*item.inputs, *item.outputs)
        found.append(tuple(node for node in touched if node not in seen))
        seen.update(touched)
    return found[::-1]


class ScheduledGraph(fx.GraphModule):
    """A packed graph that runs its schedules where it can; in every other way a graph as any other."""

    def __reduce__(self) -> tuple[Any, ...]:
        """A graph that is loaded again runs by schedules again."""
        return _scheduled, super().__reduce__()[:2]

    def recompile(self) -> Any:
        """See `torch.fx.GraphModule.recompile`: the graph has changed."""
        self.__dict__.pop("_runner", None)
        return super().recompile()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the schedules, or the graph node by node."""
        if kwargs or _is_observed():
            return super().__call__(*args, **kwargs)
        runner = runner_of(self)
        if runner is None or not runner.may_run(args):
            return super().__call__(*args, **kwargs)
        return runner.run(args)


def _scheduled(build: Callable[..., fx.GraphModule], arguments: tuple[Any, ...]) -> fx.GraphModule:
    gm = build(*arguments)
    schedule(gm)
    return gm


def _is_observed() -> bool:
    """Whether something records or rewrites the operations of torch: it has to see them all."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or _get_current_dispatch_mode() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.is_autocast_enabled("cpu")
    )


def runner_of(gm: fx.GraphModule) -> Runner | None:
    """Return the runner of a graph, made anew where something has changed, or None where nothing is scheduled."""
    if why_not() is not None:
        return None
    known = gm.__dict__.get("_runner")
    if isinstance(known, Runner) and known.gm is gm:
        if known.is_current():
            return known
        for module in gm.modules():
            if isinstance(module, PackedLayer):
                module._forget()
    made = Runner(gm)
    gm.__dict__["_runner"] = made
    return made


def schedule(net: nn.Module) -> None:
    """Let every graph of a packed network run by schedules, in place; the training form is left as it is."""
    if not any(isinstance(module, PackedLayer) for module in net.modules()):
        return
    for module in net.modules():
        if isinstance(module, fx.GraphModule) and not isinstance(module, ScheduledGraph):
            name = type(module).__name__
            module.__class__ = type(fx.GraphModule.__new__(ScheduledGraph))  # each graph has a class of its own
            type(module).__name__ = name
            module.recompile()


@final
@dataclasses.dataclass(frozen=True)
class Coverage:
    """How much of a network runs by schedules.

    Attributes:
        scheduled: nodes that have kernels.
        stretches: native calls they take.
        left: node that torch runs -> why.
        reason: why nothing is scheduled, or None.
    """

    scheduled: int
    stretches: int
    left: Mapping[str, str]
    reason: str | None = None


def coverage(net: nn.Module) -> Coverage:
    """Return how much of a packed network runs by schedules on this machine."""
    reason = why_not()
    scheduled = stretches = 0
    left: dict[str, str] = {}
    inner: list[str] = []  # graphs that a schedule of another runs
    for path, module in net.named_modules():
        if not isinstance(module, ScheduledGraph) or reason is not None or path.startswith(tuple(inner)):
            continue
        runner = Runner(module)
        found = [item for item in runner.items if isinstance(item, Stretch)]
        stretches += len(found)
        operations = [operation for item in found for operation in item.operations]
        scheduled += sum(operation.count for operation in operations)
        inner += [f"{path}.{o.node.target}." if path else f"{o.node.target}." for o in operations if o.count > 1]
        left.update({f"{path}.{name}" if path else name: why for name, why in runner.reasons.items()})
    if reason is None and not any(isinstance(module, ScheduledGraph) for module in net.modules()):
        reason = "the network is not packed, or could not be traced"
    return Coverage(scheduled, stretches, left, reason)
