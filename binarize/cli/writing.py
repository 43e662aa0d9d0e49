"""Asks, before the long work, whether an output file can be written at all."""

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from binarize.errors import OutputError

__all__ = ["require_separate", "require_writable"]


def require_writable(path: Path) -> None:
    """Raise `OutputError` if ``path`` cannot be written; whatever stands there is left as it is."""
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    if path.exists() and not os.access(path, os.W_OK):
        raise OutputError(f"cannot write {path}: the file there is write-protected; choose another name")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as cause:
        raise OutputError(f"cannot write {path}: {cause.strerror}; give a path that can be written") from cause


def require_separate(outputs: Sequence[Path], inputs: Iterable[str | Path | None]) -> None:
    """Raise `OutputError` if an output is the file that an input names, or that another output names.

    Args:
        outputs: Files to be written.
        inputs: What is read, as the user wrote it: a path, ``npz:FILE`` or ``path/to/file.py:factory``.
    """
    read = [path for given in inputs if given is not None for path in _paths_in(str(given))]
    for index, output in enumerate(outputs):
        if any(_is_same(output, path) for path in read):
            raise OutputError(f"cannot write {output}: it would overwrite what is read; choose another name")
        if any(_is_same(output, other) for other in outputs[:index]):
            raise OutputError(f"cannot write {output}: another output has that name; choose two different ones")


def _paths_in(spec: str) -> list[Path]:
    parts = (spec, spec.partition(":")[2], spec.rpartition(":")[0])
    return [Path(part) for part in parts if part]


def _is_same(one: Path, other: Path) -> bool:
    if one.exists() and other.exists():
        return one.samefile(other)
    return os.path.realpath(one) == os.path.realpath(other)
