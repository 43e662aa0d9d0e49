"""Data specs such as ``npz:FILE`` become batches of normalised images, with labels where there are some."""

import copy
import importlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from binarize.errors import DataError, nearest

__all__ = ["DataSpec", "Images", "calibration_batches", "load_data", "random_images"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KINDS = ("imagefolder", "npz", "torchvision", "digits")
# Sets of torchvision that hold their images in memory.
SETS = ("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "SVHN")
IMAGE_KEYS = ("images", "image", "pixel_values", "inputs", "input", "x")
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
Augment = Callable[[Tensor, torch.Generator], Tensor]
"""Changes a batch ``(n, c, h, w)`` at random."""
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
    """

    def __init__(
        self,
        fetch: Callable[[Sequence[int]], Tensor],
        labels: Tensor | None,
        order: Sequence[int],
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        augment: Augment | None = None,
    ) -> None:
        self.labels = None if labels is None else labels[torch.tensor(order)]
        self.shape: tuple[int, ...] = tuple(fetch(order[:1]).shape[1:])
        self.batch_size, self.augment = batch_size, augment
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
        for chunk in places.split(self.batch_size)[self._index :: self._count]:
            images = self._fetch(self._order[chunk].tolist())
            images = images if self.augment is None else self.augment(images, generator)
            yield images, None if self.labels is None else self.labels[chunk]


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

    Raises:
        DataError: The data is missing, empty, malformed or of another shape than the model's input.
    """
    spec = DataSpec.parse(spec) if isinstance(spec, str) else spec
    if batch_size < 1 or (limit is not None and limit < 1):
        raise DataError(f"cannot use {_title(spec)}: batches of {batch_size}, at most {limit} images; give at least 1")
    if spec.kind == "imagefolder":
        fetch, labels, count = _folder(Path(spec.path), mean, std, input_shape)
    else:
        pixels, labels = _arrays(spec)
        fetch, count = _fetcher(pixels, mean, std), len(pixels)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=generator).tolist() if shuffle else list(range(count))
    images = Images(fetch, labels, order[:limit], batch_size, shuffle, seed)
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


def _fetcher(
    pixels: NDArray[Any], mean: Sequence[float] | None, std: Sequence[float] | None
) -> Callable[[Sequence[int]], Tensor]:
    channels = pixels.shape[1]
    shift, scale = _statistic(mean, channels, "mean", 0.0), _statistic(std, channels, "std", 1.0)
    if bool((scale == 0).any()):
        raise DataError("cannot normalise: a value of std is 0; give the spread of each channel, above 0")
    divisor = 255.0 if pixels.dtype == np.uint8 else 1.0

    def fetch(indices: Sequence[int]) -> Tensor:
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
    folder: Path, mean: Sequence[float] | None, std: Sequence[float] | None, input_shape: Sequence[int] | None
) -> tuple[Callable[[Sequence[int]], Tensor], Tensor | None, int]:
    files, classes = _image_files(folder)
    channels, *size = input_shape or (3, 224, 224)
    v2 = importlib.import_module("torchvision.transforms.v2")
    image = importlib.import_module("PIL.Image")
    # The usual evaluation transform: short side to 256 for a crop of 224.
    cut = v2.Compose([v2.Resize(round(min(size) / 0.875), antialias=True), v2.CenterCrop(list(size)), v2.PILToTensor()])
    defaults = channels == 3
    shift = _statistic(IMAGENET_MEAN if mean is None and defaults else mean, channels, "mean", 0.0)
    scale = _statistic(IMAGENET_STD if std is None and defaults else std, channels, "std", 1.0)

    def read(path: Path) -> Tensor:
        try:
            with image.open(path) as picture:
                pixels: Tensor = cut(picture.convert("L" if channels == 1 else "RGB"))
                return pixels
        except OSError as error:
            raise DataError(f"cannot read the image {str(path)!r}: {error}; remove it or write it again") from error

    def fetch(indices: Sequence[int]) -> Tensor:
        return (torch.stack([read(files[i]) for i in indices]) / 255.0 - shift) / scale

    return fetch, None if classes is None else torch.tensor(classes), len(files)


def _image_files(folder: Path) -> tuple[list[Path], list[int] | None]:
    """Return the images of ``folder/class/*`` with the class's position, or those of ``folder`` without."""
    if not folder.is_dir():
        raise DataError(f"cannot use imagefolder:{folder}: there is no such folder; check the path")
    groups = [sorted(_pictures(place)) for place in sorted(p for p in folder.iterdir() if p.is_dir())]
    if any(groups):
        pairs = [(file, label) for label, group in enumerate(groups) for file in group]
        return [file for file, _ in pairs], [label for _, label in pairs]
    flat = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    if not flat:
        raise DataError(f"cannot use imagefolder:{folder}: it holds no images; put them in one folder per class")
    return flat, None


def _pictures(place: Path) -> Iterator[Path]:
    return (path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES)
