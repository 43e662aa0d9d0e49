"""The state of a run in one file, replaced in one step: a crash or a full disk leaves the file that was there."""

import io
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from binarize.artifact import replacing
from binarize.errors import OutputError, TrainingError

__all__ = ["Checkpoints", "random_state", "seed_everything", "set_random_state"]

NAME = "checkpoint.pt"


@final
class Checkpoints:
    """Writes and reads the checkpoint of one run in a folder of its own.

    Attributes:
        path: the file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / NAME

    def require_usable(self, resume: bool) -> None:
        """Refuse to lose a run that is already there.

        Raises:
            OutputError: the folder is something else.
            TrainingError: it holds a checkpoint, and nobody asked to resume.
        """
        there = next(place for place in (self.folder, *self.folder.absolute().parents) if place.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            why = "nothing may be written there" if there.is_dir() else "it is a file"
            where = "" if there == self.folder else f" in {there}"
            raise OutputError(f"cannot write checkpoints to {self.folder}{where}: {why}; name a folder")
        if self.path.exists() and not resume:
            remedy = "resume it (--resume, resume=True), or give another folder"
            raise TrainingError(f"cannot start a run in {self.folder}: it holds the checkpoint of one; {remedy}")

    def prepare(self, resume: bool) -> None:
        """Make the folder, after `require_usable`.

        Raises:
            OutputError: it cannot be made.
        """
        self.require_usable(resume)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as cause:
            raise OutputError(f"cannot write checkpoints to {self.folder}: {cause.strerror}; name a folder") from cause

    def write(self, state: Mapping[str, Any]) -> None:
        """Write ``state``.

        Raises:
            OutputError: it cannot be written; the previous checkpoint is as it was.
        """
        buffer = io.BytesIO()  # torch.save reports a full disk as a bug of its own; a plain write says what happened
        torch.save(dict(state), buffer)
        try:
            with replacing(self.path) as draft:
                draft.write_bytes(buffer.getbuffer())
        except OutputError as cause:
            kept = (
                "the previous checkpoint is intact: make room and resume" if self.path.exists() else "there is none yet"
            )
            raise OutputError(f"{cause}; {kept}") from cause

    def read(self) -> dict[str, Any] | None:
        """Return the state, or None where there is none yet.

        Raises:
            TrainingError: the file is damaged.
        """
        if not self.path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.path, weights_only=True, map_location="cpu")
        except Exception as cause:  # torch, zipfile and pickle each raise their own
            raise TrainingError(f"cannot resume from {self.path}: it is damaged; delete it to start anew") from cause
        return state


def random_state() -> dict[str, Any]:
    """Return the state of every random generator that training or a data set may draw from."""
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002  data sets draw from the global generator
    return {
        "python": random.getstate(),
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Take over what `random_state` returned."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def seed_everything(seed: int) -> None:
    """Seed every random generator."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)
