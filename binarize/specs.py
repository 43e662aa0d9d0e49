"""Data specs: ``npz:FILE`` and its relatives, in parts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from binarize.errors import DataError, nearest

__all__ = ["FORMS", "DataSpec"]

KINDS = ("imagefolder", "npz", "torchvision", "digits", "camvid", "bccd", "voc", "coco")
FORMS = "imagefolder:DIR, npz:FILE, torchvision:CIFAR10:DIR, digits, camvid:FILE, bccd:FILE, voc:DIR or coco:DIR"
# Sets of torchvision that hold their images in memory.
SETS = ("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "SVHN")
PARTS = ("train", "val", "trainval", "test")
TASKS = {"camvid": "segmentation", "bccd": "detection", "voc": "detection", "coco": "detection"}


@final
@dataclass(frozen=True)
class DataSpec:
    """A data spec in parts.

    Attributes:
        kind: One of `KINDS`.
        path: The folder or file; empty for digits.
        name: The set's name, for torchvision.
        split: "train", "test" or "val"; "all" for the whole of digits.
    """

    kind: str
    path: str = ""
    name: str = ""
    split: str = "test"

    @classmethod
    def parse(cls, text: str) -> "DataSpec":
        """Read ``KIND:PLACE`` or ``KIND:PLACE:PART``; see `FORMS`.

        ``digits`` alone is all 1797 images; its train part is three quarters of them, drawn once and for all.
        A torchvision set without a part is its test part. ``voc:DIR`` and ``coco:DIR`` take train, val, trainval or
        test, and are val where none is named.

        Raises:
            DataError: The text is none of these.
        """
        kind, _, rest = text.partition(":")
        if kind not in KINDS:
            raise DataError(f"cannot read the data spec {text!r}{nearest(kind, KINDS)}; write {FORMS}")
        if kind == "digits":
            return cls(kind, split=_split(rest or "all", ("all", "train", "test"), text))
        if kind in ("voc", "coco"):
            return cls._in_parts(kind, rest, text, PARTS, "val")
        if kind == "torchvision":
            name, _, place = rest.partition(":")
            if name not in SETS:
                raise DataError(
                    f"cannot read the data spec {text!r}{nearest(name, SETS)}; the sets are {', '.join(SETS)}"
                )
            return cls._in_parts(kind, place, text, ("train", "test"), "test", name=name)
        return cls._at(kind, rest, text)

    @classmethod
    def _in_parts(
        cls, kind: str, place: str, text: str, parts: Sequence[str], default: str, **fields: str
    ) -> "DataSpec":
        """Read a place that may end in ``:PART``."""
        folder, _, part = place.rpartition(":")
        if folder and part in parts:
            return cls._at(kind, folder, text, split=part, **fields)
        return cls._at(kind, place, text, split=default, **fields)

    @classmethod
    def _at(cls, kind: str, path: str, text: str, **fields: str) -> "DataSpec":
        if not path:
            raise DataError(f"cannot read the data spec {text!r}: it names no place; write {FORMS}")
        return cls(kind, path, **fields)

    @property
    def title(self) -> str:
        """The spec as an error names it."""
        return ":".join(part for part in (self.kind, self.name, self.path) if part)

    @property
    def task(self) -> str:
        """What the data is for: "classification", "segmentation" or "detection"."""
        return TASKS.get(self.kind, "classification")

    @property
    def is_cut_to_shape(self) -> bool:
        """Whether images are cut or resized to the model's input instead of being used as large as they are."""
        return self.kind == "imagefolder"

    @property
    def folder(self) -> Path:
        """The place as a path."""
        return Path(self.path)


def _split(text: str, known: Sequence[str], spec: str) -> str:
    if text not in known:
        raise DataError(f"cannot read the data spec {spec!r}{nearest(text, known)}; the parts are {', '.join(known)}")
    return text
