"""Schedules of packed graphs: stretches whose every node has a kernel run as one native call, the rest by torch.

`ScheduledGraph` is the class of a packed graph: a call plans one schedule for each stretch and each combination of
sizes that it meets, and runs them in order. A packed layer gives the same bits as when it is called by itself, because
the same kernels run; a float layer sums in another order than torch does. Where torch has to see every operation
(tracing, gradients, hooks), the graph runs node by node as any other. On a GPU there are no schedules: epilogues take
in what follows them, see `binarize.passes.finish`.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from binarize.errors import ModelError
from binarize.kernels.schedule import why_not_compiled
from binarize.layers.packed import PackedLayer
from binarize.passes.emit import Operation
from binarize.passes.finish import FinishRunner
from binarize.passes.match import operation_of
from binarize.passes.runner import Item, Runner
from binarize.passes.stretch import Stretch

__all__ = ["Coverage", "ScheduledGraph", "coverage", "schedule", "why_not"]

_VARIABLE = "BINARIZE_SCHEDULE"


@final
class StretchRunner(Runner):
    """A graph cut into stretches and single nodes."""

    device = "cpu"

    @staticmethod
    def missing() -> str | None:
        """Return why no native call runs here, or None."""
        return why_not_compiled()

    def _cut(self) -> Iterator[Item | fx.Node]:
        run: list[Operation] = []
        rest: list[Item | fx.Node] = []
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
    def _stretch(run: Sequence[Operation]) -> list[Item | fx.Node]:
        if not run:
            return []
        inside = {operation.node for operation in run}
        live = {node for node in inside if any(user not in inside for user in node.users)}
        return [Stretch(run, live)]


def why_not(kind: type[Runner] = StretchRunner) -> str | None:
    """Return why nothing is scheduled here, or None.

    Raises:
        ModelError: ``BINARIZE_SCHEDULE`` says something else than on or off.
    """
    asked = os.environ.get(_VARIABLE) or "on"
    if asked not in ("on", "off"):
        raise ModelError(f"cannot run a packed network: {_VARIABLE} is {asked!r}; set it to on or off")
    return f"{_VARIABLE}=off" if asked == "off" else kind.missing()


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
        on_gpu = any(isinstance(x, Tensor) and x.is_cuda for x in args)
        runner = runner_of(self, FinishRunner if on_gpu else StretchRunner)
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
        or torch.is_autocast_enabled("cuda")
    )


def runner_of(gm: fx.GraphModule, kind: type[Runner] = StretchRunner) -> Runner | None:
    """Return the runner of a graph, made anew where something has changed, or None where nothing is scheduled."""
    if why_not(kind) is not None:
        return None
    known = gm.__dict__.get("_runner")
    if isinstance(known, kind) and known.gm is gm:
        if known.is_current():
            return known
        for module in gm.modules():
            if isinstance(module, PackedLayer):
                module._forget()
    made = kind(gm)
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
        runner = StretchRunner(module)
        found = [item for item in runner.items if isinstance(item, Stretch)]
        stretches += len(found)
        operations = [operation for item in found for operation in item.operations]
        scheduled += sum(operation.count for operation in operations)
        inner += [f"{path}.{o.node.target}." if path else f"{o.node.target}." for o in operations if o.count > 1]
        left.update({f"{path}.{name}" if path else name: why for name, why in runner.reasons.items()})
    if reason is None and not any(isinstance(module, ScheduledGraph) for module in net.modules()):
        reason = "the network is not packed, or could not be traced"
    return Coverage(scheduled, stretches, left, reason)
