"""Pictures of discs and boxes on noise, and the truth about each pixel or box: for a first try without a download.

`segmentation` and `detection` write files that the data specs ``camvid:FILE`` and ``bccd:FILE`` read.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("disc", "box")


def scene(generator: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray, list, list]:
    """Return an image, its mask (0 background, 1 disc, 2 box), its boxes and their labels."""
    image = generator.normal(90, 25, (height, width, 3))
    mask = np.zeros((height, width), np.uint8)
    boxes, labels = [], []
    rows, columns = np.mgrid[:height, :width]
    for _ in range(int(generator.integers(1, 4))):
        kind, size = int(generator.integers(2)), int(generator.integers(height // 6, height // 3))
        y, x = int(generator.integers(size, height - size)), int(generator.integers(size, width - size))
        near = (rows - y) ** 2 + (columns - x) ** 2 <= size**2
        inside = near if kind == 0 else (abs(rows - y) <= size) & (abs(columns - x) <= size)
        image[inside] = generator.normal((200, 80, 60) if kind == 0 else (60, 90, 210), 20, (int(inside.sum()), 3))
        mask[inside] = kind + 1
        boxes.append([x - size, y - size, x + size + 1, y + size + 1])
        labels.append(kind)
    return image.clip(0, 255).astype(np.uint8), mask, boxes, labels


def encoded(arrays: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return images end to end as PNG, and where each starts."""
    blobs = []
    for array in arrays:
        stream = io.BytesIO()
        Image.fromarray(array).save(stream, "PNG")
        blobs.append(np.frombuffer(stream.getvalue(), np.uint8))
    return np.concatenate(blobs), np.cumsum([0, *map(len, blobs)])


def segmentation(path: Path, count: int, seed: int, height: int = 48, width: int = 64) -> None:
    """Write ``count`` scenes with masks."""
    generator = np.random.default_rng(seed)
    images, masks, _, _ = zip(*(scene(generator, height, width) for _ in range(count)), strict=True)
    (data, offsets), (labels, starts) = encoded(list(images)), encoded(list(masks))
    np.savez(path, data=data, offsets=offsets, label_data=labels, label_offsets=starts)


def detection(path: Path, count: int, seed: int, height: int = 64, width: int = 80) -> None:
    """Write ``count`` scenes with boxes."""
    generator = np.random.default_rng(seed)
    images, _, boxes, labels = zip(*(scene(generator, height, width) for _ in range(count)), strict=True)
    data, offsets = encoded(list(images))
    np.savez(
        path, data=data, offsets=offsets, boxes=np.array([box for found in boxes for box in found], np.float32),
        box_labels=np.array([label for found in labels for label in found], np.int8),
        box_offsets=np.cumsum([0, *map(len, boxes)]), classes=np.array(CLASSES),
    )  # fmt: skip
