"""Random changes of training images, a whole batch at a time, so that reading data never holds up a step."""

import math
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["PRESETS", "Augment", "RandomBoxes", "flip", "shift_and_flip"]

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""Changes a batch ``(n, c, h, w)`` at random."""

PRESETS = ("none", "cifar", "imagenet", "flip", "zoom")

SHIFT = 4
AREA, RATIO, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability one half."""
    chosen = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(chosen.to(images.device).reshape(-1, 1, 1, 1), images.flip(3), images)


def shift_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by up to 4 pixels in both directions, zeros coming in, and mirror one half of them.

    The usual augmentation of CIFAR-10 (He et al., arXiv:1512.03385, section 4.2). Zero is the mean of images that were
    normalised.
    """
    n, c, h, w = images.shape
    top, left = torch.randint(0, 2 * SHIFT + 1, (2, n, 1), generator=generator).to(images.device)
    padded = F.pad(images, (SHIFT, SHIFT, SHIFT, SHIFT))
    rows = (top + torch.arange(h, device=images.device)).reshape(n, 1, h, 1).expand(n, c, h, w + 2 * SHIFT)
    columns = (left + torch.arange(w, device=images.device)).reshape(n, 1, 1, w).expand(n, c, h, w)
    return flip(padded.gather(2, rows).gather(3, columns), generator)


@final
class RandomBoxes:
    """Where `torchvision.transforms.v2.RandomResizedCrop` would cut, drawn for many images at once.

    An area of 8 % to all of the image with sides as 3:4 to 4:3; if none of ten fits, the largest of those sides in the
    middle. One row of random numbers per image: so what is drawn does not depend on who reads the images when.
    """

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self._area = torch.empty(count, TRIES).uniform_(*AREA, generator=generator)
        self._ratio = torch.empty(count, TRIES).uniform_(*map(math.log, RATIO), generator=generator).exp()
        self._place = torch.rand(count, TRIES, 2, generator=generator)
        self.mirrored: list[bool] = (torch.rand(count, generator=generator) < 0.5).tolist()

    def box(self, index: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return top, left, height and width of the crop of image ``index``."""
        for area, ratio, (down, right) in zip(
            self._area[index].tolist(), self._ratio[index].tolist(), self._place[index].tolist(), strict=True
        ):
            w = round(math.sqrt(height * width * area * ratio))
            h = round(math.sqrt(height * width * area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
        w = min(width, round(height * RATIO[1]))
        h = min(height, round(width / RATIO[0]))
        return (height - h) // 2, (width - w) // 2, h, w
