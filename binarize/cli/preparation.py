"""Says so where images look unlike those of training, labels are no outputs, or a teacher knows less than its pupil."""

import functools
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, final

from binarize.cli.output import note

if TYPE_CHECKING:
    from torch import nn

    from binarize.data import Images
    from binarize.finetune import Step

__all__ = [
    "Glance",
    "doubt_validation",
    "note_classes",
    "note_decisions",
    "note_labels",
    "note_preparation",
    "require_labels",
]

ENOUGH = 64  # images
SURE = 3.0  # standard deviations: a teacher of the same accuracy is doubted about once in a thousand runs
OTHER = "check that --teacher is the original, with its own weights"
NUMBERED = "check that classes are numbered as in its training, and the images prepared so"
NO_LABEL = -100  # torch's own word for it


@final
class Glance:
    """What is seen of a network on the first batch of its data, which is read once, if at all."""

    def __init__(self, net: "nn.Module", images: "Images") -> None:
        self.net, self.images = net, images

    @functools.cached_property
    def batch(self) -> Any:
        """The first batch."""
        return next(iter(self.images))

    @functools.cached_property
    def outputs(self) -> int | None:
        """How many classes the network tells apart, or None where that cannot be seen: what runs it next says why."""
        import torch

        try:
            with torch.no_grad():
                found = self.net((self.batch[0] if isinstance(self.batch, tuple | list) else self.batch)[:1])
        except (RuntimeError, TypeError, ValueError):
            return None
        return found.shape[1] if isinstance(found, torch.Tensor) and found.dim() == 2 else None

    def wrong_label(self, allowed: int | None = None) -> str | None:
        """Return which label is no output of the network, nor what is ``allowed`` besides, or None."""
        labels = self.images.labels
        if self.images.task != "classification" or labels is None or self.outputs is None:
            return None
        numbers = labels if allowed is None else labels[labels != allowed]
        if not len(numbers):
            return None
        least, most = int(numbers.min()), int(numbers.max())
        if least >= 0 and most < self.outputs:
            return None
        return f"a label is {least if least < 0 else most}, the network has outputs 0 to {self.outputs - 1}"


def note_preparation(model: "nn.Module", batches: Iterable[Any]) -> None:
    """Look at the first images of ``batches``, and note what speaks against their preparation, if anything does."""
    doubt = _doubt(model, ((batch[0] if isinstance(batch, tuple | list) else batch,) for batch in batches))
    if doubt is not None:
        note(f"warning: {doubt}")


def note_decisions(glance: Glance, teacher: "nn.Module | None", *, chosen: bool = False) -> None:
    """Let both decide some images, and note it where the teacher is clearly the worse, or one no better than chance.

    Without labels of whole images, only a teacher that somebody has ``chosen`` can be doubted, where it decides
    otherwise than the network. What does not run is left to the training to say.
    """
    from binarize.errors import BinarizeError

    if glance.images.task != "classification":
        return
    try:
        doubt = _of_decisions(glance, teacher, chosen)
    except (BinarizeError, RuntimeError, TypeError, ValueError):
        return
    if doubt is not None:
        note(f"warning: {doubt}")


def _of_decisions(glance: Glance, teacher: "nn.Module | None", chosen: bool) -> str | None:
    pixels, labels = glance.batch
    ours = _decided(glance.net, pixels)
    theirs = ours if teacher is None else _decided(teacher, pixels)
    if labels is None:
        alike = float((ours == theirs).float().mean())
        if not chosen or not _is_chance(alike, len(ours), glance.outputs):
            return None
        saw = f"on {alike:.0%} of the first {len(ours)} images, hardly more than chance"
        return f"the network decides as the teacher {saw}; {OTHER}"
    met, taught = (float((decided == labels[:ENOUGH]).float().mean()) for decided in (ours, theirs))
    first = f"the first {len(ours)} images"
    if met - taught > SURE * math.sqrt((met + taught) / len(ours)):
        return f"the teacher decides {taught:.0%} of {first} right, the network {met:.0%} already; {OTHER}"
    if not _is_chance(taught, len(ours), glance.outputs):
        return None
    if teacher is None:
        return f"the network decides {taught:.0%} of {first} right; unless its conversion left it there, {NUMBERED}"
    return f"the teacher decides {taught:.0%} of {first} right, hardly more than chance; {NUMBERED}"


def _decided(model: "nn.Module", pixels: Any) -> Any:
    import torch

    with torch.no_grad():
        found = model(pixels[:ENOUGH])
    if not isinstance(found, torch.Tensor) or found.dim() != 2:
        raise TypeError("the output is no score of each class")
    return found.argmax(1)


def doubt_validation(glance: Glance, images: "Images", step: "Step") -> str | None:
    """Return what speaks against the labels of ``images``, of which the teacher was measured before training."""
    share = step.teacher.get("top1")
    if share is None or not _is_chance(share, images.samples, glance.outputs):
        return None
    saw = f"{share:.1%} of {images.title} right, hardly more than chance"
    return f"warning: the teacher decides {saw}; {NUMBERED}"


def _is_chance(share: float, samples: int, classes: int | None) -> bool:
    """Whether one who guesses among ``classes`` could be right on so large a share; not where they could on all."""
    if classes is None:
        return False
    guessed = 1 / classes
    most = guessed + SURE * math.sqrt(guessed * (1 - guessed) / samples)
    return share <= most < 1


def note_classes(glance: Glance, images: "Images") -> None:
    """Note where the images have names for more or fewer classes than the network has outputs."""
    if images.task != "classification" or not images.classes:
        return
    count, outputs = len(images.classes), glance.outputs
    if outputs is not None and outputs != count:
        what = f"{images.title} has folders for {count} classes, the network {outputs} outputs"
        note(f"warning: {what}; a label is the position of its folder in the order of names, so labels may be wrong")


def note_labels(glance: Glance) -> None:
    """Note where a label is no output of the network: nothing else tells so where only a teacher is learnt."""
    wrong = None if glance.images.classes else glance.wrong_label()
    if wrong is not None:
        title = glance.images.title
        note(f"warning: {wrong}; check the labels of {title}, the accuracy in training means nothing")


def require_labels(glance: Glance) -> None:
    """Refuse labels that are no outputs where they are learnt, before the batch comes that holds one."""
    from binarize.errors import DataError

    wrong = glance.wrong_label(NO_LABEL)
    if wrong is not None:
        remedy = "number the classes from 0, or learn from a teacher alone (--teacher, without --labels)"
        raise DataError(f"cannot fine-tune on the labels of {glance.images.title}: {wrong}; {remedy}")


def _doubt(model: "nn.Module", inputs: Iterable[tuple[Any]]) -> str | None:
    from binarize.calibration.prepared import ImageStatistics, compare_prepared, unlike
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
        return None if reason is None else unlike("training", reason)
    seen = ImageStatistics.of(inputs)
    reason = None if seen is None else known.why_not(seen)
    return None if reason is None else unlike("calibration", reason)
