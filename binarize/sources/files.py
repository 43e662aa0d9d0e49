"""Tells the kinds of model file apart by their first bytes and entry names. Nothing is unpickled here."""

import enum
import hashlib
import json
import zipfile
from pathlib import Path
from typing import final

from binarize.errors import SourceError

__all__ = ["FileKind", "digest", "identify", "require_readable"]

# What torch.save wrote before its zip format: a pickled magic number.
LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")
EXPECTED = "give a file that torch.save, torch.export.save or safetensors wrote"
# First bytes -> what such a file is and what to do with it.
FOREIGN = (
    (b"\x89HDF", "an HDF5 file (Keras?)", "rebuild the network in torch and save its state_dict"),
    (b"\x89PNG", "a PNG image", EXPECTED),
    (b"\x93NUMPY", "a numpy array", EXPECTED),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"Rar!", "a RAR archive", "unpack it first"),
    (b"<", "a web page or XML, perhaps a download that failed", "download the file again"),
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself", "fetch it with `git lfs pull`"),
)


@final
class FileKind(enum.Enum):
    """What a file holds, as far as its outside shows; a zipped pickle may hold a state_dict or a module."""

    SAFETENSORS = "safetensors"
    PICKLE = "pickle"
    LEGACY_PICKLE = "legacy pickle"
    PROGRAM = "exported program"


def require_readable(path: Path) -> None:
    """Raise `SourceError` unless ``path`` is a file with something in it that can be read."""
    if path.is_dir():
        raise SourceError(f"cannot open {str(path)!r}: it is a directory; give the file inside it")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except FileNotFoundError:
        remedy = "check the path, or write torchvision:NAME or module:factory for a model that is no file"
        raise SourceError(f"cannot open {str(path)!r}: there is no such file; {remedy}") from None
    except OSError as error:
        why = error.strerror or error
        raise SourceError(f"cannot open {str(path)!r}: {why}; check its permissions and path") from None
    if empty:
        raise SourceError(f"cannot open {str(path)!r}: the file is empty; copy or download it again")


def digest(path: Path) -> str:
    """Return the sha256 of the file, in hexadecimal."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def identify(path: Path) -> FileKind:
    """Return what kind of model file ``path`` is.

    Raises:
        SourceError: It is none that can be opened; the message says what it is instead.
    """
    require_readable(path)
    with path.open("rb") as file:
        head = file.read(64)
    if head[:2] == b"PK":
        return _zip_kind(path)
    if head.startswith(LEGACY_MAGIC):
        return FileKind.LEGACY_PICKLE
    if head[8:9] == b"{":
        return _safetensors_kind(path, int.from_bytes(head[:8], "little"))
    raise _foreign(path, head)


def _zip_kind(path: Path) -> FileKind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        remedy = "copy or download it again"
        raise SourceError(f"cannot open {str(path)!r}: the zip archive is damaged or cut short; {remedy}") from None
    inner = {name.partition("/")[2] for name in names}
    if "archive_format" in inner or any(name.startswith("models/") for name in inner):
        return FileKind.PROGRAM
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        remedy = "re-save the original as torch.save(model.state_dict(), ...) and give --arch, or use torch.export.save"
        raise SourceError(f"cannot open {str(path)!r}: it is TorchScript, which holds code and cannot be cut; {remedy}")
    if "serialized_exported_program.json" in names:
        remedy = "load it with that torch and save it with torch.export.save of torch 2.7 or newer"
        raise SourceError(f"cannot open {str(path)!r}: an exported program in a format of before torch 2.7; {remedy}")
    if "data.pkl" in inner:
        return FileKind.PICKLE
    saw = f"a zip archive of {len(names)} entries without a torch checkpoint in it"
    raise SourceError(f"cannot open {str(path)!r}: it is {saw}; {EXPECTED}")


def _safetensors_kind(path: Path, length: int) -> FileKind:
    if length + 8 > path.stat().st_size:
        saw = f"its safetensors header of {length} bytes is longer than the file, so it was cut short"
        raise SourceError(f"cannot open {str(path)!r}: {saw}; copy or download it again")
    with path.open("rb") as file:
        file.seek(8)
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            saw = "its safetensors header is not JSON"
            raise SourceError(f"cannot open {str(path)!r}: {saw}; copy or download it again") from None
    if "binarize" in (header.get("__metadata__") or {}):
        takers = "evaluate, inspect, export and benchmark take it as NET, binarize.load() in Python"
        raise SourceError(f"cannot open {str(path)!r} as a model: it is already a converted network; {takers}")
    return FileKind.SAFETENSORS


def _foreign(path: Path, head: bytes) -> SourceError:
    for magic, what, remedy in FOREIGN:
        if head.startswith(magic):
            return SourceError(f"cannot open {str(path)!r}: it is {what}; {remedy}")
    if head[:1] == b"\x80":
        remedy = "load it where it was made and write it with torch.save(model.state_dict(), ...)"
        return SourceError(f"cannot open {str(path)!r}: it is a bare pickle, which could run code; {remedy}")
    if path.suffix == ".py":
        remedy = f"name the function in it that builds the network: {path}:FUNCTION"
        return SourceError(f"cannot open {str(path)!r} by itself: it is Python code; {remedy}")
    saw = f"its first bytes {head[:8].hex(' ')} belong to no format known here"
    return SourceError(f"cannot open {str(path)!r}: {saw}; {EXPECTED}")
