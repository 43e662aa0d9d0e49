"""Asks, before the long work, whether an output file can be written at all."""

import os
import tempfile
from pathlib import Path

from binarize.errors import OutputError

__all__ = ["require_writable"]


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
