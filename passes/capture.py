"""Capture: a model becomes graphs of module calls, whole where it can be traced and by its widest parts where not."""

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, final

import torch
from torch import fx, nn

from binarize.errors import CaptureError, nearest
from binarize.passes.callers import why_not_replaceable
from binarize.passes.graph import erase_dead, join
from binarize.passes.inplace import AUGMENTED, thread_inplace

__all__ = ["WEIGHTED", "Captured", "capture"]

# Layers that multiply by a weight. Embeddings look up and norms scale: neither has a product to binarise.
WEIGHTED: tuple[type[nn.Module], ...] = (
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.Bilinear,
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.RNNCellBase,
)

# Kept whole wherever they are defined: a subclass of a layer outside torch.nn would be traced through and lost to
# every pass, and so would these of torchvision, known by name because importing it is slow.
_LEAVES = (*WEIGHTED, nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
_LEAF_NAMES = {"FrozenBatchNorm2d", "StochasticDepth"}


@final
@dataclass
class Captured:
    """A model as graphs.

    Args:
        root: The whole model, runnable, its traceable parts replaced by their graphs.
        graphs: Each graph by its path in ``root``; ``""`` if the model was traced whole.
        loose: Layers that untraceable code calls, by path; also modules kept whole, such as a TransformerEncoderLayer.
        reasons: Why a module could not be traced, by path.
        layers: Every weighted layer that the model had, called or not, by path, in the model's own order.
    """

    root: nn.Module
    graphs: dict[str, fx.GraphModule] = field(default_factory=dict)
    loose: dict[str, nn.Module] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    layers: dict[str, nn.Module] = field(default_factory=dict)


def capture(model: nn.Module, *, leaves: Sequence[str] = ()) -> Captured:
    """Turn ``model`` into graphs. The object is used up: pass a copy if the original is still needed.

    Tracing is done as in evaluation, where auxiliary heads are silent; training flags are restored afterwards. A
    parameter of forward whose default is None, a bool or a string is fixed to it.

    Args:
        model: Any module. A GraphModule is taken as it is.
        leaves: Shell patterns of the paths of modules to keep whole.

    Raises:
        CaptureError: The model is itself a single layer, or a pattern matches no module.
    """
    for pattern in leaves:
        _check_pattern(model, pattern)
    if isinstance(model, WEIGHTED):
        raise CaptureError(
            f"cannot capture a model that is itself one {type(model).__name__}; wrap it: nn.Sequential(model)"
        )
    layers = {path: module for path, module in model.named_modules() if isinstance(module, WEIGHTED)}
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        walk = _Walk(Captured(model, layers=layers), leaves, training)
        walk.captured.root = walk(model, "", None)
    finally:
        for module, flag in training.items():
            module.training = flag
    return walk.captured


def _check_pattern(model: nn.Module, pattern: str) -> None:
    paths = [path for path, _ in model.named_modules()]
    if not any(fnmatchcase(path, pattern) for path in paths):
        raise CaptureError(f"cannot keep {pattern!r} whole: no module has such a path{nearest(pattern, paths)}")


@final
class _Walk:
    """One descent through a model: trace what can be traced, look inside what cannot."""

    def __init__(self, captured: Captured, leaves: Sequence[str], training: Mapping[nn.Module, bool]) -> None:
        self.captured = captured
        self.leaves = leaves
        self.training = training
        self.done: dict[nn.Module, nn.Module] = {}

    def __call__(self, module: nn.Module, path: str, refusal: str | None) -> nn.Module:
        """Return what should stand at ``path``: a graph, or ``module`` with its children replaced."""
        if module not in self.done:
            self.done[module] = self._replacement(module, path, refusal)
        return self.done[module]

    def _replacement(self, module: nn.Module, path: str, refusal: str | None) -> nn.Module:
        if isinstance(module, WEIGHTED):
            return self._keep(module, path)
        # without a weight, a trace could only freeze the module's Python
        if not any(isinstance(inner, WEIGHTED) for inner in module.modules()):
            return module
        if path and not _is_container(module) and _Tracer(path, self.leaves).is_leaf_module(module, ""):
            return self._keep(module, path)
        graph = self._graph(module, path, refusal)
        if graph is not None:
            self.captured.graphs[path] = graph
            return graph
        for name, child in list(module.named_children()):
            setattr(module, name, self(child, join(path, name), why_not_replaceable(module, name, child)))
        return module

    def _keep(self, module: nn.Module, path: str) -> nn.Module:
        self.captured.loose[path] = module
        return module

    def _graph(self, module: nn.Module, path: str, refusal: str | None) -> fx.GraphModule | None:
        if _is_container(module):
            return None
        if refusal is not None:
            self.captured.reasons[path] = refusal
            return None
        # create_feature_extractor makes a GraphModule that trades its graph in train(): that one is traced again
        if isinstance(module, fx.GraphModule) and type(module).train is nn.Module.train:
            return _tidy(module)
        before = {inner: dict(vars(inner)) for inner in module.modules()}
        try:
            gm = _trace(module, path, self.leaves)
        except Exception as error:  # a forward may raise anything when it is given proxies
            self.captured.reasons[path] = _explain(error)
            return None
        finally:
            # a forward that remembers its input, as torchvision's RoI pooling does, would now remember a proxy
            for inner, attributes in before.items():
                vars(inner).clear()
                vars(inner).update(attributes)
        self._restore(module, path, gm)
        return gm

    def _restore(self, module: nn.Module, path: str, gm: fx.GraphModule) -> None:
        """Give the graph what its module had: plain attributes that callers read, training flags, where it is from."""
        plain = {
            name: value
            for name, value in vars(module).items()
            if not name.startswith("_") and name not in vars(gm) and not isinstance(value, fx.Proxy)
        }
        for name, value in plain.items():
            setattr(gm, name, value)
        gm.meta["_user_preserved_attributes"] = plain  # torch.fx: a deep copy, as `pack` makes one, loses others
        gm.meta["path"] = path
        gm.meta["source"] = f"{type(module).__module__}.{type(module).__qualname__}"
        for name, inner in gm.named_modules():
            if inner not in self.training:
                inner.training = self.training.get(_descend(module, name), self.training[module])


def _is_container(module: nn.Module) -> bool:
    """Return whether ``module`` has no forward of its own: a list or a dict, whose items are called one by one."""
    return type(module).forward is nn.Module.forward


def _descend(module: nn.Module, path: str) -> nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return module


class _Proxy(fx.Proxy):
    """A proxy that tells ``x += y`` from ``x = x + y``; torch's own records both as the latter."""


def _augmented(function: Callable[[Any, Any], Any]) -> Callable[[_Proxy, object], fx.Proxy]:
    return lambda proxy, other: proxy.tracer.create_proxy("call_function", function, (proxy, other), {})


for _name, (_function, _) in AUGMENTED.items():
    setattr(_Proxy, _name, _augmented(_function))


@final
class _Tracer(fx.Tracer):
    """Traces down to layers, however they are spelt, and fixes parameters that are switches."""

    def __init__(self, path: str, leaves: Sequence[str], fix: bool = True) -> None:
        super().__init__()
        self.path = path
        self.leaves = leaves
        self.fix = fix
        self.fixed: dict[fx.Node, Any] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether ``m`` is called as a whole instead of being traced through."""
        if isinstance(m, _LEAVES) or type(m).__name__ in _LEAF_NAMES:
            return True
        path = join(self.path, module_qualified_name)
        return any(fnmatchcase(path, leaf) for leaf in self.leaves) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return what stands for the value of ``node`` while tracing."""
        return _Proxy(node, self)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Return forward and its proxies, with the default in place of a proxy for each switch."""
        call, arguments = super().create_args_for_root(root_fn, is_module, concrete_args)
        for index, argument in enumerate(arguments):
            if self.fix and isinstance(argument, fx.Proxy) and _is_switch(argument.node):
                self.fixed[argument.node] = arguments[index] = argument.node.args[0]
        return call, arguments


def _is_switch(node: fx.Node) -> bool:
    default = node.args[0] if node.args else ...
    return node.op == "placeholder" and (default is None or isinstance(default, (bool, str)))


def require_default(value: Any, default: Any, name: str) -> None:
    """Raise CaptureError unless a parameter that was fixed during capture has the value it was fixed to."""
    if value is not default and value != default:
        raise CaptureError(f"cannot run with {name}={value!r}: the model was captured with {name}={default!r}")


def _trace(module: nn.Module, path: str, leaves: Sequence[str]) -> fx.GraphModule:
    tracer = _Tracer(path, leaves)
    try:
        graph = tracer.trace(module)
    except Exception:
        if not tracer.fixed:
            raise
        # forward needs what it could be called without
        tracer = _Tracer(path, leaves, fix=False)
        graph = tracer.trace(module)
    _settle_switches(graph, tracer.fixed, whole=not path)
    graph._tracer_cls = fx.Tracer  # what a pickle of the graph is traced with again
    return _tidy(fx.GraphModule(tracer.root, graph, type(module).__name__))


def _tidy(gm: fx.GraphModule) -> fx.GraphModule:
    """Leave out what nobody reads, and show what is overwritten."""
    thread_inplace(gm)
    erase_dead(gm)
    gm.recompile()
    return gm


def _settle_switches(graph: fx.Graph, fixed: Mapping[fx.Node, Any], whole: bool) -> None:
    """Drop the fixed parameters of a whole model; a part keeps them, because its caller may pass them."""
    first = next((node for node in graph.nodes if node.op != "placeholder"), None)
    for node, default in fixed.items():
        if whole:
            graph.erase_node(node)
        elif first is not None:
            with graph.inserting_before(first):
                graph.call_function(require_default, (node, default, str(node.target)))


def _explain(error: Exception) -> str:
    """Return the error in one line, with the line of the model's code that raised it, if there is one."""
    frames = traceback.extract_tb(error.__traceback__)
    library = str(Path(torch.__file__).parent / "_")[:-1]
    outside = [frame for frame in frames if not frame.filename.startswith((library, __file__, "<"))]
    where = f"{Path(outside[-1].filename).name}:{outside[-1].lineno}: " if outside else ""
    first_sentence = str(error).strip().split("\n")[0].split(". ")[0]
    return f"{where}{type(error).__name__}: {first_sentence}".removesuffix(": ")
