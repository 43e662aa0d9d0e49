"""Opens what torch.save wrote, and only if every global its pickle names is on the allow-list.

torch's weights-only unpickler does the work, so that a name this list forgets is refused, never run.
"""

import contextlib
import functools
import importlib
import io
import pickletools
import zipfile
from _compat_pickle import IMPORT_MAPPING
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import fx, nn

from binarize.errors import SourceError
from binarize.sources.builders import importable
from binarize.sources.files import LEGACY_MAGIC, FileKind

__all__ = ["load_pickle", "unsafe_globals"]

# Modules (classes derived from nn.Module) under these prefixes are taken; nothing else of them is.
MODULE_PREFIXES = ("torch.nn.modules.", "torchvision.models.", "torchvision.ops.")
# Further names that whole modules of torch and torchvision hold: plain data classes and pure functions.
NAMED = frozenset(
    {
        "functools.partial",
        "torch._C._nn.gelu",
        "torch.nn.functional.gelu",
        "torch.nn.functional.leaky_relu",
        "torch.nn.functional.relu",
        "torch.nn.functional.silu",
        "torch.nn.parallel.data_parallel.DataParallel",
        "torch.relu",
        "torch.sigmoid",
        "torch.tanh",
        "torchvision.models.detection._utils.BalancedPositiveNegativeSampler",
        "torchvision.models.detection._utils.BoxCoder",
        "torchvision.models.detection._utils.BoxLinearCoder",
        "torchvision.models.detection._utils.Matcher",
        "torchvision.models.detection._utils.SSDMatcher",
        "torchvision.models.optical_flow.raft._pass_through_h",
        "torchvision.ops.boxes.box_iou",
    }
)
# These modules are made of source text that the file itself holds.
CODE_HOLDERS = (fx.GraphModule, torch.jit.ScriptModule)
DAMAGED = "the file is damaged or cut short"


def load_pickle(path: Path, kind: FileKind, trusted: Sequence[str] = ()) -> object:
    """Return the object in a torch.save file: tensors, plain containers, and modules of allow-listed classes.

    Args:
        path: The file.
        kind: `FileKind.PICKLE` or `FileKind.LEGACY_PICKLE`.
        trusted: Names of packages whose classes and functions may be used; the current folder is looked in too.

    Raises:
        SourceError: A global is not on the list, cannot be imported, or the file is damaged.
    """
    try:
        names = sorted(_zip_globals(path) if kind is FileKind.PICKLE else _legacy_globals(path))
    except Exception as error:  # the parsers raise whatever they stumble over
        raise _damaged(path, error) from error
    if names and kind is FileKind.LEGACY_PICKLE:  # torch stores a module's source there and reads it back unsafely
        saw = f"it holds a module ({names[0]}, ...) in the format of before torch 1.6"
        remedy = "load it where it was made and write it again with torch.save(model.state_dict(), ...)"
        raise SourceError(f"cannot open {str(path)!r}: {saw}, which cannot be checked; {remedy}")
    # A trusted module may lie in the current folder, which an installed command does not import from.
    with importable(Path.cwd()) if trusted else contextlib.nullcontext():
        allowed = [_allowed(path, name, trusted) for name in names]
        try:
            with torch.serialization.safe_globals(allowed):  # type: ignore[arg-type]
                return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise _damaged(path, error) from error


def unsafe_globals(data: bytes) -> Collection[str]:
    """Return the globals, beyond those torch itself takes as safe, of a zipped pickle within another file.

    Raises:
        Exception: ``data`` is no such pickle, in whatever way torch puts it.
    """
    return torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data))


def _zip_globals(path: Path) -> Collection[str]:
    with zipfile.ZipFile(path) as archive:
        broken = archive.testzip()  # torch checks no checksums: a flipped bit would become a wrong weight
    if broken is not None:
        raise ValueError(f"checksum of {broken} is wrong")
    return torch.serialization.get_unsafe_globals_in_checkpoint(path)


def _legacy_globals(path: Path) -> Collection[str]:
    names: set[str] = set()
    with path.open("rb") as file:
        file.seek(len(LEGACY_MAGIC) + 1)  # the magic number and its STOP
        for _ in range(4):  # protocol, system, object, storage keys; raw storages follow
            names.update(_pickle_globals(file))
    return names - _torch_safe()


def _pickle_globals(file: IO[bytes]) -> Iterator[str]:
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            yield f"{IMPORT_MAPPING.get(module, module)}.{name}"


@functools.cache
def _torch_safe() -> frozenset[str]:
    # torch offers this list only as the answer for a file, so it is read where torch keeps it.
    unpickler = importlib.import_module("torch._weights_only_unpickler")
    return frozenset(unpickler._get_allowed_globals())


def _allowed(path: Path, name: str, trusted: Sequence[str]) -> tuple[Any, str]:
    module, _, attribute = name.rpartition(".")
    by_user = any(module == package or module.startswith(f"{package}.") for package in trusted)
    if not by_user and name not in NAMED and not name.startswith(MODULE_PREFIXES):
        raise _refused(path, name)
    try:
        value = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        remedy = "install the package it comes from, or re-save as torch.save(model.state_dict(), ...)"
        raise SourceError(f"cannot open {str(path)!r}: it needs {name}, which is not installed; {remedy}") from None
    is_module = isinstance(value, type) and issubclass(value, nn.Module) and not issubclass(value, CODE_HOLDERS)
    if not (by_user or name in NAMED or is_module):
        raise _refused(path, name)
    return value, name


def _refused(path: Path, name: str) -> SourceError:
    package = name.partition(".")[0]
    remedy = "re-save it as torch.save(model.state_dict(), ...) and give --arch"
    if package not in ("__main__", "builtins", "os", "posix", "nt", "sys", "subprocess", "torch", "torchvision"):
        remedy += f", or allow its package with --trust {package} if you know who wrote the file"
    saw = f"its pickle names {name}, which is no layer of torch or torchvision and could run code"
    return SourceError(f"cannot open {str(path)!r}: {saw}; {remedy}")


def _damaged(path: Path, error: Exception) -> SourceError:
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip() or type(error).__name__
    detail = text.splitlines()[0][:160]
    return SourceError(f"cannot open {str(path)!r}: {DAMAGED} ({detail}); copy or download it again")
