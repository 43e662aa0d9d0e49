"""What was measured on a GPU, kept in the user's cache as JSON: one file of names and values."""

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from binarize.kernels.cuda.compile import cache_folder

__all__ = ["keep", "kept"]

_MOST_KEPT = 20_000  # entries: those of many networks on several GPUs


def kept(file: str) -> dict[str, Any]:
    """Return what a file of the cache holds, the newest last; nothing where it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        known = json.loads((cache_folder() / file).read_text())
        if isinstance(known, dict):
            return known
    return {}


def keep(file: str, key: str, value: Any) -> None:
    """Add an entry, by renaming a file of one's own; where nothing can be written, it is measured again next time."""
    with contextlib.suppress(OSError):
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        known = dict(list(kept(file).items())[1 - _MOST_KEPT :]) | {key: value}
        handle, draft = tempfile.mkstemp(dir=folder, suffix=".draft")
        with os.fdopen(handle, "w") as text:
            json.dump(known, text)
        Path(draft).replace(folder / file)
