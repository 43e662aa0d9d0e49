"""Finds what builds an architecture: a torchvision name, `module:factory` or `path/to/file.py:factory`."""

import contextlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, final

from torch import nn

from binarize.errors import SourceError, nearest

__all__ = ["Builder", "find_builder", "importable", "pretrained", "torchvision_builder"]

PREFIX = "torchvision:"
# Their builders warn unless told whether to spend seconds on drawing initial weights.
SLOW_TO_INITIALISE = ("googlenet", "inception_v3")


@final
@dataclass(frozen=True)
class Builder:
    """An architecture: ``build(**options)`` makes a model with untrained weights.

    Attributes:
        name: Short name, of the network alone.
        arch: The name a user gives to ``--arch``.
        origin: "torchvision" or "factory".
        build: Takes options such as ``num_classes``; raises TypeError for one that it does not know.
        input_shape: ``(c, h, w)`` it was made for, where that is known.
    """

    name: str
    arch: str
    origin: str
    build: Callable[..., nn.Module]
    input_shape: tuple[int, ...] | None


def find_builder(arch: str) -> Builder:
    """Return the builder that ``arch`` names.

    Raises:
        SourceError: Nothing has that name; the nearest known one is suggested.
    """
    if arch.startswith(PREFIX):
        return torchvision_builder(arch.removeprefix(PREFIX))
    if ":" in arch:
        return _factory_builder(arch)
    return torchvision_builder(arch)


def torchvision_builder(name: str) -> Builder:
    """Return the builder of a network of `torchvision.models`, without weights.

    Raises:
        SourceError: torchvision has no network of that name, or it is an int8 one.
    """
    models = importlib.import_module("torchvision.models")
    if name.startswith("quantized_"):
        remedy = f"give {PREFIX}{name.removeprefix('quantized_')}"
        raise SourceError(f"cannot open {PREFIX}{name}: it is quantised to int8 already; {remedy}, the float network")
    if name.endswith(".py"):
        raise SourceError(f"cannot build a network by {name!r} alone: name the function in it, {name}:FUNCTION")
    known = [model for model in models.list_models() if not model.startswith("quantized_")]
    if name not in known:
        listing = "torchvision.models.list_models() lists them; for a network of your own give path/to/file.py:factory"
        raise SourceError(f"cannot find the architecture {name!r}{nearest(name, known)}; {listing}")
    function = models.get_model_builder(name)

    def build(*, initialise: bool = False, **options: Any) -> nn.Module:
        if "weights_backbone" in inspect.signature(function).parameters:
            options["weights_backbone"] = None  # its default downloads
        if name in SLOW_TO_INITIALISE:
            options["init_weights"] = initialise
        return _module(function(weights=None, **options), f"{PREFIX}{name}")

    return Builder(name, f"{PREFIX}{name}", "torchvision", build, _crop(models, name))


def pretrained(name: str, weights: str) -> nn.Module:
    """Return a torchvision network with its published weights, downloaded unless they are in torch's cache.

    Raises:
        SourceError: There are no such weights, or they could not be downloaded.
    """
    models = importlib.import_module("torchvision.models")
    known = models.get_model_weights(name).__members__
    if weights not in known:
        raise SourceError(
            f"cannot open {PREFIX}{name}@{weights}: its weights are called {', '.join(known) or 'nothing'}"
        )
    try:
        return _module(models.get_model(name, weights=known[weights]), f"{PREFIX}{name}")
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a bad checksum is a RuntimeError
        what = f"cannot download the weights {weights} of {PREFIX}{name}: {error}"
        raise SourceError(f"{what}; get the file elsewhere and give it with --arch {name}") from error


def _crop(models: ModuleType, name: str) -> tuple[int, ...] | None:
    members = models.get_model_weights(name).__members__
    if "DEFAULT" not in members:
        return None
    crop = getattr(members["DEFAULT"].transforms(), "crop_size", None)
    return (3, crop[0], crop[0]) if isinstance(crop, list) and len(crop) == 1 else None


def _factory_builder(arch: str) -> Builder:
    place, _, name = arch.rpartition(":")
    path = Path(place)
    is_file = place.endswith(".py")
    with importable(path.parent) if is_file else contextlib.nullcontext():
        module = _import_file(path, arch) if is_file else _import_module(place, arch)
        factory = getattr(module, name, None)
        if factory is None:
            public = [key for key in vars(module) if not key.startswith("_")]
            raise SourceError(f"cannot find {name!r} in {place}{nearest(name, public)}; it must be a function there")

    def build(**options: Any) -> nn.Module:
        options.pop("initialise", None)
        with importable(path.parent) if is_file else contextlib.nullcontext():
            return _call(factory, arch, options)

    return Builder(name, arch, "factory", build, None)


def _call(factory: object, arch: str, options: dict[str, Any]) -> nn.Module:
    if isinstance(factory, nn.Module):
        return factory
    if not callable(factory):
        raise SourceError(f"cannot build {arch}: it is a {type(factory).__name__}, not a function that returns a model")
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        if options:
            raise  # the caller tried an option, which this factory does not have
        remedy = "wrap it in a function that takes no arguments"
        raise SourceError(f"cannot build {arch}: {error}; {remedy}") from None
    except ValueError:  # some builtins have no signature
        pass
    try:
        model = factory(**options)
    except Exception as error:
        where = f"at {_place(error)}" if error.__traceback__ else ""
        raise SourceError(f"cannot build {arch}: it raised {type(error).__name__}: {error} {where}".rstrip()) from error
    return _module(model, arch)


def _place(error: Exception) -> str:
    """Return file and line where ``error`` was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(last.filename).name}:{last.lineno}"


def _module(model: object, arch: str) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise SourceError(f"cannot build {arch}: it returned a {type(model).__name__}; it must return an nn.Module")
    return model


def _import_module(place: str, arch: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ImportError as error:
        remedy = "check the name, install the package, or give path/to/file.py:factory"
        raise SourceError(f"cannot import {place!r} for {arch}: {error}; {remedy}") from error
    except Exception as error:
        raise SourceError(f"cannot import {place!r} for {arch}: {type(error).__name__}: {error}") from error


def _import_file(path: Path, arch: str) -> ModuleType:
    if not path.is_file():
        raise SourceError(f"cannot find the file {str(path)!r} of {arch}; give the path to a Python file")
    # A name of our own: a user's `torch.py` or `nets.py` must not stand for another module of that name.
    spec = importlib.util.spec_from_file_location(f"_binarize_source_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise SourceError(f"cannot load {str(path)!r} of {arch}: it is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up while it runs
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        said = f"{type(error).__name__}: {error}"
        where = "" if isinstance(error, SyntaxError) else f" at {_place(error)}"  # a syntax error names its line itself
        raise SourceError(f"cannot load {str(path)!r} of {arch}: {said}{where}") from error
    return module


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Put ``folder`` first on the import path; forget it and the modules found there afterwards.

    Two files from two folders may each have a neighbour `blocks.py`: neither may get the other's.
    """
    place = str(folder.resolve())
    path, before = list(sys.path), set(sys.modules)
    sys.path.insert(0, place)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).parent == Path(place) and not name.startswith("_binarize_source_"):
                del sys.modules[name]
