"""Small scenes with a truth that is known: masks and boxes, written in every form that a data spec reads."""

import io
import json

import numpy as np
import torch
from PIL import Image
from torch import nn


def encoded(arrays):
    """Return images end to end as PNG, and where each starts."""
    blobs = []
    for array in arrays:
        stream = io.BytesIO()
        Image.fromarray(array).save(stream, "PNG")
        blobs.append(np.frombuffer(stream.getvalue(), np.uint8))
    return np.concatenate(blobs), np.cumsum([0, *map(len, blobs)])


def pictures(count, height=24, width=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def write_camvid(path, count=5, height=24, width=32):
    """Write ``count`` scenes; the mask of pixel (y, x) is y // 2, so that rows 22 and 23 are void."""
    images = pictures(count, height, width)
    mask = np.repeat(np.arange(height, dtype=np.uint8) // 2, width).reshape(height, width)
    data, offsets = encoded(images)
    labels, starts = encoded([mask] * count)
    np.savez(path, data=data, offsets=offsets, label_data=labels, label_offsets=starts)
    return images, mask


BOXES = [[[2, 3, 10, 12], [4, 4, 20, 20]], [[0, 0, 8, 8]], [], [[1, 2, 3, 4], [5, 5, 5, 9]]]
LABELS = [[0, 1], [1], [], [0, 1]]


def write_bccd(path):
    """Write four scenes; the last box of the last one has no area."""
    images = pictures(4)
    data, offsets = encoded(images)
    flat = [box for boxes in BOXES for box in boxes]
    np.savez(
        path,
        data=data,
        offsets=offsets,
        boxes=np.array(flat, np.float32),
        box_labels=np.array([label for labels in LABELS for label in labels], np.int8),
        box_offsets=np.cumsum([0, *map(len, BOXES)]),
        classes=np.array(["cat", "dog"]),
    )
    return images


def write_voc(folder, *, parts=True):
    """Write the same as VOC, whose pixels are counted from 1; the second object of the first image is difficult."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for index, (image, boxes, labels) in enumerate(zip(pictures(4), BOXES, LABELS, strict=True)):
        Image.fromarray(image).save(folder / "JPEGImages" / f"{index:04}.png")
        objects = "".join(
            f"<object><name>{('cat', 'dog')[label]}</name><difficult>{int((index, place) == (0, 1))}</difficult>"
            f"<bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
            for place, ((x1, y1, x2, y2), label) in enumerate(zip(boxes, labels, strict=True))
        )
        note = f"<annotation><filename>{index:04}.png</filename>{objects}</annotation>"
        (folder / "Annotations" / f"{index:04}.xml").write_text(note)
    if parts:
        (folder / "ImageSets/Main/train.txt").write_text("0000\n0001\n")
        (folder / "ImageSets/Main/val.txt").write_text("0002\n0003\n")
    else:
        (folder / "ImageSets/Main").rmdir()
        (folder / "ImageSets").rmdir()


def write_coco(folder, part="val2017"):
    """Write the same as COCO, with category numbers 3 and 7."""
    (folder / "annotations").mkdir(parents=True)
    (folder / part).mkdir()
    images, notes = [], []
    for index, (image, boxes, labels) in enumerate(zip(pictures(4), BOXES, LABELS, strict=True)):
        Image.fromarray(image).save(folder / part / f"{index:012}.png")
        images.append({"id": 10 - index, "file_name": f"{index:012}.png"})
        for (x1, y1, x2, y2), label in zip(boxes, labels, strict=True):
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "category_id": (3, 7)[label], "iscrowd": 0}
            notes.append({"image_id": 10 - index, **box})
    categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    held = {"images": images, "annotations": notes, "categories": categories}
    (folder / "annotations" / f"instances_{part}.json").write_text(json.dumps(held))


class Oracle(nn.Module):
    """Gives what it was told, whatever it is shown."""

    def __init__(self, answers):
        super().__init__()
        self.answers = list(answers)
        self.left = []

    def forward(self, images):
        self.left = self.left or list(self.answers)
        return self.left.pop(0)


def one_hot(masks, classes, sure=1.0):
    """Return scores ``(n, classes, h, w)`` whose largest is at the mask; void gives class 0."""
    inside = torch.where(masks < classes, masks, 0)
    return sure * nn.functional.one_hot(inside, classes).permute(0, 3, 1, 2).float()
