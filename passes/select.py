"""Selection: where every weighted layer of a captured model stands, and why it stays in full precision."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from binarize.passes.capture import WEIGHTED, Captured
from binarize.passes.decompose_layers import CONVERTIBLE
from binarize.passes.graph import flowing, join, output_nodes
from binarize.passes.operations import module_of

__all__ = ["Rules", "Site", "sites", "why_not"]


@final
@dataclass(frozen=True)
class Rules:
    """Which layers stay in full precision. Patterns are shell patterns over full paths.

    Args:
        keep: Patterns of layers to keep, whatever else matches.
        convert: Patterns of layers to convert although a default below would keep them.
        first: Keep the layers that read the image.
        last: Keep the layers that give the predictions.
        depthwise: Keep convolutions of one input channel per output.
        shared: Keep layers that maps of several sizes go through in one pass.
        smallest: Keep layers of fewer weights than this.
    """

    keep: tuple[str, ...] = ()
    convert: tuple[str, ...] = ()
    first: bool = True
    last: bool = True
    depthwise: bool = True
    shared: bool = True
    smallest: int = 512


@final
@dataclass(frozen=True)
class Site:
    """One weighted layer and its place.

    Args:
        name: Path in the model.
        module: The layer.
        graph: Path of the graph that calls it; None if untraceable code does, or nobody.
        calls: How often its graph calls it; 1 if untraceable code does; 0 if nobody.
        first: It reads the image.
        last: It gives the predictions.
        levels: Of how many sizes the maps are that go through it in one pass, where that is known.
        blocked: Why nothing can take its place, whatever the rules say.
    """

    name: str
    module: nn.Module
    graph: str | None = None
    calls: int = 0
    first: bool = False
    last: bool = False
    levels: int = 1
    blocked: str | None = None


# Whether


def why_not(site: Site, rules: Rules) -> str | None:
    """Return why the layer stays in full precision, or None if it is to be converted."""
    why = site.blocked or _why_no_binary_form(site.module)
    if why is not None:
        return why
    for pattern in rules.keep:
        if fnmatchcase(site.name, pattern):
            return f"kept by recipe pattern {pattern!r}"
    if any(fnmatchcase(site.name, pattern) for pattern in rules.convert):
        return None
    return _why_kept(site, rules)


def _why_kept(site: Site, rules: Rules) -> str | None:
    if rules.first and site.first:
        return "first layer: reads the image"
    if rules.last and site.last:
        return "last layer: gives the predictions"
    if rules.shared and site.levels > 1:
        what = "one set of levels would have to fit the statistics of all"
        return f"shared: maps of {site.levels} sizes go through it, and {what}"
    module = site.module
    if rules.depthwise and isinstance(module, nn.modules.conv._ConvNd) and 1 < module.groups == module.in_channels:
        products = math.prod(module.kernel_size)
        return f"depthwise: 1 input channel per output, only {products} products to aggregate"
    weight = module.weight
    if isinstance(weight, nn.Parameter) and weight.numel() < rules.smallest:
        return f"tiny: {weight.numel()} weights, fewer than {rules.smallest}"
    return None


def _why_no_binary_form(module: nn.Module) -> str | None:
    base = next((kind for kind in CONVERTIBLE if isinstance(module, kind)), None)
    if base is None:
        return f"{_torch_name(module)}: no binary form"
    for method in ("forward", "_conv_forward", "__call__"):
        if getattr(type(module), method, None) is not getattr(base, method, None) or method in vars(module):
            return f"{method} is overridden by class {type(module).__name__}"
    if "weight" not in module._parameters:
        return "weight is a parametrization"
    assert isinstance(module.weight, Tensor)
    if nn.parameter.is_lazy(module.weight):
        return "weight is not initialised: run the model once before converting it"
    if not module.weight.is_floating_point():
        return f"weight is {str(module.weight.dtype).removeprefix('torch.')}, not real floating point"
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has forward hooks, which a replacement would lose"
    return None


def _torch_name(module: nn.Module) -> str:
    """Return the name of the torch class that ``module`` is, its own class added where that differs."""
    home = next(kind for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn.modules."))
    own = type(module).__name__
    return home.__name__ if own == home.__name__ else f"{home.__name__} (class {own})"


# Where


def sites(captured: Captured) -> list[Site]:
    """Return every weighted layer that the model had, in the model's own order, called or not."""
    places = _Places(captured)
    found = [places.site(name, module) for name, module in captured.layers.items()]
    return found if "" in captured.graphs else _ends_of_parts(found, captured)


@final
class _Places:
    """What the graphs of a captured model do with each weighted layer."""

    def __init__(self, captured: Captured) -> None:
        self.captured = captured
        self.callers: dict[nn.Module, list[str]] = {}
        self.first: set[nn.Module] = set()
        self.last: set[nn.Module] = set()
        self.readers: dict[str, str] = {}
        self.opaque: dict[str, nn.Module] = {path: module for path, module in captured.loose.items() if path}
        for path, gm in captured.graphs.items():
            self._read(path, gm)

    def _read(self, path: str, gm: fx.GraphModule) -> None:
        ends = _Ends(gm, whole=not path)
        for node in gm.graph.nodes:
            full = join(path, str(node.target))
            if node.op == "get_attr" and node.users:
                self.readers[full] = _describe(gm, next(iter(node.users)))
            module = module_of(gm, node)
            if module is None:
                continue
            self.opaque[full] = module
            if isinstance(module, WEIGHTED):
                self.callers.setdefault(module, []).append(path)
                self.first |= {module} if ends.is_first(node, module) else set()
                self.last |= {module} if ends.is_last(node) else set()

    def site(self, name: str, module: nn.Module) -> Site:
        callers = self.callers.get(module, [])
        loose = any(module is other for other in self.captured.loose.values())
        return Site(
            name=name,
            module=module,
            graph=callers[0] if callers else None,
            calls=len(callers) or int(loose),
            first=module in self.first,
            last=module in self.last,
            blocked=self._blocked(name, callers, loose),
        )

    def _blocked(self, name: str, callers: list[str], loose: bool) -> str | None:
        for attribute, reader in self.readers.items():
            if attribute.startswith(f"{name}."):
                return f"its {attribute.removeprefix(f'{name}.')} is read directly by {reader}"
        if len(set(callers)) + loose > 1:
            return f"shared between parts that were traced apart: {', '.join(map(repr, dict.fromkeys(callers)))}"
        if callers or loose:
            return None
        for path, module in self.opaque.items():
            if name.startswith(f"{path}."):
                return f"its weight is read directly by {_class_name(module)} {path!r}"
        return "never called in eval mode (aux head)"


def _class_name(module: nn.Module) -> str:
    kind = type(module)
    return f"nn.{kind.__name__}" if kind.__module__.startswith("torch.nn.") else kind.__name__


def _describe(gm: fx.GraphModule, node: fx.Node) -> str:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return f"{name} (get_attr)"


# First and last

_WEIGHTED_FUNCTIONS = {
    *(F.linear, F.bilinear, F.conv1d, F.conv2d, F.conv3d),
    *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.multi_head_attention_forward),
    *(torch.ops.aten.linear.default, torch.ops.aten.conv2d.default, torch.ops.aten.convolution.default),
}
_RESHAPES = {
    "flatten",
    "reshape",
    "view",
    "permute",
    "transpose",
    "contiguous",
    "mul",
    "getitem",
    "squeeze",
    "interpolate",
}

# An image has one to four channels: grey, colour, colour and depth or transparency.
_IMAGE_CHANNELS = 4

# Where no graph shows the way to the output, names do: what detection and flow models predict with is called so.
_PREDICTOR_WORDS = ("cls", "classif", "logit", "score", "pred", "bbox", "regress", "head")


@final
class _Ends:
    """Which weighted layers of one graph read its input, and which give its output, through no other such layer."""

    def __init__(self, gm: fx.GraphModule, whole: bool) -> None:
        self.whole = whole
        self.gm = gm
        self.data = flowing(gm)
        nodes = [node for node in gm.graph.nodes if node in self.data]
        self.after: set[fx.Node] = set()
        for node in nodes:
            if any(self._is_weighted(p) or p in self.after for p in node.all_input_nodes if p in self.data):
                self.after.add(node)
        self.before: set[fx.Node] = set()
        self.live = set(output_nodes(gm))
        for node in reversed(nodes):
            if any(self._is_weighted(u) or u in self.before for u in node.users if u in self.data):
                self.before.add(node)
            if any(u in self.live for u in node.users):
                self.live.add(node)
        self.reads_image = any(
            self.is_first(node, module) for node in nodes if isinstance(module := module_of(gm, node), WEIGHTED)
        )

    def is_first(self, node: fx.Node, module: nn.Module) -> bool:
        """Return whether a layer reads the graph's input; a part's input is an image if it has so few channels."""
        if node in self.after or node not in self.data:
            return False
        return self.whole or getattr(module, "in_channels", _IMAGE_CHANNELS + 1) <= _IMAGE_CHANNELS

    def is_last(self, node: fx.Node) -> bool:
        """Return whether a layer gives the output; in a part, if nothing but reshaping follows."""
        # features that a backbone hands on go out as they are, too
        if node in self.before or node not in self.live:
            return False
        return self.whole or (self._goes_out(node) and (not self.reads_image or _is_named_predictor(str(node.target))))

    def _goes_out(self, node: fx.Node) -> bool:
        """Return whether all uses of ``node`` lead to the output, with nothing but reshaping on the way."""
        return all(user.op == "output" or (self._reshapes(user) and self._goes_out(user)) for user in node.users)

    def _reshapes(self, node: fx.Node) -> bool:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        return node.op in ("call_function", "call_method") and name in _RESHAPES

    def _is_weighted(self, node: fx.Node) -> bool:
        return isinstance(module_of(self.gm, node), WEIGHTED) or node.target in _WEIGHTED_FUNCTIONS


def _ends_of_parts(found: list[Site], captured: Captured) -> list[Site]:
    """Mark the first and last layers of a model that was traced by parts, where no graph shows the way through."""
    marked = [_mark_loose(site, captured.loose) for site in found]
    usable = [index for index, site in enumerate(marked) if site.blocked is None]
    if usable and not any(site.first for site in marked):
        marked[usable[0]] = replace(marked[usable[0]], first=True)
    if usable and not any(site.last for site in marked):
        marked[usable[-1]] = replace(marked[usable[-1]], last=True)
    return marked


def _is_named_predictor(name: str) -> bool:
    return any(word in name.lower() for word in _PREDICTOR_WORDS)


def _mark_loose(site: Site, loose: Mapping[str, nn.Module]) -> Site:
    if site.name not in loose:
        return site
    reads_image = isinstance(site.module, nn.Conv2d) and site.module.in_channels <= _IMAGE_CHANNELS
    return replace(site, first=reads_image, last=_is_named_predictor(site.name))
