"""Image files in folders: read by several threads, cut to one size in the middle, or at random for training.

A file that has that size already is taken as it is: whoever wrote it cut it.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from binarize.augment import RandomBoxes
from binarize.errors import DataError
from binarize.pixels import Pixels

__all__ = ["FolderReader", "Folders", "usual_shape"]

USUAL = 224  # height and width that photos are cut to; files that are all of one size up to it keep theirs
LOOKED_AT = 16
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


@final
class FolderReader:
    """Reads files as ``(n, c, h, w)``.

    Attributes:
        files: in the order of their indices.
        shape: ``(c, h, w)``.
    """

    def __init__(self, files: Sequence[Path], shape: Sequence[int], pixels: Pixels, workers: int, is_cut: bool) -> None:
        self.files, self.shape = files, tuple(shape)
        self._pixels, self._is_cut = pixels, is_cut
        self._threads = ThreadPoolExecutor(workers) if workers else None  # decoding lets go of Python's lock
        self._image: Any = importlib.import_module("PIL.Image")
        v2 = importlib.import_module("torchvision.transforms.v2")
        self._resized_crop: Callable[..., Any] = v2.functional.resized_crop
        self._to_tensor: Callable[..., Tensor] = v2.functional.pil_to_tensor
        size = list(self.shape[1:])
        # The usual evaluation transform: short side to 256 for a crop of 224.
        self._middle: Callable[..., Any] = v2.Compose(
            [v2.Resize(round(min(size) / 0.875), antialias=True), v2.CenterCrop(size)]
        )

    def __call__(self, indices: Sequence[int], generator: torch.Generator | None) -> Tensor:
        """Return the images at ``indices``; with a generator, for training, each cut at random and maybe mirrored."""
        boxes = RandomBoxes(len(indices), generator) if generator is not None and self._is_cut else None

        def read(place: int) -> Tensor:
            return self._read(self.files[indices[place]], boxes, place)

        places = range(len(indices))
        pictures = list(map(read, places) if self._threads is None else self._threads.map(read, places))
        return self._pixels(torch.stack(pictures) / 255.0)

    def _read(self, path: Path, boxes: RandomBoxes | None, place: int) -> Tensor:
        try:
            with self._image.open(path) as picture:
                image = picture.convert("L" if self.shape[0] == 1 else "RGB")
        except OSError as error:
            raise DataError(f"cannot read the image {str(path)!r}: {error}; remove it or write it again") from error
        if boxes is None:
            has_size = (image.height, image.width) == self.shape[1:]
            return self._to_tensor(image if has_size else self._middle(image))
        box = boxes.box(place, image.height, image.width)
        pixels = self._to_tensor(self._resized_crop(image, *box, list(self.shape[1:]), antialias=True))
        return pixels.flip(2) if boxes.mirrored[place] else pixels


@final
@dataclass(frozen=True)
class Folders:
    """The image files of a folder, by class where it has folders for them.

    Attributes:
        files: all, class by class.
        labels: the class of each, a position in ``classes``; None where there are no folders for classes.
        classes: names of the folders, sorted; those that are hidden are none.
    """

    files: tuple[Path, ...]
    labels: tuple[int, ...] | None
    classes: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path) -> "Folders":
        """Find the images of ``folder/class/...``, or those of ``folder`` itself.

        Raises:
            DataError: there are none.
        """
        if not folder.is_dir():
            raise DataError(f"cannot use imagefolder:{folder}: there is no such folder; check the path")
        places = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        groups = [sorted(_pictures(place)) for place in places]
        if any(groups):
            pairs = [(file, label) for label, group in enumerate(groups) for file in group]
            files, labels = zip(*pairs, strict=True)
            return cls(files, labels, tuple(place.name for place in places))
        flat = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
        if not flat:
            raise DataError(f"cannot use imagefolder:{folder}: it holds no images; put them in one folder per class")
        return cls(tuple(flat), None, ())


def _pictures(place: Path) -> Iterator[Path]:
    return (path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES)


def usual_shape(files: Sequence[Path]) -> tuple[int, int, int]:
    """Return what images are cut to where nobody says: ``(3, h, w)`` of files alike and small, else of photos.

    Args:
        files: of which some, from everywhere in the sequence, are looked at.
    """
    image = importlib.import_module("PIL.Image")
    sizes = set()
    for file in files[:: -(-len(files) // LOOKED_AT)]:
        with contextlib.suppress(OSError), image.open(file) as picture:  # who reads it whole says what is wrong
            sizes.add(picture.size)
    width, height = sizes.pop() if len(sizes) == 1 else (USUAL, USUAL)
    return (3, height, width) if max(width, height) <= USUAL else (3, USUAL, USUAL)
