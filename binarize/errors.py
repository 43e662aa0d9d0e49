"""Every error raised on purpose. Catch `BinarizeError` for all of them.

A message says what could not be done, to which named thing; what was seen; what to do.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import final

__all__ = [
    "ArtifactError",
    "BinarizeError",
    "CaptureError",
    "DataError",
    "ExportError",
    "ModelError",
    "NoKernelError",
    "NothingConvertedError",
    "OutputError",
    "RecipeError",
    "SourceError",
    "TrainingError",
    "nearest",
    "one_line",
]


class BinarizeError(Exception):
    """Base of every error that this package raises on purpose."""


@final
class SourceError(BinarizeError):
    """A model could not be opened."""


@final
class ModelError(BinarizeError):
    """An opened model cannot be worked on: weights not finite, inputs of the wrong shape."""


@final
class CaptureError(BinarizeError):
    """No part of a model's forward could be captured as a graph."""


@final
class RecipeError(BinarizeError):
    """A recipe or a scheme string does not say anything that can be built."""


@final
class DataError(BinarizeError):
    """Data could not be read, is empty, or does not fit the model."""


@final
class NothingConvertedError(BinarizeError):
    """A conversion would have left every layer as it was."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        shown = list(reasons.items())[:20]
        lines = [f"  {name}: {why}" for name, why in shown]
        if len(reasons) > len(shown):
            lines.append(f"  ... and {len(reasons) - len(shown)} more")
        body = "\n".join(lines) if lines else "  the model has no Conv2d and no Linear layer"
        super().__init__(f"no layer was converted; why each stayed in full precision:\n{body}")
        self.reasons = dict(reasons)


@final
class NoKernelError(BinarizeError, NotImplementedError):
    """No kernel can run the given problem."""

    def __init__(self, problem: object, reasons: Mapping[str, str]) -> None:
        tried = "\n".join(f"  {name:<20} {why}" for name, why in reasons.items())
        super().__init__(f"no kernel can run {problem}; tried, best first:\n{tried}")
        self.reasons = dict(reasons)


@final
class ArtifactError(BinarizeError):
    """A saved network could not be read or written."""


@final
class OutputError(BinarizeError):
    """An output file could not be written; whatever stood there before is intact."""


@final
class ExportError(BinarizeError):
    """A network could not be exported."""


@final
class TrainingError(BinarizeError):
    """Fine-tuning could not start or go on; the network holds the last values that were good."""


def one_line(error: BaseException, most: int = 300) -> str:
    """Return what an error says on one line of at most ``most`` characters, or the name of its class."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the known word nearest to ``word``, or an empty string."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
