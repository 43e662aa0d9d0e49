"""The file: safetensors with one JSON text in its metadata, checked on reading, replaced in one step on writing."""

import contextlib
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from binarize.errors import ArtifactError, OutputError

__all__ = ["FORMAT", "KEY", "is_artifact", "read", "replacing", "write"]

KEY = "binarize"
FORMAT = 1
BEGINNING = b'"__metadata__":{"binarize":'
DAMAGED = "the file is damaged or cut short; copy it again or save the network again"


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new file beside ``path`` to write to; it becomes ``path`` in one step when the block ends without error.

    On an error, or an interruption, the new file is gone and what stood at ``path`` is as it was.

    Raises:
        OutputError: the file cannot be written.
    """
    target = Path(os.path.realpath(path))
    _require_writable(target)
    draft = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.tmp")
    try:
        mode = _create(draft, target)
        yield draft
        draft.chmod(mode)
        _flush(draft)
        draft.replace(target)
        _flush(target.parent)
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error.strerror or error}; choose another place") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def _require_writable(target: Path) -> None:
    """Say early what replacing would stumble over, or would do to what is no plain file."""
    why = None
    if not target.parent.is_dir():
        why = f"there is no folder {str(target.parent)!r}; make it first"
    elif target.is_dir():
        why = "it is a folder; give the name of a file in it"
    elif target.exists() and not target.is_file():
        why = "it is no regular file; choose another name"
    elif target.exists() and not os.access(target, os.W_OK):
        why = "the file there is write-protected; choose another name or unprotect it"
    if why is not None:
        raise OutputError(f"cannot write {str(target)!r}: {why}")


def _create(draft: Path, target: Path) -> int:
    """Create the empty draft and return the mode that the file is to have in the end."""
    draft.touch(exist_ok=False)
    return stat.S_IMODE((target if target.exists() else draft).stat().st_mode)


def _flush(path: Path) -> None:
    """Wait until the file, or the folder's list of names, is on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # no folder can be opened there
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write(path: str | os.PathLike[str], description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> int:
    """Write one file and return its size in bytes.

    Raises:
        ArtifactError: the description does not fit into JSON.
        OutputError: the file cannot be written.
    """
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    try:
        text = json.dumps({"format": FORMAT, "sha256": _digest(description, plain), **description})
    except (TypeError, ValueError) as error:
        what = f"cannot save the network: its record is no plain data ({error})"
        raise ArtifactError(f"{what}; use texts and numbers") from error
    with replacing(path) as draft:
        try:
            save_file(plain, draft, metadata={KEY: text})
        except SafetensorError as error:
            raise OSError(str(error)) from error  # it wraps what the system said
        return draft.stat().st_size


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read one file and return what `write` was given.

    Raises:
        ArtifactError: it is missing, of another kind, of a newer format, or damaged.
    """
    found = f"cannot load {str(path)!r}"
    if not Path(path).is_file():
        raise ArtifactError(f"{found}: there is no such file; check the path")
    if str(path).endswith(".onnx"):
        raise ArtifactError(f"{found}: it is an ONNX file; give the .safetensors file that it was exported from")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if KEY not in metadata:
                remedy = "load() takes what binarize saved; convert() takes models"
                raise ArtifactError(f"{found}: it is a safetensors file without a network in it; {remedy}")
            description = _parsed(metadata[KEY], found)
            tensors = {key: _owned(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118  # not a dict
    except ArtifactError:
        raise
    except Exception as error:  # whatever the parser and torch make of a damaged header
        detail = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        what = DAMAGED if str(path).endswith(".safetensors") else f"it is no file that save() wrote, or {DAMAGED}"
        raise ArtifactError(f"{found}: {what} ({detail})") from error
    expected = description.pop("sha256", None)
    if expected != _digest(description, tensors):
        raise ArtifactError(f"{found}: {DAMAGED} (its checksum is wrong)")
    return description, tensors


def _parsed(text: str, found: str) -> dict[str, Any]:
    try:
        description = json.loads(text)
        version = description.pop("format")
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        raise ArtifactError(f"{found}: {DAMAGED} (its description is no JSON)") from None
    if type(version) is not int or version < 1:
        raise ArtifactError(f"{found}: {DAMAGED} (its format is called {str(version)[:40]!r})")
    if version > FORMAT:
        what = f"its format is {version}, this version reads up to {FORMAT}"
        raise ArtifactError(f"{found}: {what}; install a newer binarize")
    return dict(description)


def _owned(tensor: Tensor) -> Tensor:
    """Return a tensor with memory of its own: a view of the mapped file would change, or crash, when the file does."""
    size = tensor.numel() * tensor.element_size()
    return tensor if tensor.untyped_storage().nbytes() == size else tensor.clone()


def _digest(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of everything the file says: safetensors itself has no checksum."""
    state = hashlib.sha256(json.dumps(description).encode())
    for key, tensor in sorted(tensors.items()):
        state.update(f"\n{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            state.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def is_artifact(path: str | os.PathLike[str]) -> bool:
    """Return whether ``path`` is a file that `save` wrote, as far as its beginning shows: it may be damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return _begins_as_ours(path)


def _begins_as_ours(path: str | os.PathLike[str]) -> bool:
    """Return whether a file that cannot be read, cut short perhaps, begins as `write` begins one."""
    try:
        with Path(path).open("rb") as file:
            return BEGINNING in file.read(64)
    except OSError:
        return False
