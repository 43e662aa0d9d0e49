"""Images with a class per pixel or with boxes: decoded when they are asked for, one batch at a time.

A batch of segmentation is a pair of images ``(n, c, h, w)`` and masks ``(n, h, w)`` int64, `VOID` where nothing
counts. A batch of detection is a pair of lists, as the detectors of torchvision take them: images ``(c, h, w)`` of
their own sizes, and dicts with ``boxes`` ``(m, 4)`` float32 (x1, y1, x2, y2 in pixels), ``labels`` ``(m,)`` int64 from
1 on, 0 being the background, ``iscrowd`` ``(m,)`` int64 and ``image_id``.
"""

import importlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from binarize.errors import DataError
from binarize.pixels import Pixels

__all__ = ["VOID", "Boxes", "SceneReader", "Scenes"]

VOID = 255
"""Mask value of pixels that belong to no class: they cost nothing and are not scored."""

ZOOM = 2.0  # "zoom" enlarges by up to so much


@final
@dataclass(frozen=True)
class Boxes:
    """The objects of one image.

    Attributes:
        boxes: ``(m, 4)`` float32, x1, y1, x2, y2 in pixels.
        labels: ``(m,)`` int64, from 1 on.
        crowd: ``(m,)`` int64, 1 for what counts neither as found nor as missed.
    """

    boxes: Tensor
    labels: Tensor
    crowd: Tensor

    @classmethod
    def of(cls, boxes: Any, labels: Any, crowd: Any = None) -> "Boxes":
        """Take rows in whatever form they come; boxes without an area are left out."""
        corners = torch.as_tensor(np.asarray(boxes, dtype=np.float32).reshape(-1, 4))
        classes = torch.as_tensor(np.asarray(labels, dtype=np.int64).reshape(-1))
        crowds = torch.zeros_like(classes) if crowd is None else torch.as_tensor(np.asarray(crowd, dtype=np.int64))
        real = (corners[:, 2:] > corners[:, :2]).all(1)
        return cls(corners[real], classes[real], crowds.reshape(-1)[real])


@final
@dataclass(frozen=True)
class Scenes:
    """Where scenes come from.

    Attributes:
        task: "segmentation" or "detection".
        count: how many.
        classes: their names; of detection the first is the background.
        picture: gives image i, R, G, B, as Pillow holds it.
        mask: gives the mask of image i ``(h, w)`` uint8; None for detection.
        boxes: gives the objects of image i; None for segmentation.
    """

    task: str
    count: int
    classes: tuple[str, ...]
    picture: Callable[[int], Any]
    mask: Callable[[int], Any] | None = None
    boxes: Callable[[int], Boxes] | None = None


@final
class SceneReader:
    """Makes batches of scenes.

    Args:
        scenes: where they come from.
        pixels: how images are normalised.
        shape: ``(c, h, w)`` that images, masks and boxes are resized to; None to leave sizes as they are.
        augment: "flip" mirrors one half, "zoom" also enlarges a part at random; "none".
        workers: threads that decode.
    """

    def __init__(
        self, scenes: Scenes, pixels: Pixels, shape: Sequence[int] | None, augment: str = "none", workers: int = 0
    ) -> None:
        self.scenes, self.pixels, self.augment = scenes, pixels, augment
        self._size = None if shape is None else (int(shape[1]), int(shape[2]))
        self._threads = ThreadPoolExecutor(workers) if workers else None
        self._image: Any = importlib.import_module("PIL.Image")

    def __call__(self, indices: Sequence[int], generator: torch.Generator | None) -> tuple[Any, Any]:
        """Return images and masks, or images and objects, of the scenes at ``indices``; changed only by a generator."""
        chances = None
        if generator is not None and self.augment != "none":
            chances = torch.rand(len(indices), 4, generator=generator)
        read = self._segmented if self.scenes.mask is not None else self._detected

        def one(place: int) -> tuple[Tensor, Any]:
            return read(indices[place], None if chances is None else chances[place].tolist())

        places = range(len(indices))
        pairs = list(map(one, places) if self._threads is None else self._threads.map(one, places))
        images, targets = [image for image, _ in pairs], [target for _, target in pairs]
        if self.scenes.mask is None:
            return images, targets
        if len({image.shape for image in images}) > 1:
            raise DataError("cannot make a batch: the images have different sizes; give --input-shape to resize them")
        return torch.stack(images), torch.stack(targets)

    def _segmented(self, index: int, chances: Sequence[float] | None) -> tuple[Tensor, Tensor]:
        assert self.scenes.mask is not None
        picture, mask = self.scenes.picture(index), self._image.fromarray(self.scenes.mask(index))
        size = self._size or (picture.height, picture.width)
        box = _window(picture.height, picture.width, chances if self.augment == "zoom" else None)
        picture = self._cut(picture, box, size, self._image.Resampling.BILINEAR)
        mask = self._cut(mask, box, size, self._image.Resampling.NEAREST)
        image, target = self._tensor(picture), torch.from_numpy(np.array(mask, dtype=np.int64))
        if chances is not None and chances[0] < 0.5:
            return image.flip(2), target.flip(1)
        return image, target

    def _detected(self, index: int, chances: Sequence[float] | None) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.scenes.boxes is not None
        picture, found = self.scenes.picture(index), self.scenes.boxes(index)
        height, width = size = self._size or (picture.height, picture.width)
        boxes = found.boxes * torch.tensor([width / picture.width, height / picture.height] * 2)
        image = self._tensor(self._cut(picture, None, size, self._image.Resampling.BILINEAR))
        if chances is not None and chances[0] < 0.5:
            image = image.flip(2)
            boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
        target = {"boxes": boxes, "labels": found.labels, "iscrowd": found.crowd, "image_id": torch.tensor(index)}
        return image, target

    def _tensor(self, picture: Any) -> Tensor:
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).unsqueeze(0)
        return self.pixels(pixels / 255.0)[0].contiguous()

    @staticmethod
    def _cut(picture: Any, box: Sequence[float] | None, size: tuple[int, int], resampling: Any) -> Any:
        """Return the part in ``box`` (left, upper, right, lower), or all, resized to ``size`` (height, width)."""
        if box is None and size == (picture.height, picture.width):
            return picture
        return picture.resize(size[::-1], resampling, box=box)


def _window(height: int, width: int, chances: Sequence[float] | None) -> tuple[float, ...] | None:
    if chances is None:
        return None
    share = ZOOM ** -chances[1]
    left, upper = chances[2] * (1 - share) * width, chances[3] * (1 - share) * height
    return (left, upper, left + share * width, upper + share * height)
