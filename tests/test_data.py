"""Data specs, the arrays behind them, and calibration batches."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from binarize.data import DataSpec, calibration_batches, load_data, random_images
from binarize.errors import DataError


@pytest.fixture
def write(tmp_path):
    def save(**arrays):
        np.savez(tmp_path / "data.npz", **arrays)
        return f"npz:{tmp_path / 'data.npz'}"

    return save


def whole(images):
    pairs = list(images)
    labels = None if pairs[0][1] is None else torch.cat([y for _, y in pairs])
    return torch.cat([x for x, _ in pairs]), labels


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("npz:a:b.npz", DataSpec("npz", "a:b.npz")),
        ("imagefolder:some/dir", DataSpec("imagefolder", "some/dir")),
        ("torchvision:CIFAR10:d", DataSpec("torchvision", "d", "CIFAR10", "test")),
        ("torchvision:SVHN:c:/d:train", DataSpec("torchvision", "c:/d", "SVHN", "train")),
        ("torchvision:MNIST:c:/d", DataSpec("torchvision", "c:/d", "MNIST", "test")),
        ("torchvision:MNIST:train", DataSpec("torchvision", "train", "MNIST", "test")),
        ("digits", DataSpec("digits", split="all")),
        ("digits:test", DataSpec("digits", split="test")),
    ],
)
def test_a_spec_is_read_into_its_parts(text, spec):
    assert DataSpec.parse(text) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("npx:a", "did you mean 'npz'"),
        ("", "write imagefolder:DIR"),
        ("npz:", "names no place"),
        ("digits:tset", "did you mean 'test'"),
        ("torchvision:CIFAR11:d", "did you mean 'CIFAR10'"),
        ("torchvision:CIFAR10", "names no place"),
    ],
)
def test_a_spec_that_says_nothing_is_refused(text, message):
    with pytest.raises(DataError, match=message):
        DataSpec.parse(text)


def test_one_mean_serves_all_channels(write):
    path = write(images=np.arange(192, dtype=np.uint8).reshape(1, 8, 8, 3))

    (one, _), (three, _) = (
        next(iter(load_data(path, mean=mean, std=std))) for mean, std in ((0.25, 2), ([0.25] * 3, [2.0] * 3))
    )

    assert torch.equal(one, three)


def test_bytes_are_divided_by_255_before_mean_and_std(write):
    pixels = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    x, y = whole(load_data(write(images=pixels, labels=[1, 0]), mean=(0.1, 0.2, 0.3), std=(1, 2, 4)))

    expected = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / (
        torch.tensor([1.0, 2.0, 4.0])[:, None, None]
    )
    assert torch.equal(x, expected)
    assert torch.equal(y, torch.tensor([1, 0]))


def test_floats_are_channels_first_and_not_divided(write):
    images = np.random.default_rng(0).normal(size=(3, 2, 4, 5))
    x, y = whole(load_data(write(images=images)))
    assert torch.equal(x, torch.from_numpy(images).float())
    assert y is None


@pytest.mark.parametrize("shape", [(2, 6, 7), (2, 6, 7, 1)])
def test_gray_images_may_lack_the_channel(write, shape):
    assert load_data(write(images=np.zeros(shape, np.uint8))).shape == (1, 6, 7)


@settings(deadline=None, max_examples=40)
@given(
    limit=st.none() | st.integers(1, 25),
    size=st.integers(1, 9),
    shuffle=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_images_keep_their_labels_in_any_order(tmp_path_factory, limit, size, shuffle, seed):
    path = tmp_path_factory.mktemp("data") / "a.npz"
    np.savez(path, images=np.arange(20, dtype=np.uint8).reshape(20, 1, 1), labels=np.arange(20))
    options = {"limit": limit, "batch_size": size, "shuffle": shuffle, "seed": seed}

    data = load_data(f"npz:{path}", **options)
    first, second, again = whole(data), whole(data), whole(load_data(f"npz:{path}", **options))

    assert data.samples == len(first[0]) == min(limit or 20, 20)
    assert len(data) == len(list(data))
    for x, y in (first, second):
        assert torch.equal((x.flatten() * 255).round().long(), y)
        assert len(set(y.tolist())) == len(y)
    assert torch.equal(first[1], again[1])  # the same seed, the same order
    assert sorted(first[1].tolist()) == sorted(second[1].tolist())


def test_a_shuffled_pass_differs_from_the_one_before(write):
    data = load_data(write(images=np.zeros((50, 1, 1), np.uint8), labels=np.arange(50)), shuffle=True)
    assert not torch.equal(whole(data)[1], whole(data)[1])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": np.zeros((1, 2, 2, 3), np.uint8)}, "no array 'images', it holds pictures"),
        ({"images": np.zeros((0, 2, 2, 3), np.uint8)}, "holds no images"),
        ({"images": np.zeros((1, 2, 2, 3), np.int32)}, "'images' is int32 of shape 1x2x2x3"),
        ({"images": np.zeros((4, 4), np.float32)}, "'images' is float32 of shape 4x4"),
        ({"images": np.zeros((1, 3, 32, 32), np.uint8)}, "channels last"),
        ({"images": np.zeros((1, 32, 32, 3))}, "channels first"),
        ({"images": np.full((1, 3, 2, 2), np.nan)}, "NaN"),
        ({"images": np.array(["a"])}, "'images' is <U1"),
        ({"images": np.array([{}])}, "the array 'images' holds Python objects"),
        ({"images": np.zeros((2, 2, 2), np.uint8), "labels": [1]}, "2 images but labels of shape 1"),
        ({"images": np.zeros((2, 2, 2), np.uint8), "labels": [[1], [2]]}, "labels of shape 2x1"),
        ({"images": np.zeros((2, 2, 2), np.uint8), "labels": [1.0, 2.0]}, "labels are float64"),
    ],
)
def test_malformed_arrays_are_refused_in_one_line(write, arrays, message):
    with pytest.raises(DataError, match=message) as caught:
        load_data(write(**arrays))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (1, 2)}, "2 values of mean for 3 channels"),
        ({"std": (1, 0, 1)}, "a value of std is 0"),
        ({"input_shape": (3, 8, 8)}, "its images are 3x4x4, the model takes 3x8x8"),
        ({"input_shape": (1, 4, 4)}, "its images are 3x4x4, the model takes 1x4x4"),
        ({"limit": 0}, "at least 1"),
    ],
)
def test_options_that_do_not_fit_the_images_are_refused(write, options, message):
    with pytest.raises(DataError, match=message):
        load_data(write(images=np.zeros((2, 4, 4, 3), np.uint8)), **options)


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=400), st.sampled_from([b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00"]))
def test_garbage_is_a_data_error(tmp_path_factory, garbage, head):
    path = tmp_path_factory.mktemp("garbage") / "a.npz"
    path.write_bytes(head + garbage)
    with pytest.raises(DataError):
        load_data(f"npz:{path}")


def test_a_file_cut_short_is_a_data_error(write, tmp_path):
    spec = write(images=np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3)).astype(np.uint8))
    data = (tmp_path / "data.npz").read_bytes()
    for length in (1, 30, len(data) // 2, len(data) - 1):
        (tmp_path / "data.npz").write_bytes(data[:length])
        with pytest.raises(DataError):
            load_data(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("npz:absent.npz", "no such file"),
        ("imagefolder:absent", "no such folder"),
        ("torchvision:CIFAR10:absent", "nothing is downloaded"),
    ],
)
def test_data_that_is_not_there_is_named(spec, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        load_data(spec)


def test_digits_train_and_test_share_no_image_and_are_all():
    parts = [whole(load_data(f"digits:{part}", batch_size=2000)) for part in ("train", "test")]
    x, y = whole(load_data("digits", batch_size=2000))
    assert [len(part[0]) for part in parts] == [1347, 450]
    assert x.shape == (1797, 1, 8, 8)
    assert (x.min().item(), x.max().item()) == (0.0, 1.0)
    together = torch.cat([torch.cat([images.flatten(1), labels[:, None].float()], 1) for images, labels in parts])
    everything = torch.cat([x.flatten(1), y[:, None].float()], 1)
    assert sorted(map(tuple, together.tolist())) == sorted(map(tuple, everything.tolist()))


@pytest.fixture
def folder(tmp_path):
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.new("RGB", (40, 20 + i), (100 * label, 50, 200)).save(tmp_path / name / f"{i}.png")
    return tmp_path


def test_an_image_folder_is_resized_cropped_and_normalised(folder):
    x, y = whole(load_data(f"imagefolder:{folder}", input_shape=(3, 16, 16)))
    assert x.shape == (4, 3, 16, 16)
    assert y.tolist() == [0, 0, 1, 1]
    expected = (torch.tensor([100, 50, 200]) / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    torch.testing.assert_close(x[2], expected[:, None, None].expand(3, 16, 16))


def test_a_mean_of_zero_is_not_that_of_imagenet(folder):
    bare, given = (
        whole(load_data(f"imagefolder:{folder / 'cat'}", input_shape=(3, 8, 8), mean=mean, std=std))[0]
        for mean, std in (([0.0], [1.0]), (0.0, 1.0))
    )

    assert torch.equal(bare, given)
    assert 0 <= float(bare.min()) < float(bare.max()) <= 1


def test_a_folder_without_classes_has_no_labels(folder):
    _, labels = whole(load_data(f"imagefolder:{folder / 'cat'}", input_shape=(1, 8, 8)))
    assert labels is None


def picture(path, width, height):
    path.parent.mkdir(exist_ok=True)
    values = np.random.default_rng(len(str(path))).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return torch.from_numpy(values).permute(2, 0, 1)[None] / 255


def test_files_of_the_size_asked_for_are_taken_as_they_are(tmp_path):
    pixels = picture(tmp_path / "cat" / "0.png", 24, 16)
    picture(tmp_path / "dog" / "0.png", 25, 16)

    x, _ = whole(load_data(f"imagefolder:{tmp_path}", input_shape=(3, 16, 24), mean=[0.0], std=[1.0]))

    torch.testing.assert_close(x[:1], pixels, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ([(24, 16)] * 3, (3, 16, 24)),
        ([(224, 16)] * 3, (3, 16, 224)),
        ([(225, 16)] * 3, (3, 224, 224)),
        ([(24, 16), (24, 16), (16, 24)], (3, 224, 224)),
        ([(24, 16)] * 40 + [(24, 17)] * 4, (3, 224, 224)),
    ],
    ids=["small", "as large as photos are cut", "larger", "of two sizes", "of two sizes at the end"],
)
def test_small_files_of_one_size_keep_it_where_nobody_asks(tmp_path, sizes, shape):
    for index, (width, height) in enumerate(sizes):
        picture(tmp_path / "cat" / f"{index:02}.png", width, height)

    assert load_data(f"imagefolder:{tmp_path}").shape == shape


def test_classes_are_the_folders_that_show(folder):
    (folder / ".ipynb_checkpoints").mkdir()
    picture(folder / ".ipynb_checkpoints" / "0.png", 8, 8)
    (folder / "ant").mkdir()

    images = load_data(f"imagefolder:{folder}", input_shape=(3, 16, 16))

    assert images.classes == ("ant", "cat", "dog")
    assert images.labels.tolist() == [1, 1, 2, 2]


def test_an_unreadable_image_is_named(folder):
    (folder / "cat" / "0.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"0\.png"):
        load_data(f"imagefolder:{folder}")


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no images"):
        load_data(f"imagefolder:{tmp_path}")


@pytest.mark.parametrize(
    "data",
    [
        torch.arange(70.0).reshape(70, 1, 1, 1),
        [torch.arange(30.0).reshape(30, 1, 1, 1), torch.arange(30.0, 70.0).reshape(40, 1, 1, 1)],
        [(torch.arange(70.0).reshape(70, 1, 1, 1), torch.zeros(70))],
        [{"images": torch.arange(70.0).reshape(70, 1, 1, 1), "labels": None}],
    ],
    ids=["tensor", "tensors", "pairs", "dicts"],
)
@pytest.mark.parametrize("samples", [1, 30, 45, 100])
def test_calibration_takes_the_first_images_of_any_data(data, samples):
    taken = torch.cat(list(calibration_batches(data, samples)))
    assert torch.equal(taken.flatten(), torch.arange(float(min(samples, 70))))


@pytest.mark.parametrize(
    ("data", "message"),
    [([], "yields no images"), (["text"], "a batch is str"), ([{"a": 1}], "a dict with the keys a"), ([[]], "list")],
)
def test_calibration_without_images_is_refused(data, message):
    with pytest.raises(DataError, match=message):
        list(calibration_batches(data, 4))


def test_noise_is_the_same_for_the_same_seed():
    assert random_images((3, 2, 2), 4).shape == (4, 3, 2, 2)
    assert torch.equal(random_images((3, 2, 2), 4, seed=5), random_images((3, 2, 2), 4, seed=5))
    assert not torch.equal(random_images((3, 2, 2), 4, seed=5), random_images((3, 2, 2), 4, seed=6))
