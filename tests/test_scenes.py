"""Scenes in every form that a spec reads: what a batch is, how it is normalised and changed, what is refused."""

import numpy as np
import pytest
import scenes
import torch

from binarize.data import calibration_batches, load_data
from binarize.errors import DataError
from binarize.scenes import VOID
from binarize.specs import DataSpec


def test_masks_keep_their_classes_and_what_has_none_is_void(tmp_path):
    images, mask = scenes.write_camvid(tmp_path / "c.npz")
    data = load_data(f"camvid:{tmp_path / 'c.npz'}", batch_size=2)

    batches = list(data)

    assert data.task == "segmentation"
    assert len(data.classes) == 11
    assert [len(x) for x, _ in batches] == [2, 2, 1]
    got, masks = batches[0]
    assert (got * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy().tolist() == images[:2].tolist()
    assert masks.dtype == torch.int64
    assert masks[0].tolist() == np.where(mask < 11, mask, VOID).tolist()


def test_channels_mean_and_spread_are_in_the_order_that_the_network_reads(tmp_path):
    images, _ = scenes.write_camvid(tmp_path / "c.npz")
    mean, std = (0.1, 0.2, 0.3), (2.0, 3.0, 4.0)

    (got, _) = next(iter(load_data(f"camvid:{tmp_path / 'c.npz'}", mean=mean, std=std, channels="bgr")))

    wanted = (images[..., ::-1] / np.float32(255) - np.float32(mean)) / np.float32(std)
    # one rounding of a product or quotient near 1 apart
    np.testing.assert_allclose(got.permute(0, 2, 3, 1).numpy(), wanted, rtol=0, atol=1e-6)


def test_channels_are_turned_in_arrays_too(tmp_path):
    images = scenes.pictures(3)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(3))

    (got, labels) = next(iter(load_data(f"npz:{tmp_path / 'a.npz'}", channels="bgr")))

    assert (got * 255).round().permute(0, 2, 3, 1).tolist() == images[..., ::-1].astype(float).tolist()
    assert labels.tolist() == [0, 1, 2]


def test_a_shape_resizes_image_and_mask_alike(tmp_path):
    scenes.write_camvid(tmp_path / "c.npz")

    images, masks = next(iter(load_data(f"camvid:{tmp_path / 'c.npz'}", input_shape=(3, 48, 64))))

    assert images.shape == (5, 3, 48, 64)
    assert masks[0, ::2, ::2].tolist() == masks[0, 1::2, 1::2].tolist()  # nearest: no class is mixed from two
    assert set(masks.unique().tolist()) == {*range(11), VOID}


@pytest.mark.parametrize("augment", ["flip", "zoom"])
def test_masks_are_changed_with_their_images(tmp_path, augment):
    height, width = 24, 32
    mask = (np.arange(height)[:, None] // 6 + 2 * (np.arange(width)[None] // 8)).astype(np.uint8)
    image = np.repeat(mask[..., None] * 20, 3, 2)
    data, offsets = scenes.encoded([image] * 8)
    labels, starts = scenes.encoded([mask] * 8)
    np.savez(tmp_path / "c.npz", data=data, offsets=offsets, label_data=labels, label_offsets=starts)

    got = load_data(f"camvid:{tmp_path / 'c.npz'}", batch_size=8, augment=augment)
    images, masks = next(iter(got))

    # away from edges between classes, where enlarging mixes colours
    same = (images[:, 0] * 255 / 20 - masks).abs() < 0.5
    assert same.float().mean() > 0.8
    assert len({x.numpy().tobytes() for x in images}) > 1
    again = next(iter(load_data(f"camvid:{tmp_path / 'c.npz'}", batch_size=8, augment=augment)))
    assert torch.equal(again[1], masks)


def test_boxes_have_labels_from_one_on_and_those_without_area_are_left_out(tmp_path):
    scenes.write_bccd(tmp_path / "b.npz")
    data = load_data(f"bccd:{tmp_path / 'b.npz'}", batch_size=4)

    images, targets = next(iter(data))

    assert data.classes == ("background", "cat", "dog")
    assert [tuple(image.shape) for image in images] == [(3, 24, 32)] * 4
    assert [target["boxes"].tolist() for target in targets] == [*scenes.BOXES[:3], scenes.BOXES[3][:1]]
    assert [target["labels"].tolist() for target in targets] == [[1, 2], [2], [], [1]]


def test_boxes_are_resized_and_mirrored_with_their_images(tmp_path):
    scenes.write_bccd(tmp_path / "b.npz")
    data = load_data(f"bccd:{tmp_path / 'b.npz'}", batch_size=4, input_shape=(3, 48, 64), augment="flip", seed=1)
    plain = load_data(f"bccd:{tmp_path / 'b.npz'}", batch_size=4, input_shape=(3, 48, 64))

    mirrored = 0
    for (image, target), (before, old) in zip(
        zip(*next(iter(data)), strict=True), zip(*next(iter(plain)), strict=True), strict=True
    ):
        assert image.shape == (3, 48, 64)
        if torch.equal(image, before.flip(2)):
            mirrored += 1
            x1, y1, x2, y2 = old["boxes"].T
            assert target["boxes"].tolist() == torch.stack([64 - x2, y1, 64 - x1, y2], 1).tolist()
        else:
            assert torch.equal(target["boxes"], old["boxes"])
    assert 0 < mirrored < 4


def test_voc_counts_pixels_from_one_and_knows_parts_and_difficult_objects(tmp_path):
    scenes.write_voc(tmp_path)
    _, targets = next(iter(load_data(f"voc:{tmp_path}:train", batch_size=4)))
    data = load_data(f"voc:{tmp_path}", batch_size=4)

    assert [target["boxes"].tolist() for target in targets] == scenes.BOXES[:2]
    assert targets[0]["iscrowd"].tolist() == [0, 1]
    assert data.classes[8] == "cat"  # the names of VOC itself
    assert targets[0]["labels"].tolist() == [8, 12]
    assert [len(target["boxes"]) for target in next(iter(data))[1]] == [0, 1]


def test_voc_without_lists_is_all_of_it(tmp_path):
    scenes.write_voc(tmp_path, parts=False)

    assert load_data(f"voc:{tmp_path}").samples == 4


def test_coco_keeps_its_own_category_numbers(tmp_path):
    scenes.write_coco(tmp_path)
    data = load_data(f"coco:{tmp_path}", batch_size=4)

    _, targets = next(iter(data))

    assert data.classes == ("background", "", "", "cat", "", "", "", "dog")
    # images come in the order of their numbers, which are 10 to 7 here
    assert [target["boxes"].tolist() for target in targets] == [scenes.BOXES[3][:1], [], *scenes.BOXES[1::-1]]
    assert targets[3]["labels"].tolist() == [3, 7]


def test_images_of_different_sizes_make_lists_but_no_batch_of_masks(tmp_path):
    images = [scenes.pictures(1)[0], scenes.pictures(1, 20, 20)[0]]
    data, offsets = scenes.encoded(images)
    labels, starts = scenes.encoded([image[..., 0] // 32 for image in images])
    np.savez(tmp_path / "c.npz", data=data, offsets=offsets, label_data=labels, label_offsets=starts)

    with pytest.raises(DataError, match="different sizes; give --input-shape"):
        list(load_data(f"camvid:{tmp_path / 'c.npz'}", batch_size=2))


def test_lists_of_images_calibrate_as_lists():
    images = [torch.rand(3, 4, 5), torch.rand(3, 6, 7), torch.rand(3, 4, 4)]

    got = list(calibration_batches([(images[:2], [{}, {}]), (images[2:], [{}])], samples=3))

    assert [len(batch) for batch in got] == [2, 1]
    assert got[0][1] is images[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("camvid:", "names no place"),
        ("voc:none", "no folder"),
        ("coco:none", "no folder"),
        ("camvid:none.npz", "no such file"),
        ("coca:x", "did you mean 'coco'"),
    ],
)
def test_what_cannot_be_opened_says_why(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        load_data(text)


def test_damaged_files_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros(3))
    np.savez(tmp_path / "b.npz", data=np.zeros(9, np.uint8), offsets=[0, 20], label_data=[0], label_offsets=[0, 1])
    scenes.write_voc(tmp_path / "v")
    (tmp_path / "v/Annotations/0002.xml").write_text("<annotation>")
    (tmp_path / "c/annotations").mkdir(parents=True)
    (tmp_path / "c/annotations/instances_val.json").write_text('{"images": 3}')

    for text, message in (
        (f"camvid:{tmp_path / 'a.npz'}", "no array 'data'"),
        (f"camvid:{tmp_path / 'b.npz'}", "do not rise within the data"),
        (f"voc:{tmp_path / 'v'}:val", r"cannot read .*0002.xml"),
        (f"coco:{tmp_path / 'c'}", "is no list of instances"),
        (f"coco:{tmp_path / 'c'}:test", "no annotations/instances_test"),
    ):
        with pytest.raises(DataError, match=message):
            load_data(text)


def test_changes_that_do_not_fit_the_task_are_refused(tmp_path):
    scenes.write_bccd(tmp_path / "b.npz")
    with pytest.raises(DataError, match="it is for detection; use flip"):
        load_data(f"bccd:{tmp_path / 'b.npz'}", augment="zoom")
    with pytest.raises(DataError, match="read channels as 'gbr'"):
        load_data(f"bccd:{tmp_path / 'b.npz'}", channels="gbr")


def test_specs_tell_their_parts():
    assert DataSpec.parse("voc:some/place:trainval") == DataSpec("voc", "some/place", split="trainval")
    assert DataSpec.parse("coco:place") == DataSpec("coco", "place", split="val")
    assert [DataSpec.parse(text).task for text in ("camvid:f", "bccd:f", "npz:f")] == [
        "segmentation",
        "detection",
        "classification",
    ]
