"""Opens data of segmentation and detection: npz files of encoded images, VOC and COCO folders."""

import importlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from binarize.errors import DataError
from binarize.scenes import VOID, Boxes, Scenes
from binarize.specs import DataSpec

__all__ = ["open_scenes"]

CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
BACKGROUND = "background"
VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
SUFFIXES = (".jpg", ".jpeg", ".png")
ENCODED = "encoded images end to end in 'data', where each starts in 'offsets'"


def open_scenes(spec: DataSpec) -> Scenes:
    """Open what ``spec`` names; images are decoded later.

    Raises:
        DataError: It is missing, empty or malformed.
    """
    scenes = {"camvid": _camvid, "bccd": _bccd, "voc": _voc, "coco": _coco}[spec.kind](spec)
    if scenes.count == 0:
        raise DataError(f"cannot use {spec.title}: it holds no images; give at least one")
    return scenes


# npz files


def _members(spec: DataSpec, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    try:
        with spec.folder.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            missing = [name for name in names if name not in file]
            if missing:
                saw = f"there is no array {missing[0]!r}, it holds {', '.join(file)}"
                raise DataError(f"cannot use {spec.title}: {saw}; it must hold {ENCODED}")
            return {name: file[name] for name in names}
    except FileNotFoundError:
        raise DataError(f"cannot use {spec.title}: there is no such file; check the path") from None
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each raise their own
        raise DataError(f"cannot use {spec.title}: the file is no npz or is damaged; it must hold {ENCODED}") from error


def _decoder(spec: DataSpec, data: NDArray[Any], offsets: NDArray[Any], mode: str | None) -> Callable[[int], Any]:
    """Return what decodes image i of those that stand end to end in ``data``."""
    image: Any = importlib.import_module("PIL.Image")
    ends = np.asarray(offsets, dtype=np.int64)
    if ends.ndim != 1 or len(ends) < 1 or ends[0] < 0 or (np.diff(ends) < 0).any() or ends[-1] > data.size:
        raise DataError(f"cannot use {spec.title}: 'offsets' do not rise within the data; write the file again")

    def decode(index: int) -> Any:
        try:
            with image.open(io.BytesIO(data[ends[index] : ends[index + 1]].tobytes())) as picture:
                picture.load()
                return picture if mode is None else picture.convert(mode)
        except OSError as error:
            raise DataError(f"cannot read image {index} of {spec.title}: {error}; write the file again") from error

    return decode


def _camvid(spec: DataSpec) -> Scenes:
    held = _members(spec, ("data", "offsets", "label_data", "label_offsets"))
    picture = _decoder(spec, held["data"], held["offsets"], "RGB")
    label = _decoder(spec, held["label_data"], held["label_offsets"], None)
    if len(held["offsets"]) != len(held["label_offsets"]):
        raise DataError(f"cannot use {spec.title}: there are not as many masks as images; write the file again")

    def mask(index: int) -> NDArray[Any]:
        values = np.array(label(index), dtype=np.uint8)
        return np.where(values < len(CAMVID), values, np.uint8(VOID))

    return Scenes("segmentation", len(held["offsets"]) - 1, CAMVID, picture, mask=mask)


def _bccd(spec: DataSpec) -> Scenes:
    held = _members(spec, ("data", "offsets", "boxes", "box_labels", "box_offsets", "classes"))
    starts = held["box_offsets"]
    if len(starts) != len(held["offsets"]) or len(held["boxes"]) != len(held["box_labels"]):
        raise DataError(f"cannot use {spec.title}: boxes and images do not belong together; write the file again")

    def boxes(index: int) -> Boxes:
        part = slice(int(starts[index]), int(starts[index + 1]))
        return Boxes.of(held["boxes"][part], held["box_labels"][part].astype(np.int64) + 1)

    names = (BACKGROUND, *map(str, held["classes"]))
    picture = _decoder(spec, held["data"], held["offsets"], "RGB")
    return Scenes("detection", len(held["offsets"]) - 1, names, picture, boxes=boxes)


# folders


def _opener(paths: Sequence[Path]) -> Callable[[int], Any]:
    image: Any = importlib.import_module("PIL.Image")

    def picture(index: int) -> Any:
        try:
            with image.open(paths[index]) as opened:
                return opened.convert("RGB")
        except OSError as error:
            raise DataError(f"cannot read the image {str(paths[index])!r}: {error}; remove or restore it") from error

    return picture


def _existing(spec: DataSpec, path: Path, what: str) -> Path:
    if not path.exists():
        raise DataError(f"cannot use {spec.title}: it has no {what} {str(path)!r}; check the path")
    return path


def _voc(spec: DataSpec) -> Scenes:
    """VOC: ``Annotations/*.xml``, ``JPEGImages/``, and the names of a part in ``ImageSets/Main/PART.txt``.

    Without lists of parts all annotations are used. Objects marked as difficult count neither as found nor as missed.
    """
    notes = _existing(spec, spec.folder / "Annotations", "folder")
    listed = spec.folder / "ImageSets" / "Main" / f"{spec.split}.txt"
    if listed.parent.is_dir():
        lines = _existing(spec, listed, "list").read_text(encoding="utf-8").splitlines()
        stems = [line.split()[0] for line in lines if line.strip()]
    else:
        stems = sorted(path.stem for path in notes.glob("*.xml"))
    trees = [_xml(spec, notes / f"{stem}.xml") for stem in stems]
    seen = {item.findtext("name", "") for tree in trees for item in tree.iter("object")}
    classes = (BACKGROUND, *(VOC if seen <= set(VOC) else sorted(seen)))
    images = spec.folder / "JPEGImages"
    paths = [_image_path(spec, images, stem, tree) for stem, tree in zip(stems, trees, strict=True)]
    return Scenes(
        "detection", len(stems), classes, _opener(paths), boxes=lambda index: _voc_boxes(spec, trees[index], classes)
    )


def _xml(spec: DataSpec, path: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(_existing(spec, path, "annotation")).getroot()
    except ElementTree.ParseError as error:
        raise DataError(f"cannot read {str(path)!r}: {error}; it must be a VOC annotation") from error


def _image_path(spec: DataSpec, folder: Path, stem: str, tree: ElementTree.Element) -> Path:
    candidates = [folder / f"{stem}{suffix}" for suffix in SUFFIXES] + [
        folder / Path(tree.findtext("filename", "")).name
    ]
    found = next((path for path in candidates if path.is_file()), None)
    return _existing(spec, candidates[0], "image") if found is None else found


def _voc_boxes(spec: DataSpec, tree: ElementTree.Element, classes: Sequence[str]) -> Boxes:
    boxes, labels, crowd = [], [], []
    for item in tree.iter("object"):
        corners = [item.findtext(f"bndbox/{name}", "") for name in ("xmin", "ymin", "xmax", "ymax")]
        try:
            x1, y1, x2, y2 = map(float, corners)
        except ValueError:
            what = f"an object of {tree.findtext('filename', '?')!r} has the box {corners}"
            raise DataError(f"cannot use {spec.title}: {what}; give four numbers") from None
        boxes.append([x1 - 1, y1 - 1, x2, y2])  # VOC counts pixels from 1, the last one included
        labels.append(classes.index(item.findtext("name", "")))
        crowd.append(int(item.findtext("difficult", "0") or 0))
    return Boxes.of(boxes, labels, crowd)


def _coco(spec: DataSpec) -> Scenes:
    """COCO: ``annotations/instances_PART*.json`` and the images in ``PART*/``, such as ``val2017/``.

    Labels are COCO's own category numbers, which torchvision's detectors have too.
    """
    notes = _existing(spec, spec.folder / "annotations", "folder")
    files = sorted(notes.glob(f"instances_{spec.split}*.json"))
    if not files:
        raise DataError(f"cannot use {spec.title}: there is no annotations/instances_{spec.split}*.json; name a part")
    folder = spec.folder / files[-1].stem.removeprefix("instances_")
    try:
        held = json.loads(files[-1].read_text(encoding="utf-8"))
        names = {int(category["id"]): str(category["name"]) for category in held["categories"]}
        images = sorted(held["images"], key=lambda image: int(image["id"]))
        found: dict[int, list[Mapping[str, Any]]] = {int(image["id"]): [] for image in images}
        for note in held["annotations"]:
            found[int(note["image_id"])].append(note)
        paths = [_existing(spec, folder, "folder") / Path(image["file_name"]).name for image in images]
        every = [_coco_boxes(found[int(image["id"])]) for image in images]
    except (KeyError, TypeError, ValueError) as error:
        what = f"{files[-1].name} is no list of instances ({type(error).__name__}: {error})"
        raise DataError(f"cannot use {spec.title}: {what}; give COCO's own format") from error
    classes = tuple(names.get(label, BACKGROUND if label == 0 else "") for label in range(max(names, default=0) + 1))
    return Scenes("detection", len(images), classes, _opener(paths), boxes=every.__getitem__)


def _coco_boxes(notes: Sequence[Mapping[str, Any]]) -> Boxes:
    corners = [[x, y, x + w, y + h] for x, y, w, h in (note["bbox"] for note in notes)]
    return Boxes.of(corners, [note["category_id"] for note in notes], [note.get("iscrowd", 0) for note in notes])
