"""Data that lies in one array: npz files, the sets of torchvision that hold their images in memory, digits."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from binarize.errors import DataError
from binarize.specs import DataSpec

__all__ = ["read_arrays"]


def read_arrays(spec: DataSpec) -> tuple[NDArray[Any], Tensor | None]:
    """Return checked images ``(n, c, h, w)``, bytes or floats, and their labels."""
    load = {"npz": _npz, "torchvision": _torchvision, "digits": _digits}[spec.kind]
    images, labels = load(spec)
    title = spec.title
    images = _channels_first(np.asarray(images), title)
    if len(images) == 0:
        raise DataError(f"cannot use {title}: it holds no images; give at least one")
    if images.dtype != np.uint8 and not np.isfinite(images).all():
        raise DataError(f"cannot use {title}: an image holds NaN or an infinite value; clean the array")
    return images, None if labels is None else _labels(np.asarray(labels), len(images), title)


def _npz(spec: DataSpec) -> tuple[Any, Any]:
    title = spec.title
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
            return _numbers(file, "images", title), _numbers(file, "labels", title) if "labels" in file else None
    except FileNotFoundError:
        raise DataError(f"cannot use {title}: there is no such file; check the path") from None
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each raise their own
        why = "" if "pickle" in str(error) else f" ({error})"  # numpy advises to unpickle whatever is not its own
        remedy = "write it with np.savez(FILE, images=..., labels=...)"
        raise DataError(f"cannot use {title}: the file is no npz or is damaged{why}; {remedy}") from error


def _numbers(file: Any, name: str, title: str) -> Any:
    try:
        return file[name]
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        what = f"the array {name!r} holds Python objects"
        raise DataError(f"cannot use {title}: {what}; make it one array of numbers, images all of one size") from None


def _torchvision(spec: DataSpec) -> tuple[Any, Any]:
    datasets = importlib.import_module("torchvision.datasets")
    part: dict[str, Any] = {"split": spec.split} if spec.name == "SVHN" else {"train": spec.split == "train"}
    try:
        data = getattr(datasets, spec.name)(spec.path, download=False, **part)
    except (RuntimeError, OSError) as error:
        what = f"{spec.name} ({spec.split} part) is not in {spec.path!r}"
        raise DataError(f"cannot use {spec.title}: {what}; nothing is downloaded here, fetch it first") from error
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
