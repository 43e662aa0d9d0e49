"""What is measured of segmentation and detection, by torchmetrics, and how often two networks decide alike."""

import abc
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

from torch import Tensor, nn

from binarize.errors import DataError, ModelError, NoKernelError
from binarize.layers.halves import as_taken
from binarize.scenes import VOID

__all__ = [
    "DetectionEvaluation",
    "Judge",
    "JudgeOfBoxes",
    "JudgeOfMasks",
    "SegmentationEvaluation",
    "run_on",
    "scores_of_pixels",
]

SURE = 0.5  # score from which a detection counts as a decision
SAME = 0.5  # overlap from which two boxes are one object
WRAPPED = "out"  # where the segmentation networks of torchvision keep their scores


@final
@dataclass(frozen=True)
class SegmentationEvaluation:
    """What was measured of a segmentation network, as fractions in [0, 1].

    Attributes:
        miou: Intersection over union of each class over the whole set, averaged over the classes that occur.
        pixel_accuracy: Of the pixels with a class, those decided right.
        class_accuracy: The same for each class, averaged over the classes that occur.
        classes: Intersection over union by class.
        samples: How many images were seen.
        agreement: Of all pixels, those where the teacher decides the same; None without a teacher.
    """

    miou: float
    pixel_accuracy: float
    class_accuracy: float
    classes: Mapping[str, float]
    samples: int
    agreement: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON; ``agreement`` only if there was a teacher."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def figures(self) -> dict[str, float]:
        """Return what a run of fine-tuning keeps of each epoch."""
        return {"miou": self.miou, "pixel_accuracy": self.pixel_accuracy}

    def rows(self) -> list[tuple[str, str]]:
        """Return the table as text."""
        return [
            ("mIoU", f"{self.miou:.2%}"),
            ("pixel accuracy", f"{self.pixel_accuracy:.2%}"),
            ("class accuracy", f"{self.class_accuracy:.2%}"),
            *((f"IoU of {name}", f"{value:.2%}") for name, value in self.classes.items()),
            *_agreement_row(self.agreement, "pixels decided as by the teacher"),
            ("samples", str(self.samples)),
        ]


@final
@dataclass(frozen=True)
class DetectionEvaluation:
    """What was measured of a detector, as fractions in [0, 1].

    Attributes:
        map: COCO's mean average precision over overlaps of 0.5 to 0.95.
        map50: At an overlap of 0.5.
        map75: At an overlap of 0.75.
        recall: COCO's mean recall with at most 100 detections per image.
        classes: Mean average precision by class.
        samples: How many images were seen.
        agreement: Twice the detections that network and teacher share over the detections of both, those of a score of
            at least 0.5; shared are two of one class that overlap by at least 0.5. None without a teacher.
    """

    map: float
    map50: float
    map75: float
    recall: float
    classes: Mapping[str, float]
    samples: int
    agreement: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON; ``agreement`` only if there was a teacher."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def figures(self) -> dict[str, float]:
        """Return what a run of fine-tuning keeps of each epoch."""
        return {"map": self.map, "map50": self.map50}

    def rows(self) -> list[tuple[str, str]]:
        """Return the table as text."""
        return [
            ("mAP", f"{self.map:.2%}"),
            ("mAP at 0.5", f"{self.map50:.2%}"),
            ("mAP at 0.75", f"{self.map75:.2%}"),
            ("recall at 100", f"{self.recall:.2%}"),
            *((f"mAP of {name}", f"{value:.2%}") for name, value in self.classes.items()),
            *_agreement_row(self.agreement, "detections shared with the teacher"),
            ("samples", str(self.samples)),
        ]


def _agreement_row(agreement: float | None, words: str) -> list[tuple[str, str]]:
    return [] if agreement is None else [(words, f"{agreement:.2%}")]


class Judge(abc.ABC):
    """Compares what networks give with what is right, batch by batch."""

    @abc.abstractmethod
    def add(self, networks: Sequence[nn.Module], images: Any, targets: Any) -> int:
        """Run the network, and its teacher after it, on one batch; return how many images it had."""

    @abc.abstractmethod
    def result(self, samples: int, *, compared: bool) -> Any:
        """Return what was measured on so many images; ``compared`` if there was a teacher."""


def _metrics(what: str) -> Any:
    try:
        return importlib.import_module(what)
    except ImportError:
        remedy = "run pip install 'binarize[scenes]'"
        raise DataError(f"cannot evaluate: torchmetrics is not installed, which measures scenes; {remedy}") from None


@final
class JudgeOfMasks(Judge):
    """Of segmentation: networks that map ``(n, c, h, w)`` to ``(n, classes, h, w)``, alone or as ``out`` of a dict.

    Args:
        classes: names; a network of more outputs decides among the first so many. Empty for all outputs.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self._counts: Any = None
        self._same = self._pixels = 0

    def add(self, networks: Sequence[nn.Module], images: Any, targets: Any) -> int:
        """Count one batch."""
        decided = [self._decide(network, images, targets) for network in networks]
        classes = self.classes
        low, high = _ends(targets)
        if low < 0 or high >= len(classes):
            wrong = low if low < 0 else high
            what = f"a mask holds {wrong}, there are classes 0 to {len(classes) - 1}"
            raise DataError(f"cannot evaluate: {what}; pixels without a class are {VOID}")
        self._counts.update(decided[0].cpu(), targets.cpu())
        self._same += int((decided[0] == decided[-1]).sum())
        self._pixels += targets.numel()
        return len(images)

    def _decide(self, network: nn.Module, images: Tensor, masks: Tensor) -> Tensor:
        scores = scores_of_pixels(run_on(network, images))
        if scores is None or scores.shape[0] != len(images) or scores.shape[2:] != masks.shape[1:]:
            saw = "no map of scores" if scores is None else f"of shape {tuple(scores.shape)}"
            wanted = f"(n, classes, {masks.shape[1]}, {masks.shape[2]})"
            raise ModelError(f"cannot evaluate: the output is {saw}; masks need {wanted}, alone or as {WRAPPED!r}")
        if self._counts is None:
            self.classes = self.classes or tuple(f"class {index}" for index in range(scores.shape[1]))
            kind = _metrics("torchmetrics.classification").MulticlassConfusionMatrix
            self._counts = kind(len(self.classes), ignore_index=VOID, validate_args=False)
        return scores[:, : len(self.classes)].argmax(1)

    def result(self, samples: int, *, compared: bool) -> SegmentationEvaluation:
        """Return the fractions, from the counts of right and wrong pixels over all images."""
        counts = self._counts.compute().double()
        right, truth, decided = counts.diag(), counts.sum(1), counts.sum(0)
        union = truth + decided - right
        ious, met = right / union.clamp_min(1), union > 0
        names = {name: float(iou) for name, iou, is_met in zip(self.classes, ious, met, strict=True) if is_met}
        return SegmentationEvaluation(
            miou=float(ious[met].mean()),
            pixel_accuracy=float(right.sum() / truth.sum().clamp_min(1)),
            class_accuracy=float((right / truth.clamp_min(1))[truth > 0].mean()),
            classes=names,
            samples=samples,
            agreement=self._same / self._pixels if compared else None,
        )


def scores_of_pixels(output: Any) -> Tensor | None:
    """Return the map of scores ``(n, classes, h, w)`` in what a segmentation network gives, or None."""
    found = output.get(WRAPPED) if isinstance(output, Mapping) else output
    return found if isinstance(found, Tensor) and found.dim() == 4 else None


def _ends(masks: Tensor) -> tuple[int, int]:
    real = masks[masks != VOID]
    return (int(real.min()), int(real.max())) if len(real) else (0, 0)


@final
class JudgeOfBoxes(Judge):
    """Of detection: networks that map a list of images to a list of dicts with boxes, labels and scores.

    Args:
        classes: names by label; empty to name classes by their number.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        kind = _metrics("torchmetrics.detection").MeanAveragePrecision
        try:
            self._precision = kind(class_metrics=True, backend="pycocotools")
        except ModuleNotFoundError:
            remedy = "run pip install 'binarize[scenes]'"
            raise DataError(f"cannot evaluate: pycocotools is not installed, which measures boxes; {remedy}") from None
        self._precision.warn_on_many_detections = False
        self._shared = self._either = 0

    def add(self, networks: Sequence[nn.Module], images: Any, targets: Any) -> int:
        """Take the detections of one batch in."""
        found = [_detections(network, images) for network in networks]
        truth = [{key: item[key].cpu() for key in ("boxes", "labels", "iscrowd") if key in item} for item in targets]
        self._precision.update(found[0], truth)
        for ours, theirs in zip(found[0], found[-1], strict=True):
            shared, either = _shared(ours, theirs)
            self._shared, self._either = self._shared + shared, self._either + either
        return len(images)

    def result(self, samples: int, *, compared: bool) -> DetectionEvaluation:
        """Return COCO's figures; what cannot be measured, a class without an object, is left out."""
        found = self._precision.compute()
        pairs = zip(found["classes"].reshape(-1).tolist(), found["map_per_class"].reshape(-1).tolist(), strict=True)
        known = {self._name(label): value for label, value in pairs if value >= 0}
        agreement = 2 * self._shared / self._either if self._either else 1.0
        mean, half, strict, recall = (max(float(found[key]), 0.0) for key in ("map", "map_50", "map_75", "mar_100"))
        return DetectionEvaluation(mean, half, strict, recall, known, samples, agreement if compared else None)

    def _name(self, label: int) -> str:
        named = self.classes[label] if 0 <= label < len(self.classes) else ""
        return named or f"class {label}"


def _detections(network: nn.Module, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    found = run_on(network, list(images))
    keys = ("boxes", "scores", "labels")
    if not isinstance(found, Sequence) or not all(isinstance(x, Mapping) and set(keys) <= set(x) for x in found):
        what = f"the output is a {type(found).__name__}"
        raise ModelError(f"cannot evaluate: {what}; boxes need a list of dicts with {', '.join(keys)}")
    return [{key: item[key].detach().cpu() for key in keys} for item in found]


def _shared(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return how many sure detections two networks share, matched one to one by overlap, and how many both have."""
    boxes = importlib.import_module("torchvision.ops.boxes")
    sure = [{key: value[item["scores"] >= SURE] for key, value in item.items()} for item in (ours, theirs)]
    counts = [len(item["labels"]) for item in sure]
    if not all(counts):
        return 0, sum(counts)
    overlap = boxes.box_iou(sure[0]["boxes"], sure[1]["boxes"])
    overlap = overlap * (sure[0]["labels"].unsqueeze(1) == sure[1]["labels"].unsqueeze(0))
    shared = 0
    while overlap.max() >= SAME:
        row, column = divmod(int(overlap.argmax()), overlap.shape[1])
        overlap[row], overlap[:, column] = 0, 0
        shared += 1
    return shared, sum(counts)


def run_on(network: nn.Module, images: Any) -> Any:
    """Return what ``network`` gives for a batch, or raise `ModelError` if its images do not fit."""
    if isinstance(images, Tensor):
        images = as_taken(network, images)
    try:
        return network(images)
    except NoKernelError:  # says itself what was tried, and is not about the images
        raise
    except (RuntimeError, TypeError, AttributeError) as error:  # what torch raises for inputs that do not fit
        if isinstance(images, list):
            what = "the data is for detection, and the network takes no list of images"
            raise ModelError(f"cannot evaluate: {what}; give a detector, or data with labels or masks") from error
        if not isinstance(error, RuntimeError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        shape = "x".join(map(str, images[0].shape))
        remedy = "give images of as many channels as it takes" if "channels" in reason else "resize them"
        raise ModelError(f"cannot evaluate: images of {shape} do not fit the model ({reason}); {remedy}") from error
