"""Data specs such as ``npz:FILE`` become batches of normalised images, with labels where there are some."""

import copy
import importlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from binarize.augment import PRESETS, Augment, shift_and_flip
from binarize.errors import DataError, nearest
from binarize.imagefolder import FolderReader, image_files

__all__ = ["DataSpec", "Images", "calibration_batches", "load_data", "random_images"]

Fetch = Callable[[Sequence[int], torch.Generator | None], Tensor]
"""Returns the images at some indices; with a generator they may be changed at random."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KINDS = ("imagefolder", "npz", "torchvision", "digits")
# Sets of torchvision that hold their images in memory.
SETS = ("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "SVHN")
IMAGE_KEYS = ("images", "image", "pixel_values", "inputs", "input", "x")
FORMS = "imagefolder:DIR, npz:FILE, torchvision:CIFAR10:DIR or digits"


@final
@dataclass(frozen=True)
class DataSpec:
    """A data spec in parts.

    Attributes:
        kind: "imagefolder", "npz", "torchvision" or "digits".
        path: The folder or file; empty for digits.
        name: The set's name, for torchvision.
        split: "train", "test", or "all" for the whole of digits.
    """

    kind: str
    path: str = ""
    name: str = ""
    split: str = "test"

    @classmethod
    def parse(cls, text: str) -> "DataSpec":
        """Read ``imagefolder:DIR``, ``npz:FILE``, ``torchvision:SET:DIR[:train|test]`` or ``digits[:train|test]``.

        ``digits`` alone is all 1797 images; its train part is three quarters of them, drawn once and for all.
        A torchvision set without a split is its test part.

        Raises:
            DataError: The text is none of these.
        """
        kind, _, rest = text.partition(":")
        if kind not in KINDS:
            raise DataError(f"cannot read the data spec {text!r}{nearest(kind, KINDS)}; write {FORMS}")
        if kind == "digits":
            return cls(kind, split=_split(rest or "all", ("all", "train", "test"), text))
        if kind == "torchvision":
            name, _, place = rest.partition(":")
            if name not in SETS:
                raise DataError(
                    f"cannot read the data spec {text!r}{nearest(name, SETS)}; the sets are {', '.join(SETS)}"
                )
            folder, _, split = place.rpartition(":")
            chosen = split if folder and split in ("train", "test") else "test"
            rest = folder if folder and split == chosen else place
            return cls._at(kind, rest, text, name=name, split=chosen)
        return cls._at(kind, rest, text)

    @classmethod
    def _at(cls, kind: str, path: str, text: str, **fields: str) -> "DataSpec":
        if not path:
            raise DataError(f"cannot read the data spec {text!r}: it names no place; write {FORMS}")
        return cls(kind, path, **fields)


@final
class Images:
    """Batches of images, as often as one iterates: pairs of float32 ``(n, c, h, w)`` and int64 ``(n,)`` or None.

    With ``shuffle`` each pass has its own order, the same from run to run for the same seed.

    Attributes:
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
    ) -> None:
        self.labels = None if labels is None else labels[torch.tensor(order)]
        self.shape: tuple[int, ...] = tuple(fetch(order[:1], None).shape[1:])
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

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
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

    def _ahead(self, chunks: Sequence[Tensor], generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield the batches, each made while the one before is in use."""
        with ThreadPoolExecutor(1) as maker:  # one, so that random numbers are drawn in order
            coming = maker.submit(self._batch, chunks[0], generator)
            for chunk in chunks[1:]:
                now, coming = coming, maker.submit(self._batch, chunk, generator)
                yield now.result()
            yield coming.result()

    def _batch(self, chunk: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        images = self._fetch(self._order[chunk].tolist(), generator)
        images = images if self.augment is None else self.augment(images, generator)
        return images, None if self.labels is None else self.labels[chunk]


def load_data(
    spec: str | DataSpec,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_shape: Sequence[int] | None = None,
    batch_size: int = 32,
    limit: int | None = None,
    shuffle: bool = False,
    seed: int = 0,
    augment: str = "none",
    workers: int = 0,
) -> Images:
    """Open the data that ``spec`` names.

    Args:
        spec: See `DataSpec.parse`.
        mean: Per channel, subtracted after bytes were divided by 255. For imagefolder, ImageNet's by default.
        std: Per channel, divided by after that.
        input_shape: ``(c, h, w)`` of the model. Image files are resized and cropped to it; arrays must have it.
        batch_size: Images per batch; the last one may be smaller.
        limit: Use this many images only: the first, or with ``shuffle`` a seeded choice.
        shuffle: Yield in a new seeded order at each pass.
        seed: For both.
        augment: Random changes for training: "cifar" (shifts, flips), "imagenet" (crops of files, flips) or "none".
        workers: Threads that read image files; with any, the next batch is made while one is used.

    Raises:
        DataError: The data is missing, empty, malformed or of another shape than the model's input.
    """
    spec = DataSpec.parse(spec) if isinstance(spec, str) else spec
    if batch_size < 1 or (limit is not None and limit < 1):
        raise DataError(f"cannot use {_title(spec)}: batches of {batch_size}, at most {limit} images; give at least 1")
    change = _batch_change(spec, augment)
    fetch: Fetch
    if spec.kind == "imagefolder":
        fetch, labels, count = _folder(spec, mean, std, input_shape or (3, 224, 224), workers, augment)
    else:
        pixels, labels = _arrays(spec)
        fetch, count = _fetcher(pixels, mean, std), len(pixels)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=generator).tolist() if shuffle else list(range(count))
    images = Images(fetch, labels, order[:limit], batch_size, shuffle, seed, change, workers)
    if input_shape is not None and images.shape != tuple(input_shape):
        have, want = ("x".join(map(str, shape)) for shape in (images.shape, input_shape))
        remedy = f"resize the images, or give --input-shape {','.join(map(str, images.shape))}"
        raise DataError(f"cannot use {_title(spec)}: its images are {have}, the model takes {want}; {remedy}")
    return images


def random_images(shape: Sequence[int], n: int, seed: int = 0) -> Tensor:
    """Return ``(n, *shape)`` standard normal noise: calibration without data."""
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def calibration_batches(data: Tensor | Iterable[Any], samples: int) -> Iterator[Tensor]:
    """Yield image tensors until ``samples`` images were given; labels are dropped.

    Args:
        data: One tensor ``(n, c, h, w)``, or an iterable of tensors, of pairs whose first is a tensor, or of dicts
            that hold one under ``images``, ``pixel_values``, ``inputs`` or ``x``.
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


def _images_of(batch: Any) -> Tensor:
    found = batch
    if isinstance(batch, dict):
        found = next((batch[key] for key in IMAGE_KEYS if key in batch), None)
    elif isinstance(batch, tuple | list) and batch:
        found = batch[0]
    if not isinstance(found, Tensor):
        what = f"a dict with the keys {', '.join(map(str, batch))}" if isinstance(batch, dict) else type(batch).__name__
        raise DataError(f"cannot calibrate: a batch is {what}; yield tensors, (images, labels) or dicts with 'images'")
    return found if found.is_floating_point() else found.float()


def _split(text: str, known: Sequence[str], spec: str) -> str:
    if text not in known:
        raise DataError(f"cannot read the data spec {spec!r}{nearest(text, known)}; the parts are {', '.join(known)}")
    return text


def _title(spec: DataSpec) -> str:
    return ":".join(part for part in (spec.kind, spec.name, spec.path) if part)


def _arrays(spec: DataSpec) -> tuple[NDArray[Any], Tensor | None]:
    """Return checked images ``(n, c, h, w)``, bytes or floats, and their labels."""
    load = {"npz": _npz, "torchvision": _torchvision, "digits": _digits}[spec.kind]
    images, labels = load(spec)
    title = _title(spec)
    images = _channels_first(np.asarray(images), title)
    if len(images) == 0:
        raise DataError(f"cannot use {title}: it holds no images; give at least one")
    if images.dtype != np.uint8 and not np.isfinite(images).all():
        raise DataError(f"cannot use {title}: an image holds NaN or an infinite value; clean the array")
    return images, None if labels is None else _labels(np.asarray(labels), len(images), title)


def _npz(spec: DataSpec) -> tuple[Any, Any]:
    title = _title(spec)
    try:
        # Opened here, because np.load leaves a damaged file open.
        with Path(spec.path).open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DataError(
                    f"cannot use {title}: it is a single array; write np.savez(FILE, images=..., labels=...)"
                )
            if "images" not in file:
                saw = f"it holds {', '.join(file) or 'nothing'}"
                raise DataError(f"cannot use {title}: there is no array 'images', {saw}; name it so with np.savez")
            return file["images"], file.get("labels")
    except FileNotFoundError:
        raise DataError(f"cannot use {title}: there is no such file; check the path") from None
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each raise their own
        why = "" if "pickle" in str(error) else f" ({error})"  # numpy advises to unpickle whatever is not its own
        remedy = "write it with np.savez(FILE, images=..., labels=...)"
        raise DataError(f"cannot use {title}: the file is no npz or is damaged{why}; {remedy}") from error


def _torchvision(spec: DataSpec) -> tuple[Any, Any]:
    datasets = importlib.import_module("torchvision.datasets")
    part: dict[str, Any] = {"split": spec.split} if spec.name == "SVHN" else {"train": spec.split == "train"}
    try:
        data = getattr(datasets, spec.name)(spec.path, download=False, **part)
    except (RuntimeError, OSError) as error:
        what = f"{spec.name} ({spec.split} part) is not in {spec.path!r}"
        raise DataError(f"cannot use {_title(spec)}: {what}; nothing is downloaded here, fetch it first") from error
    if spec.name == "SVHN":
        return np.transpose(data.data, (0, 2, 3, 1)), data.labels
    return np.asarray(data.data), np.asarray(data.targets)


def _digits(spec: DataSpec) -> tuple[Any, Any]:
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError:
        raise DataError("cannot use digits: scikit-learn is not installed; run pip install 'binarize[demo]'") from None
    images, labels = (np.asarray(part) for part in datasets.load_digits(return_X_y=True))
    images = (images.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    # One fixed draw, so that "train" and "test" mean the same images everywhere.
    order = np.random.default_rng(0).permutation(len(images))
    cut = len(images) * 3 // 4
    part = {"all": np.arange(len(images)), "train": order[:cut], "test": order[cut:]}[spec.split]
    return images[part], labels[part]


def _channels_first(images: NDArray[Any], title: str) -> NDArray[Any]:
    shape = "x".join(map(str, images.shape))
    if images.dtype == np.uint8 and images.ndim in (3, 4):
        images = images[..., None] if images.ndim == 3 else images
        if images.shape[-1] not in (1, 3, 4):
            raise DataError(f"cannot use {title}: uint8 images are {shape}; they must be (n, h, w, c), channels last")
        return np.moveaxis(images, -1, 1)
    if np.issubdtype(images.dtype, np.floating) and images.ndim == 4:
        if images.shape[-1] in (1, 3) and images.shape[1] > 4:
            raise DataError(f"cannot use {title}: float images are {shape}; they must be (n, c, h, w), channels first")
        return images
    wanted = "uint8 (n, h, w, c) or (n, h, w), or floats (n, c, h, w)"
    raise DataError(f"cannot use {title}: 'images' is {images.dtype} of shape {shape}; it must be {wanted}")


def _labels(labels: NDArray[Any], count: int, title: str) -> Tensor:
    if labels.ndim != 1 or len(labels) != count:
        shape = "x".join(map(str, labels.shape))
        raise DataError(f"cannot use {title}: {count} images but labels of shape {shape}; give one label per image")
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"cannot use {title}: labels are {labels.dtype}; they must be integers, the classes' indices")
    return torch.from_numpy(labels.astype(np.int64))


def _fetcher(pixels: NDArray[Any], mean: Sequence[float] | None, std: Sequence[float] | None) -> Fetch:
    channels = pixels.shape[1]
    shift, scale = _statistic(mean, channels, "mean", 0.0), _statistic(std, channels, "std", 1.0)
    if bool((scale == 0).any()):
        raise DataError("cannot normalise: a value of std is 0; give the spread of each channel, above 0")
    divisor = 255.0 if pixels.dtype == np.uint8 else 1.0

    def fetch(indices: Sequence[int], generator: torch.Generator | None) -> Tensor:
        images = torch.from_numpy(np.ascontiguousarray(pixels[np.asarray(indices)], dtype=np.float32))
        return ((images / divisor) - shift) / scale

    return fetch


def _statistic(values: Sequence[float] | None, channels: int, name: str, default: float) -> Tensor:
    given = [default] * channels if values is None else list(values)
    if len(given) == 1:
        given = given * channels
    if len(given) != channels:
        raise DataError(
            f"cannot normalise: {len(given)} values of {name} for {channels} channels; give one per channel"
        )
    return torch.tensor(given, dtype=torch.float32).reshape(1, channels, 1, 1)


def _folder(
    spec: DataSpec,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    shape: Sequence[int],
    workers: int,
    augment: str,
) -> tuple[FolderReader, Tensor | None, int]:
    files, classes = image_files(Path(spec.path))
    defaults = shape[0] == 3
    shift = _statistic(IMAGENET_MEAN if mean is None and defaults else mean, shape[0], "mean", 0.0)
    scale = _statistic(IMAGENET_STD if std is None and defaults else std, shape[0], "std", 1.0)
    reader = FolderReader(files, shape, shift, scale, workers, augment == "imagenet")
    return reader, None if classes is None else torch.tensor(classes), len(files)


def _batch_change(spec: DataSpec, augment: str) -> Augment | None:
    """Return what changes whole batches; random crops of files are the reader's business."""
    if augment not in PRESETS:
        known = ", ".join(PRESETS)
        raise DataError(f"cannot augment by {augment!r}{nearest(augment, PRESETS)}; the presets are {known}")
    if augment == "imagenet" and spec.kind != "imagefolder":
        what = "random crops are cut from image files, and these images have one size"
        raise DataError(f"cannot use {_title(spec)} with 'imagenet': {what}; use 'cifar'")
    return shift_and_flip if augment == "cifar" else None
