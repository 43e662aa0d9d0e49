import pytest
import torch

from binarize.augment import RandomBoxes, flip, shift_and_flip
from binarize.data import load_data
from binarize.errors import DataError


def seeded():
    return torch.Generator().manual_seed(0)


def test_about_half_of_the_images_are_mirrored_and_the_others_are_as_they_were():
    images = torch.arange(64 * 3 * 4 * 5, dtype=torch.float32).reshape(64, 3, 4, 5)

    found = flip(images, seeded())

    mirrored = [torch.equal(one, other.flip(2)) for one, other in zip(found, images, strict=True)]
    kept = [torch.equal(one, other) for one, other in zip(found, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 16 < sum(mirrored) < 48


def test_every_shift_of_up_to_four_pixels_comes_up_and_zeros_come_in():
    images = torch.zeros(2000, 1, 9, 9)
    images[:, :, 4, 4] = 1

    found = shift_and_flip(images, seeded())

    places = {tuple(place.tolist()) for place in found.squeeze(1).nonzero()[:, 1:]}
    assert places == {(row, column) for row in range(9) for column in range(9)}
    assert torch.equal(found.sum((1, 2, 3)), torch.ones(2000))


def test_a_shifted_image_is_the_image_cut_from_its_border():
    images = torch.randn(8, 3, 6, 6)
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    windows = padded.unfold(2, 6, 1).unfold(3, 6, 1)

    for index, found in enumerate(shift_and_flip(images, seeded())):
        cuts = [windows[index, :, row, column] for row in range(9) for column in range(9)]
        assert any(torch.equal(found, cut) or torch.equal(found, cut.flip(2)) for cut in cuts)


@pytest.mark.parametrize("size", [(224, 224), (100, 300), (7, 3), (500, 20)])
def test_random_boxes_lie_in_the_image_and_have_the_areas_and_sides_asked_for(size):
    height, width = size
    boxes = RandomBoxes(300, seeded())
    found = [boxes.box(index, height, width) for index in range(300)]

    assert all(
        t >= 0 and left >= 0 and h > 0 and w > 0 and t + h <= height and left + w <= width for t, left, h, w in found
    )
    assert len(set(found)) > 1 or max(size) / min(size) > 20
    if size == (224, 224):
        assert all(0.07 < h * w / 224**2 <= 1 and 0.72 < w / h < 1.37 for _, _, h, w in found)
        assert 100 < sum(boxes.mirrored) < 200


@pytest.fixture
def folder(tmp_path):
    from PIL import Image

    for label in range(2):
        (tmp_path / str(label)).mkdir()
        for index in range(5):
            pixels = torch.randint(
                0, 256, (20, 24, 3), dtype=torch.uint8, generator=seeded().manual_seed(index + 9 * label)
            )
            Image.fromarray(pixels.numpy()).save(tmp_path / str(label) / f"{index}.png")
    return tmp_path


def test_random_crops_are_the_same_whoever_reads_them(folder):
    def passes(workers):
        data = load_data(
            f"imagefolder:{folder}", input_shape=(3, 16, 16), batch_size=4, shuffle=True, augment="imagenet",
            workers=workers,
        )  # fmt: skip
        return [images for _ in range(2) for images, _ in data]

    alone, threads = passes(0), passes(3)

    assert len(alone) == 6
    assert all(torch.equal(one, other) for one, other in zip(alone, threads, strict=True))
    assert not torch.equal(alone[0], alone[3])


def test_threads_read_the_same_images_in_the_same_order(folder):
    options = {"input_shape": (3, 16, 16), "batch_size": 3}

    alone, threads = (list(load_data(f"imagefolder:{folder}", workers=n, **options)) for n in (0, 2))

    assert all(torch.equal(a, b) and torch.equal(x, y) for (a, x), (b, y) in zip(alone, threads, strict=True))


def test_a_damaged_image_is_named_from_a_thread_too(folder):
    (folder / "1" / "2.png").write_bytes(b"no image")

    with pytest.raises(DataError, match=r"cannot read the image .*2\.png"):
        list(load_data(f"imagefolder:{folder}", input_shape=(3, 16, 16), workers=2))


def test_a_pass_can_be_had_again():
    data = load_data("digits", batch_size=300, shuffle=True, augment="cifar")
    first, second = list(data), list(data)

    data.set_epoch(1)
    again = list(data)

    assert not torch.equal(first[0][0], second[0][0])
    assert all(torch.equal(one, other) for (one, _), (other, _) in zip(second, again, strict=True))


def test_parts_of_a_pass_are_the_whole_pass():
    data = load_data("digits", batch_size=100, shuffle=True, limit=500)
    parts = [list(data.share(index, 2)) for index in range(2)]
    whole = list(load_data("digits", batch_size=200, shuffle=True, limit=500))

    assert [len(part) for part in parts] == [3, 3]
    for step, (images, labels) in enumerate(whole[:2]):
        assert torch.equal(torch.cat([part[step][0] for part in parts]), images)
        assert torch.equal(torch.cat([part[step][1] for part in parts]), labels)


def test_an_unknown_preset_and_crops_of_arrays_are_refused():
    with pytest.raises(DataError, match="did you mean 'cifar'"):
        load_data("digits", augment="cifer")
    with pytest.raises(DataError, match="these images have one size; use 'cifar'"):
        load_data("digits", augment="imagenet")
