"""`convert`: a trained model in, the same network made of binary planes out, in training form."""

import copy
import dataclasses
import fnmatch
import platform
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from binarize.calibrate import CalibrationSettings, calibrate
from binarize.calibration.prepared import ImageStatistics, compare_prepared
from binarize.cost import example_arguments
from binarize.data import calibration_batches, random_images
from binarize.errors import ModelError, NothingConvertedError, RecipeError, nearest
from binarize.layers.binary import BinaryLayer
from binarize.layers.merged import allow
from binarize.layers.packed import PackedLayer
from binarize.passes.attention import open_attention
from binarize.passes.capture import Captured, capture
from binarize.passes.decompose_groups import DecomposeGroups
from binarize.passes.decompose_layers import DecomposeLayers, decompose
from binarize.passes.graph import join, put
from binarize.passes.select import Rules, Site, sites, why_not
from binarize.recipe import FULL_PRECISION, Recipe
from binarize.record import GroupRecord, LayerRecord, Record, attach_record
from binarize.schemes.presets import Scheme, build_scheme
from binarize.schemes.structures import Groupwise
from binarize.sources import require_finite

__all__ = ["Progress", "convert", "plan"]

SHOWN = 8
TRIED = (3, 128, 160)  # of an image that a model is tried on

Progress = Callable[[str, int, int], None]
"""Called with the stage's name, steps done and steps in all."""


@final
@dataclasses.dataclass(frozen=True)
class _Plan:
    """The scheme of each layer that is converted and the reason of each that is not, in the model's order.

    Groups are filled in when they have become branches.
    """

    schemes: Mapping[str, Scheme]
    layers: tuple[LayerRecord, ...]
    groups: tuple[GroupRecord, ...] = ()


@torch.no_grad()
def convert(
    model: nn.Module,
    example_inputs: Any = None,
    scheme: str | None = None,
    *,
    recipe: Recipe | None = None,
    data: Iterable[Any] | None = None,
    source: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> nn.Module:
    """Rewrite a trained network into binary planes and calibrate it against the original, without labels.

    Args:
        model: the trained network; it is copied, never changed.
        example_inputs: a batch ``(n, c, h, w)``, or the tuple of arguments of ``forward``. Used for calibration where
            there is no ``data``.
        scheme: such as ``encoding:w=4,a=4`` (the default) or ``xnor-net``; shorthand for ``Recipe(scheme=...)``.
        recipe: what to convert and how, layer by layer.
        data: batches of images, with or without labels, as a DataLoader gives them; the first ``recipe.samples`` are
            used.
        source: where the model came from, kept in the record.
        progress: called as the work goes on.

    Returns:
        The training form: an ordinary module in evaluation mode, ready for `pack` and `summary`.

    Raises:
        RecipeError: a scheme of the recipe names nothing that can be built, or a pattern matches no layer.
        ModelError: a weight is NaN or infinite, the model is converted already, or it does not run on the inputs.
        NothingConvertedError: no layer would have been converted; holds the reason of each.
    """
    recipe = recipe or Recipe()
    if scheme is not None:
        recipe = dataclasses.replace(recipe, scheme=scheme)
    default = build_scheme(recipe.scheme)
    _require_unconverted(model)
    require_finite(model)
    in_training = any(module.training for module in model.modules())
    teacher = copy.deepcopy(model).eval() if in_training or _has_attention(model) else model
    open_attention(teacher)
    inputs = _calibration_inputs(recipe, example_inputs, data)
    levels = _levels(teacher, inputs[0])
    seen = {} if data is None else _seen(teacher, inputs)
    captured = capture(copy.deepcopy(teacher))
    planned = _plan(captured, recipe, default, levels)
    if not planned.schemes:
        raise NothingConvertedError({layer.name: str(layer.reason) for layer in planned.layers})
    planned = _decompose_groups(captured, planned)
    _decompose_layers(captured, planned)
    net = captured.root
    torch.manual_seed(recipe.seed)
    settings = CalibrationSettings(reconstruct=recipe.reconstruct, seed=recipe.seed)
    try:
        found = calibrate(net, teacher, inputs, settings=settings, progress=progress)
    except (RuntimeError, TypeError, ValueError) as cause:
        _blame_inputs(teacher, inputs, cause)
        raise
    record = _record(captured, planned, recipe, inputs, dict(source or {}), {**found.to_dict(), **seen})
    attach_record(net, record)
    allow(net, recipe.exactness)
    return net.eval()


def _seen(teacher: nn.Module, inputs: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
    """Return what the record keeps of how the images of calibration are prepared."""
    found = {"prepared": compare_prepared(teacher, inputs), "images": ImageStatistics.of(inputs)}
    return {name: dataclasses.asdict(value) for name, value in found.items() if value is not None}


def _require_unconverted(model: nn.Module) -> None:
    if any(isinstance(module, BinaryLayer | PackedLayer) for module in model.modules()):
        raise ModelError(f"cannot convert {type(model).__name__}: it is already converted; give the original model")


def plan(model: nn.Module, recipe: Recipe | None = None) -> Record:
    """Return the record that `convert` would make, without converting. ``model`` is left as it is.

    A model that is captured by parts is run once on noise, to see which layers several maps share.

    Raises:
        RecipeError: the scheme or a layer's scheme names nothing that can be built, or a pattern matches no layer.
    """
    recipe = recipe or Recipe()
    default = build_scheme(recipe.scheme)
    opened = copy.deepcopy(model).eval()
    open_attention(opened)
    captured = capture(opened)
    planned = _plan(captured, recipe, default, {} if "" in captured.graphs else _levels_on_noise(model))
    if any(isinstance(scheme.structure, Groupwise) for scheme in planned.schemes.values()):
        captured.root.to("meta")  # copies of what holds no numbers cost nothing
        planned = _decompose_groups(captured, planned)
    return Record(recipe, planned.layers, planned.groups, tuple(captured.graphs), dict(captured.reasons))


def _calibration_inputs(recipe: Recipe, example: Any, data: Iterable[Any] | None) -> list[tuple[Any, ...]]:
    """Return the argument tuples to calibrate on: data, else the example, else noise with a warning."""
    if data is not None:
        return [(batch,) for batch in calibration_batches(data, recipe.samples)]
    if example is None:
        warnings.warn(
            "calibrating on noise: without data the activation ranges, and so the accuracy, mean nothing", stacklevel=3
        )
        return [(random_images((3, 224, 224), 8, recipe.seed),)]
    return [example if isinstance(example, tuple) else (example,)]


def _has_attention(model: nn.Module) -> bool:
    return any(isinstance(module, nn.MultiheadAttention) for module in model.modules())


def _levels(model: nn.Module, arguments: tuple[Any, ...]) -> dict[str, int]:
    """Return of how many sizes the maps are that go through each convolution in one pass, by its path."""
    seen: dict[str, set[torch.Size]] = {}

    def noting(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                seen.setdefault(name, set()).add(args[0].shape[2:])

        return note

    convolutions = ((n, m) for n, m in model.named_modules() if isinstance(m, nn.modules.conv._ConvNd))
    handles = [module.register_forward_pre_hook(noting(name)) for name, module in convolutions]
    try:
        model(*(x[:1] if isinstance(x, Tensor | list) else x for x in arguments))
    except (RuntimeError, TypeError, ValueError, IndexError) as cause:
        _blame_inputs(model, [arguments], cause)
    finally:
        for handle in handles:
            handle.remove()
    return {name: len(sizes) for name, sizes in seen.items()}


@torch.no_grad()
def _levels_on_noise(model: nn.Module) -> dict[str, int]:
    in_training = any(module.training for module in model.modules())
    judged = copy.deepcopy(model).eval() if in_training else model
    try:
        return _levels(judged, example_arguments(judged, random_images(TRIED, 1)))
    except ModelError:
        return {}


def _plan(captured: Captured, recipe: Recipe, default: Scheme, levels: Mapping[str, int]) -> _Plan:
    schemes: dict[str, Scheme] = {}
    layers: list[LayerRecord] = []
    found = sites(captured)
    _require_matches(recipe, [site.name for site in found])
    for site in found:
        site = dataclasses.replace(site, levels=levels.get(site.name, 1))
        at_end = _takes_ends(site, recipe)
        rules = _rules(site.name, recipe)
        reason = why_not(site, dataclasses.replace(rules, first=False, last=False, smallest=0) if at_end else rules)
        if reason is None:
            schemes[site.name] = _scheme_of(site, recipe, build_scheme(recipe.ends) if at_end else default)
        spec = None if reason is not None else schemes[site.name].spec
        weights = sum(p.numel() for key, p in site.module.named_parameters(recurse=False) if "bias" not in key)
        layers.append(LayerRecord(site.name, type(site.module).__name__, weights, spec, reason))
    return _Plan(schemes, tuple(layers))


def _takes_ends(site: Site, recipe: Recipe) -> bool:
    """Whether the layer has the scheme of the first and last ones instead of staying in full precision."""
    if recipe.ends == FULL_PRECISION or any(fnmatch.fnmatchcase(site.name, pattern) for pattern in recipe.convert):
        return False
    return (site.first and recipe.keep_first) or (site.last and recipe.keep_last)


def _require_matches(recipe: Recipe, names: Sequence[str]) -> None:
    """Raise `RecipeError` for a pattern that matches no layer: it was meant for one."""
    for where in ("keep", "convert", "layers"):
        for pattern in getattr(recipe, where):
            if names and not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                more = ", ..." if len(names) > SHOWN else ""
                layers = f"{', '.join(names[:SHOWN])}{more}"
                what = f"cannot use the pattern {pattern!r} of {where!r}: it matches no layer"
                raise RecipeError(f"{what}{nearest(pattern, names)}; the layers are {layers}")


def _rules(name: str, recipe: Recipe) -> Rules:
    """Return the rules for one layer; of the patterns with a scheme or "fp" the first that matches counts."""
    pattern = _pattern_of(name, recipe)
    named = () if pattern is None else (pattern,)
    keeps = pattern is not None and recipe.layers[pattern] == FULL_PRECISION
    return Rules(
        keep=(*recipe.keep, *(named if keeps else ())), convert=(*recipe.convert, *(() if keeps else named)),
        first=recipe.keep_first, last=recipe.keep_last, depthwise=recipe.keep_depthwise, shared=recipe.keep_shared,
        smallest=recipe.smallest,
    )  # fmt: skip


def _scheme_of(site: Site, recipe: Recipe, default: Scheme) -> Scheme:
    pattern = _pattern_of(site.name, recipe)
    return default if pattern is None else build_scheme(recipe.layers[pattern])


def _pattern_of(name: str, recipe: Recipe) -> str | None:
    return next((pattern for pattern in recipe.layers if fnmatch.fnmatchcase(name, pattern)), None)


def _decompose_groups(captured: Captured, planned: _Plan) -> _Plan:
    """Make branches of the groups whose layers have a group-wise scheme; return the plan with what became of each.

    Layers whose group could not become branches get as many planes on their own as they would have had branches.
    """
    groups: list[GroupRecord] = []
    home: dict[str, str] = {}
    for path, gm in captured.graphs.items():
        prefix = f"{path}." if path else ""
        inside = {name[len(prefix) :]: made for name, made in planned.schemes.items() if name.startswith(prefix)}
        step = DecomposeGroups(inside)
        result = step(gm)
        for made in step.made:
            name, place = prefix + made.name, join(path, made.branches)
            groups.append(GroupRecord(name, made.kind, place, made.executed, made.stored, made.gate))
            home |= dict.fromkeys((join(path, layer) for layer in made.layers), name)
        groups += [GroupRecord(prefix + name, "", reason=why) for name, why in result.skipped.items()]
    groups += [
        GroupRecord(name, "", reason="called by code that could not be traced")
        for name, scheme in planned.schemes.items()
        if isinstance(scheme.structure, Groupwise) and name in captured.loose
    ]
    schemes = {name: made if name in home else _alone(made) for name, made in planned.schemes.items()}
    layers = tuple(
        dataclasses.replace(layer, group=home.get(layer.name), scheme=layer.scheme and schemes[layer.name].spec)
        for layer in planned.layers
    )
    return _Plan(schemes, layers, tuple(groups))


def _alone(scheme: Scheme) -> Scheme:
    """Return the scheme of a layer outside all branches: as many products, layer by layer."""
    if not isinstance(scheme.structure, Groupwise):
        return scheme
    return build_scheme(f"group-net:k={scheme.structure.executed},unit=layer")


def _decompose_layers(captured: Captured, planned: _Plan) -> None:
    """Swap the planned layers that are in no branch: graph by graph, then those that untraceable code calls."""
    grouped = {layer.name for layer in planned.layers if layer.group is not None}
    left = {name: made for name, made in planned.schemes.items() if name not in grouped}
    placed: set[str] = set()
    for path, gm in captured.graphs.items():
        prefix = f"{path}." if path else ""
        inside = {name[len(prefix) :]: made for name, made in left.items() if name.startswith(prefix)}
        placed.update(prefix + name for name in DecomposeLayers(inside)(gm).changed)
    for name in left.keys() - placed:
        put(captured.root, name, decompose(captured.root.get_submodule(name), left[name]))


def _blame_inputs(teacher: nn.Module, inputs: Sequence[tuple[Any, ...]], cause: Exception) -> None:
    """Raise ModelError if the original model does not run on the inputs either."""
    try:
        teacher(*inputs[0])
    except Exception as error:
        first = (x[0] if isinstance(x, list) and x else x for x in inputs[0])
        shapes = ", ".join(str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in first)
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        what = f"cannot run {type(teacher).__name__} on inputs of shape {shapes}: {said}"
        raise ModelError(f"{what}; give {_fitting(teacher, inputs[0][0])}") from cause


def _fitting(model: nn.Module, images: Any) -> str:
    """Return which inputs a model takes, as far as its first convolution tells."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None or not isinstance(images, Tensor) or images.dim() != 4 or images.shape[1] == first.in_channels:
        return "the shape it was made for"
    return f"images of {first.in_channels} channels"


def _record(
    captured: Captured,
    planned: _Plan,
    recipe: Recipe,
    inputs: Sequence[tuple[Any, ...]],
    source: dict[str, Any],
    calibration: dict[str, Any],
) -> Record:
    first = inputs[0][0]
    images = first[:1] if isinstance(first, Tensor | list) else []
    shape = tuple(images[0].shape) if len(images) and isinstance(images[0], Tensor) else None
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    return Record(
        recipe=recipe, layers=planned.layers, groups=planned.groups, parts=tuple(captured.graphs),
        uncaptured=dict(captured.reasons), input_shape=shape, source={**source, "versions": versions},
        calibration=calibration,
    )  # fmt: skip
