"""Data specs such as ``npz:FILE`` become batches of normalised images, with labels where there are some."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from binarize.arrays import read_arrays
from binarize.augment import PRESETS, Augment, flip, shift_and_flip
from binarize.errors import DataError, nearest
from binarize.imagefolder import FolderReader, Folders, usual_shape
from binarize.pixels import IMAGENET_MEAN, IMAGENET_STD, Pixels
from binarize.scenefiles import open_scenes
from binarize.scenes import SceneReader
from binarize.specs import DataSpec

__all__ = ["DataSpec", "Images", "calibration_batches", "load_data", "random_images"]

Fetch = Callable[[Sequence[int], torch.Generator | None], Any]
"""Returns the images at some indices, or a pair with their targets; with a generator they may be changed at random."""
IMAGE_KEYS = ("images", "image", "pixel_values", "inputs", "input", "x")
CHANGES: dict[str, Augment] = {"cifar": shift_and_flip, "flip": flip}
# What can be changed at random, by the data's kind or else its task; "none" can always be asked for.
AUGMENTS = {
    "imagefolder": ("cifar", "flip", "imagenet"),
    "classification": ("cifar", "flip"),
    "segmentation": ("flip", "zoom"),
    "detection": ("flip",),
}


@final
class Images:
    """Batches of images, as often as one iterates: pairs of float32 ``(n, c, h, w)`` and int64 ``(n,)`` or None.

    What batches of segmentation and detection are: see `binarize.scenes`. With ``shuffle`` each pass has its own order,
    the same from run to run for the same seed.

    Attributes:
        labels: of all images, for classification.
        shape: ``(c, h, w)`` of the first image.
        task: "classification", "segmentation" or "detection".
        classes: names of the classes where the data tells them, else empty; of detection the first is the background,
            of image files those of their folders.
        pixels: how they were normalised.
        title: how an error names the data.
        prepared: what was asked for that changes the images, by name: what a run that goes on has to have again.
        augment: changes each batch at random, or None; see `binarize.augment`.
        workers: 0, or above to make the next batch while this one is used.
    """

    def __init__(
        self,
        fetch: Fetch,
        labels: Tensor | None,
        order: Sequence[int],
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        augment: Augment | None = None,
        workers: int = 0,
        task: str = "classification",
        classes: tuple[str, ...] = (),
        pixels: Pixels | None = None,
        title: str = "the data",
        prepared: Mapping[str, str] | None = None,
    ) -> None:
        self.title, self.prepared = title, dict(prepared or {})
        self.labels = None if labels is None else labels[torch.tensor(order)]
        self.task, self.classes, self.pixels = task, classes, pixels
        self.shape: tuple[int, ...] = _shape_of_first(fetch(order[:1], None))
        self.batch_size, self.augment, self.workers = batch_size, augment, workers
        self._fetch, self._order, self._shuffle, self._seed = fetch, torch.tensor(order), shuffle, seed
        self._epoch, self._index, self._count = 0, 0, 1

    @property
    def samples(self) -> int:
        """How many images one pass yields."""
        return len(self._order)

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be number ``epoch``: its order and its changes follow from that and the seed alone."""
        self._epoch = epoch

    def share(self, index: int, count: int) -> "Images":
        """Return the part of process ``index`` of ``count``: every count-th batch of the same order.

        Where batches do not come out even, the first images are seen once more, so that all parts are equally long.
        """
        part = copy.copy(self)
        part._index, part._count = index, count
        return part

    def __len__(self) -> int:
        return math.ceil(self.samples / (self.batch_size * self._count))

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        generator = torch.Generator().manual_seed((self._seed << 24) + self._epoch)
        self._epoch += 1
        places = torch.arange(self.samples)
        if self._shuffle:
            places = torch.randperm(self.samples, generator=generator)
        if self._count > 1:
            even = len(self) * self.batch_size * self._count
            places = places.repeat(math.ceil(even / self.samples))[:even]
        chunks = places.split(self.batch_size)[self._index :: self._count]
        return self._ahead(chunks, generator) if self.workers else (self._batch(chunk, generator) for chunk in chunks)

    def _ahead(self, chunks: Sequence[Tensor], generator: torch.Generator) -> Iterator[tuple[Any, Any]]:
        """Yield the batches, each made while the one before is in use."""
        with ThreadPoolExecutor(1) as maker:  # one, so that random numbers are drawn in order
            coming = maker.submit(self._batch, chunks[0], generator)
            for chunk in chunks[1:]:
                now, coming = coming, maker.submit(self._batch, chunk, generator)
                yield now.result()
            yield coming.result()

    def _batch(self, chunk: Tensor, generator: torch.Generator) -> tuple[Any, Any]:
        images = self._fetch(self._order[chunk].tolist(), generator)
        if isinstance(images, tuple):  # with masks or boxes, which the reader changes alike
            return images
        images = images if self.augment is None else self.augment(images, generator)
        return images, None if self.labels is None else self.labels[chunk]


def _shape_of_first(fetched: Any) -> tuple[int, ...]:
    images = fetched[0] if isinstance(fetched, tuple) else fetched
    return tuple(images[0].shape)


def load_data(
    spec: str | DataSpec,
    *,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    input_shape: Sequence[int] | None = None,
    batch_size: int = 32,
    limit: int | None = None,
    shuffle: bool = False,
    seed: int = 0,
    augment: str = "none",
    workers: int = 0,
    channels: str = "rgb",
) -> Images:
    """Open the data that ``spec`` names.

    Args:
        spec: See `DataSpec.parse`.
        mean: Per channel or of all, subtracted after bytes were divided by 255. For imagefolder, ImageNet's by default.
        std: Per channel or of all, divided by after that.
        input_shape: ``(c, h, w)`` of the model. Image files of another size are resized and cropped to it, as for
            ImageNet, scenes with masks or boxes resized; arrays must have it. By default image files that are all of
            one size up to 224x224 (some are looked at) keep it, others are cut to 224x224.
        batch_size: Images per batch; the last one may be smaller.
        limit: Use this many images only: the first, or with ``shuffle`` a seeded choice.
        shuffle: Yield in a new seeded order at each pass.
        seed: For both.
        augment: Random changes for training: "cifar" (shifts, flips), "imagenet" (crops of files, flips), "flip",
            "zoom" (of segmentation: a part is enlarged, flips) or "none".
        workers: Threads that read image files; with any, the next batch is made while one is used.
        channels: "rgb", or "bgr" for a network that was trained on B, G, R; ``mean`` and ``std`` are in that order.

    Raises:
        DataError: The data is missing, empty, malformed or of another shape than the model's input.
    """
    spec = DataSpec.parse(spec) if isinstance(spec, str) else spec
    if batch_size < 1 or (limit is not None and limit < 1):
        raise DataError(f"cannot use {spec.title}: batches of {batch_size}, at most {limit} images; give at least 1")
    _require_augment(spec, augment)
    fetch: Fetch
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    shape = input_shape
    if spec.kind == "imagefolder":
        found = Folders.read(spec.folder)
        shape = input_shape or usual_shape(found.files)
        labels, count = None if found.labels is None else torch.tensor(found.labels), len(found.files)
        classes = found.classes
        normal = _of_photos(mean, std, shape[0], channels)
        fetch = FolderReader(found.files, shape, normal, workers, augment == "imagenet")
    elif spec.task != "classification":
        scenes = open_scenes(spec)
        classes, count = scenes.classes, scenes.count
        normal = Pixels.of(mean, std, 3, channels)
        fetch = SceneReader(scenes, normal, input_shape, augment, workers)
    else:
        pixels, labels = read_arrays(spec)
        shape = pixels.shape[1:]
        normal = Pixels.of(mean, std, pixels.shape[1], channels)
        fetch, count = _fetcher(pixels, normal), len(pixels)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=generator).tolist() if shuffle else list(range(count))
    size = ",".join(map(str, shape or ())) or "their own"
    prepared = {"augment": augment, "input_shape": size, **normal.named()}
    images = Images(
        fetch, labels, order[:limit], batch_size, shuffle, seed, CHANGES.get(augment), workers, spec.task, classes,
        normal, spec.title, prepared,
    )  # fmt: skip
    if input_shape is not None and images.shape != tuple(input_shape):
        have, want = ("x".join(map(str, shape)) for shape in (images.shape, input_shape))
        remedy = f"resize the images, or give --input-shape {','.join(map(str, images.shape))}"
        if images.shape[0] != input_shape[0]:  # which no other --input-shape mends
            remedy = f"take data of {input_shape[0]} channels, or a model for {images.shape[0]}"
        raise DataError(f"cannot use {spec.title}: its images are {have}, the model takes {want}; {remedy}")
    return images


def random_images(shape: Sequence[int], n: int, seed: int = 0) -> Tensor:
    """Return ``(n, *shape)`` standard normal noise: calibration without data."""
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def calibration_batches(data: Tensor | Iterable[Any], samples: int) -> Iterator[Tensor | list[Tensor]]:
    """Yield batches of images until ``samples`` images were given; labels are dropped.

    Args:
        data: One tensor ``(n, c, h, w)``, or an iterable of tensors, of pairs whose first is a tensor or, for
            detection, a list of images ``(c, h, w)``, or of dicts that hold one under ``images``, ``pixel_values``,
            ``inputs`` or ``x``.
        samples: At most so many images.

    Raises:
        DataError: There is no image, or a batch holds no tensor.
    """
    left = samples
    for batch in data.split(32) if isinstance(data, Tensor) else data:
        images = _images_of(batch)[:left]
        if len(images):
            yield images
        left -= len(images)
        if left <= 0:
            return
    if left == samples:
        raise DataError("cannot calibrate: the data yields no images; give a loader or an iterable that is not used up")


def _images_of(batch: Any) -> Tensor | list[Tensor]:
    found = batch
    if isinstance(batch, dict):
        found = next((batch[key] for key in IMAGE_KEYS if key in batch), None)
    elif isinstance(batch, tuple | list) and batch:
        found = batch[0]
    if isinstance(found, tuple | list) and found and all(isinstance(x, Tensor) and x.dim() == 3 for x in found):
        return list(found)
    if not isinstance(found, Tensor):
        what = f"a dict with the keys {', '.join(map(str, batch))}" if isinstance(batch, dict) else type(batch).__name__
        raise DataError(f"cannot calibrate: a batch is {what}; yield tensors, (images, labels) or dicts with 'images'")
    return found if found.is_floating_point() else found.float()


def _fetcher(images: NDArray[Any], pixels: Pixels) -> Fetch:
    divisor = 255.0 if images.dtype == np.uint8 else 1.0

    def fetch(indices: Sequence[int], generator: torch.Generator | None) -> Tensor:
        chosen = torch.from_numpy(np.ascontiguousarray(images[np.asarray(indices)], dtype=np.float32))
        return pixels(chosen / divisor)

    return fetch


def _of_photos(
    mean: Sequence[float] | float | None, std: Sequence[float] | float | None, channels: int, order: str
) -> Pixels:
    """Return how photos are normalised: by ImageNet's statistics unless others are given."""
    back = -1 if order == "bgr" else 1
    if channels == 3:
        mean = IMAGENET_MEAN[::back] if mean is None else mean
        std = IMAGENET_STD[::back] if std is None else std
    return Pixels.of(mean, std, channels, order)


def _require_augment(spec: DataSpec, augment: str) -> None:
    if augment not in PRESETS:
        known = ", ".join(PRESETS)
        raise DataError(f"cannot augment by {augment!r}{nearest(augment, PRESETS)}; the presets are {known}")
    if augment == "imagenet" and spec.task == "classification" and spec.kind != "imagefolder":
        what = "random crops are cut from image files, and these images have one size"
        raise DataError(f"cannot use {spec.title} with 'imagenet': {what}; use 'cifar'")
    fitting = AUGMENTS.get(spec.kind, AUGMENTS[spec.task])
    if augment not in ("none", *fitting):
        raise DataError(f"cannot use {spec.title} with {augment!r}: it is for {spec.task}; use {' or '.join(fitting)}")
