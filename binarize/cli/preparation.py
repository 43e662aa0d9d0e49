"""Says so where images look unlike those of training, labels are no outputs, or a teacher knows less than its pupil."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from binarize.cli.output import note

if TYPE_CHECKING:
    from torch import nn

    from binarize.data import Images

__all__ = ["note_classes", "note_labels", "note_preparation", "note_teacher"]

ENOUGH = 64  # images
SURE = 3.0  # standard deviations: a teacher of the same accuracy is doubted about once in a thousand runs


def note_preparation(model: "nn.Module", batches: Iterable[Any]) -> None:
    """Look at the first images of ``batches``, and note what speaks against their preparation, if anything does."""
    doubt = _doubt(model, ((batch[0] if isinstance(batch, tuple | list) else batch,) for batch in batches))
    if doubt is not None:
        remedy = "check --mean and --std (bytes are divided by 255 before), --channels and --input-shape"
        note(f"warning: the images look unlike {doubt}; {remedy}")


def note_teacher(net: "nn.Module", teacher: "nn.Module", images: "Images") -> None:
    """Let both decide some images, and note it where the teacher is clearly the worse: it is hardly the original.

    Nothing is noted without labels of whole images; what does not run is left to the training to say.
    """
    from binarize.errors import BinarizeError
    from binarize.evaluate import Evaluation, evaluate

    if images.task != "classification" or images.labels is None:
        return
    pixels, labels = next(iter(images))
    first = [(pixels[:ENOUGH], labels[:ENOUGH])]
    try:
        ours, theirs = evaluate(net, first), evaluate(teacher, first)
    except (BinarizeError, RuntimeError, TypeError, ValueError):
        return
    if not isinstance(ours, Evaluation) or not isinstance(theirs, Evaluation):
        return
    if ours.top1 is None or theirs.top1 is None:
        return
    if ours.top1 - theirs.top1 > SURE * ((ours.top1 + theirs.top1) / ours.samples) ** 0.5:
        saw = f"{theirs.top1:.0%} of the first {ours.samples} images right, the network {ours.top1:.0%}"
        note(f"warning: the teacher decides {saw} already; check that --teacher is the original, with its own weights")


def note_classes(net: "nn.Module", images: "Images") -> None:
    """Note where the images have names for more or fewer classes than the network has outputs."""
    if images.task != "classification" or not images.classes:
        return
    count, outputs = len(images.classes), _outputs(net, images)
    if outputs is not None and outputs != count:
        what = f"{images.title} has folders for {count} classes, the network {outputs} outputs"
        note(f"warning: {what}; a label is the position of its folder in the order of names, so labels may be wrong")


def note_labels(net: "nn.Module", images: "Images") -> None:
    """Note where a label is no output of the network: nothing else tells so where only a teacher is learnt."""
    if images.task != "classification" or images.classes or images.labels is None or not len(images.labels):
        return
    outputs = _outputs(net, images)
    wrong = [int(label) for label in (images.labels.min(), images.labels.max())]
    if outputs is not None and not 0 <= min(wrong) <= max(wrong) < outputs:
        label = wrong[0] if wrong[0] < 0 else wrong[1]
        what = f"a label is {label}, the network has outputs 0 to {outputs - 1}"
        note(f"warning: {what}; check the labels of {images.title}, the accuracy in training means nothing")


def _outputs(net: "nn.Module", images: "Images") -> int | None:
    """Return how many classes ``net`` tells apart, or None where that cannot be seen: what runs it next says why."""
    import torch

    first = next(iter(images))
    try:
        with torch.no_grad():
            found = net((first[0] if isinstance(first, tuple | list) else first)[:1])
    except (RuntimeError, TypeError, ValueError):
        return None
    return found.shape[1] if isinstance(found, torch.Tensor) and found.dim() == 2 else None


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
