"""Says so where images look unlike those that a model was trained on, or a network calibrated on."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from binarize.cli.output import note

if TYPE_CHECKING:
    from torch import nn

__all__ = ["note_preparation"]


def note_preparation(model: "nn.Module", batches: Iterable[Any]) -> None:
    """Look at the first images of ``batches``, and note what speaks against their preparation, if anything does."""
    doubt = _doubt(model, ((batch[0] if isinstance(batch, tuple | list) else batch,) for batch in batches))
    if doubt is not None:
        remedy = "check --mean and --std (bytes are divided by 255 before) and --channels"
        note(f"warning: the images look unlike {doubt}; {remedy}")


def _doubt(model: "nn.Module", inputs: Iterable[tuple[Any]]) -> str | None:
    from binarize.calibration.prepared import ImageStatistics, compare_prepared
    from binarize.errors import ModelError
    from binarize.record import record_of

    try:
        known = ImageStatistics.read(record_of(model).calibration.get("images"))
    except ModelError:  # nobody converted it
        known = None
    if known is None:
        try:
            prepared = compare_prepared(model, inputs)
        except (RuntimeError, TypeError, ValueError):  # they do not fit: what runs the model next says so
            return None
        reason = None if prepared is None else prepared.why_not()
        return None if reason is None else f"those of training: {reason}"
    seen = ImageStatistics.of(inputs)
    reason = None if seen is None else known.why_not(seen)
    return None if reason is None else f"those of calibration: {reason}"
