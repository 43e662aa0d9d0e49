"""Top-1 and top-5 accuracy, and how often a network decides as its teacher does."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from binarize.errors import DataError, ModelError

__all__ = ["Evaluation", "evaluate"]


@final
@dataclass(frozen=True)
class Evaluation:
    """What was measured, as fractions in [0, 1].

    Attributes:
        top1: Of the samples, those whose label has the largest output.
        top5: Of the samples, those whose label is among the five largest outputs (all, with fewer classes).
        samples: How many were seen.
        agreement: Of the samples, those where the teacher's largest output is the same one; None without a teacher.
    """

    top1: float
    top5: float
    samples: int
    agreement: float | None = None

    def to_dict(self) -> dict[str, float | int]:
        """Return the fields for JSON; ``agreement`` only if there was a teacher."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    teacher: nn.Module | None = None,
    progress: Callable[[int], object] | None = None,
) -> Evaluation:
    """Run a classifier over labelled images, in eval mode and without gradients.

    Args:
        model: Maps ``(n, c, h, w)`` to ``(n, classes)``. Its train or eval mode is restored afterwards.
        loader: Yields pairs of images ``(n, c, h, w)`` and labels ``(n,)``.
        teacher: A second classifier for the same images, for the agreement.
        progress: Called after each batch with the number of images in it.

    Raises:
        DataError: There are no samples, no labels, or a label is no output of the model.
        ModelError: The images do not fit the model, or its output is no table of class scores.
    """
    hits = torch.zeros(3, dtype=torch.int64)
    samples = 0
    networks = [model] if teacher is None else [model, teacher]
    modes = {module: module.training for network in networks for module in network.modules()}
    try:
        for network in networks:
            network.eval()
        with torch.inference_mode():
            for images, labels in map(_pair, loader):
                outputs = [_scores(network, images) for network in networks]
                hits += _count(outputs, labels)
                samples += len(images)
                if progress is not None:
                    progress(len(images))
    finally:
        for module, mode in modes.items():
            module.training = mode
    if samples == 0:
        raise DataError("cannot evaluate: the data has no samples; give at least one labelled image")
    top1, top5, same = (count / samples for count in hits.tolist())
    return Evaluation(top1, top5, samples, None if teacher is None else same)


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    images, labels = batch if isinstance(batch, tuple | list) and len(batch) == 2 else (batch, None)
    if not isinstance(labels, Tensor):
        raise DataError("cannot evaluate: the data has no labels; give images with labels")
    return images, labels


def _scores(network: nn.Module, images: Tensor) -> Tensor:
    try:
        scores = network(images)
    except RuntimeError as error:  # what torch raises for shapes that do not fit
        reason = str(error).splitlines()[0][:200]
        shape = "x".join(map(str, images.shape[1:]))
        raise ModelError(f"cannot evaluate: images of {shape} do not fit the model ({reason}); resize them") from error
    if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != len(images):
        saw = f"of shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
        raise ModelError(f"cannot evaluate: the output is {saw}; top-1 and top-5 need (n, classes), so a classifier")
    return scores


def _count(outputs: list[Tensor], labels: Tensor) -> Tensor:
    """Return how many decisions are right, right among five, and the teacher's."""
    scores = outputs[0]
    classes = scores.shape[1]
    low, high = labels.aminmax() if len(labels) else (0, 0)
    if low < 0 or high >= classes:
        wrong = int(low) if low < 0 else int(high)
        raise DataError(
            f"cannot evaluate: a label is {wrong}, the model has outputs 0 to {classes - 1}; check the data"
        )
    best = scores.topk(min(5, classes), dim=1).indices
    found = best == labels.to(best)[:, None]
    same = outputs[-1].argmax(1) == scores.argmax(1)
    return torch.stack([found[:, 0].sum(), found.any(1).sum(), same.sum()]).cpu()
