"""Pictures of what networks see in scenes: truth, teacher and converted network side by side."""

import importlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from binarize.artifact import replacing
from binarize.data import Images
from binarize.errors import DataError
from binarize.measures import run_on, scores_of_pixels
from binarize.scenes import VOID

__all__ = ["compare", "png", "write_png"]

OPACITY = 0.6
SURE = 0.5  # score from which a detection is drawn
EDGE = 4  # pixels between pictures


@torch.no_grad()
def compare(data: Images, networks: Mapping[str, nn.Module], count: int = 4) -> Tensor:
    """Draw the first ``count`` scenes of ``data``, one row each: the picture, its truth, and what each network says.

    Args:
        data: of segmentation or detection.
        networks: by name, in the order of the columns.
        count: rows.

    Returns:
        Bytes ``(3, h, w)``: R, G, B.

    Raises:
        DataError: the data is neither.
    """
    if data.task not in ("segmentation", "detection") or data.pixels is None:
        raise DataError(f"cannot draw {data.task}: only scenes with masks or boxes have something to show")
    rows: list[list[Tensor]] = []
    for images, truth in data:
        found = [_answers(network.eval(), images) for network in networks.values()]
        for place in range(len(images)):
            picture = (data.pixels.restore(images[place].unsqueeze(0))[0] * 255).round().clamp(0, 255).to(torch.uint8)
            answers = [truth[place], *(answer[place] for answer in found)]
            rows.append([picture, *(_drawn(picture, answer, data.classes) for answer in answers)])
            if len(rows) == count:
                return _grid(rows)
    return _grid(rows)


def _answers(network: nn.Module, images: Any) -> Any:
    output = run_on(network, images)
    scores = scores_of_pixels(output)
    return output if scores is None else scores


def _drawn(picture: Tensor, answer: Any, classes: Sequence[str]) -> Tensor:
    utils: Any = importlib.import_module("torchvision.utils")
    if isinstance(answer, Mapping):
        return _with_boxes(utils, picture, answer, classes)
    mask = answer[: len(classes) or None].argmax(0) if answer.dim() == 3 else answer
    labels = [label for label in mask.unique().tolist() if label != VOID]
    drawn: Tensor = picture
    if labels:
        drawn = utils.draw_segmentation_masks(
            picture, torch.stack([mask == label for label in labels]), OPACITY, [_colour(label) for label in labels]
        )
    return drawn


def _with_boxes(utils: Any, picture: Tensor, answer: Mapping[str, Tensor], classes: Sequence[str]) -> Tensor:
    sure = answer["scores"] >= SURE if "scores" in answer else torch.ones(len(answer["labels"]), dtype=torch.bool)
    boxes, labels = answer["boxes"][sure], answer["labels"][sure].tolist()
    if not labels:
        return picture
    names = [classes[label] if label < len(classes) else str(label) for label in labels]
    drawn: Tensor = utils.draw_bounding_boxes(picture, boxes, names, [_colour(label) for label in labels], width=2)
    return drawn


def _colour(label: int) -> tuple[int, int, int]:
    """Return a colour that is far from those of the labels next to it; the usual palette of VOC."""
    colour = [0, 0, 0]
    label += 1
    for bit in reversed(range(8)):
        for channel in range(3):
            colour[channel] |= (label >> channel & 1) << bit
        label >>= 3
    return colour[0], colour[1], colour[2]


def _grid(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    height = max(picture.shape[1] for row in rows for picture in row)
    width = max(picture.shape[2] for row in rows for picture in row)
    columns = len(rows[0])
    made = torch.full((3, len(rows) * (height + EDGE) - EDGE, columns * (width + EDGE) - EDGE), 255, dtype=torch.uint8)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            top, left = y * (height + EDGE), x * (width + EDGE)
            made[:, top : top + picture.shape[1], left : left + picture.shape[2]] = picture
    return made


def png(picture: Tensor) -> bytes:
    """Return bytes ``(3, h, w)`` as a PNG file."""
    image: Any = importlib.import_module("PIL.Image")
    stream = io.BytesIO()
    image.fromarray(picture.permute(1, 2, 0).numpy()).save(stream, "PNG")
    return stream.getvalue()


def write_png(picture: Tensor, path: Path | str) -> None:
    """Write bytes ``(3, h, w)`` as a PNG file.

    Raises:
        OutputError: the file cannot be written.
    """
    with replacing(path) as draft:
        draft.write_bytes(png(picture))
