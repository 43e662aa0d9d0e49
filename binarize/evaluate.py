"""How good a network is at its task, and how often it decides as its teacher does."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from binarize.errors import DataError, ModelError
from binarize.measures import (
    DetectionEvaluation,
    Judge,
    JudgeOfBoxes,
    JudgeOfMasks,
    SegmentationEvaluation,
    run_on,
)

__all__ = ["DetectionEvaluation", "Evaluation", "SegmentationEvaluation", "evaluate"]


@final
@dataclass(frozen=True)
class Evaluation:
    """What was measured, as fractions in [0, 1].

    Attributes:
        top1: Of the samples, those whose label has the largest output; None where there are no labels.
        top5: Of the samples, those whose label is among the five largest outputs (all, with fewer classes).
        samples: How many were seen.
        agreement: Of the samples, those where the teacher's largest output is the same one; None without a teacher.
    """

    top1: float | None
    top5: float | None
    samples: int
    agreement: float | None = None

    def to_dict(self) -> dict[str, float | int]:
        """Return the fields for JSON; what there was no teacher for, or no labels, is left out."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def figures(self) -> dict[str, float]:
        """Return what a run of fine-tuning keeps of each epoch."""
        return {} if self.top1 is None else {"top1": self.top1}

    def rows(self) -> list[tuple[str, str]]:
        """Return the table as text."""
        shares = {"top-1": self.top1, "top-5": self.top5, "agreement with the teacher": self.agreement}
        rows = [(name, f"{share:.2%}") for name, share in shares.items() if share is not None]
        return [*rows, ("samples", str(self.samples))]


def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    teacher: nn.Module | None = None,
    classes: Sequence[str] = (),
    progress: Callable[[int], object] | None = None,
) -> Evaluation | SegmentationEvaluation | DetectionEvaluation:
    """Run a network over images whose truth is known, in eval mode and without gradients.

    What a batch holds beside the images says what is measured: labels ``(n,)`` the accuracy of a classifier, masks
    ``(n, h, w)`` the intersection over union of segmentation, a list of dicts with boxes and labels the mean average
    precision of a detector; see `binarize.scenes`.

    Args:
        model: Maps ``(n, c, h, w)`` to ``(n, classes)`` or ``(n, classes, h, w)``, alone or as ``out`` of a dict, or a
            list of images to a list of detections. Its train or eval mode is restored afterwards.
        loader: Yields pairs of images and labels, masks or boxes; with a teacher, of a classifier, images will do.
        teacher: A second network for the same images, for the agreement.
        classes: Their names, for scenes; by default those that the loader knows.
        progress: Called after each batch with the number of images in it.

    Raises:
        DataError: There are no samples, no labels, or a label is no output of the model.
        ModelError: The images do not fit the model, or its output is of another kind.
    """
    judge: Judge | None = None
    samples, title = 0, str(getattr(loader, "title", "the data"))
    networks = [model] if teacher is None else [model, teacher]
    modes = {module: module.training for network in networks for module in network.modules()}
    try:
        for network in networks:
            network.eval()
        with torch.inference_mode():
            for images, truth in map(_pair, loader):
                if truth is None and (teacher is None or not isinstance(judge, _JudgeOfLabels | None)):
                    raise DataError(f"cannot evaluate: {_unlabelled(images)}; give images with labels, or a teacher")
                judge = judge or _judge(truth, tuple(classes) or getattr(loader, "classes", None) or (), title)
                done = judge.add(networks, images, truth)
                samples += done
                if progress is not None:
                    progress(done)
    finally:
        for module, mode in modes.items():
            module.training = mode
    if judge is None or samples == 0:
        raise DataError("cannot evaluate: the data has no samples; give at least one labelled image")
    found: Evaluation | SegmentationEvaluation | DetectionEvaluation = judge.result(
        samples, compared=teacher is not None
    )
    return found


def _pair(batch: Any) -> tuple[Any, Any]:
    """Return images and truth, None where the batch holds none that is known."""
    images, truth = batch if isinstance(batch, tuple | list) and len(batch) == 2 else (batch, None)
    boxes = isinstance(truth, tuple | list) and all(isinstance(item, Mapping) and "boxes" in item for item in truth)
    return images, truth if isinstance(truth, Tensor) or boxes else None


def _unlabelled(batch: Any) -> str:
    """Say what was seen where no labels were."""
    if isinstance(batch, Mapping):
        return f"a batch is a dict with the keys {', '.join(map(str, batch))}, not a pair"
    return "the data has no labels"


def _judge(truth: Any, classes: Sequence[str], title: str) -> Judge:
    if truth is None:
        return _JudgeOfLabels(title)
    if not isinstance(truth, Tensor):
        return JudgeOfBoxes(classes)
    return JudgeOfMasks(classes) if truth.dim() == 3 else _JudgeOfLabels(title)


@final
class _JudgeOfLabels(Judge):
    """Of classification.

    Args:
        title: how an error names the data.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._hits, self._labelled = torch.zeros(3, dtype=torch.int64), 0

    def add(self, networks: Sequence[nn.Module], images: Any, targets: Any) -> int:
        """Count one batch."""
        outputs = [_scores(network, images) for network in networks]
        self._hits[2] += (outputs[-1].argmax(1) == outputs[0].argmax(1)).sum().cpu()
        if targets is not None:
            self._hits[:2] += _count(outputs[0], targets, self._title)
            self._labelled += len(images)
        return len(images)

    def result(self, samples: int, *, compared: bool) -> Evaluation:
        """Return the fractions."""
        if 0 < self._labelled < samples:
            seen = f"{samples - self._labelled} of {samples} images have no label"
            raise DataError(f"cannot evaluate: {seen}; label all of them or none")
        top1, top5, same = (count / samples for count in self._hits.tolist())
        agreement = same if compared else None
        return (
            Evaluation(top1, top5, samples, agreement) if self._labelled else Evaluation(None, None, samples, agreement)
        )


def _scores(network: nn.Module, images: Tensor) -> Tensor:
    scores = run_on(network, images)
    if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != len(images):
        saw = f"of shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
        what = f"the output is {saw}, and top-1 and top-5 need (n, classes)"
        raise ModelError(f"cannot evaluate: {what}; give a module whose forward returns these alone")
    return scores


def _count(scores: Tensor, labels: Tensor, title: str) -> Tensor:
    """Return how many decisions are right, and right among five."""
    classes = scores.shape[1]
    low, high = labels.aminmax() if len(labels) else (0, 0)
    if low < 0 or high >= classes:
        wrong = int(low) if low < 0 else int(high)
        raise DataError(f"cannot evaluate: a label is {wrong}, the model has outputs 0 to {classes - 1}; check {title}")
    best = scores.topk(min(5, classes), dim=1).indices
    found = best == labels.to(best)[:, None]
    return torch.stack([found[:, 0].sum(), found.any(1).sum()]).cpu()
