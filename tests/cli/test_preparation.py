"""Images that are prepared in another way than those of training or of calibration are noticed."""

import re

import numpy as np
import pytest
import torch
from cli_desk import refused, run, run_json
from PIL import Image

from binarize.artifact import load
from binarize.cli.preparation import _is_chance
from binarize.data import CHANGES
from binarize.record import record_of
from binarize.sources import open_model

TRAINED = "warning: the images look unlike those of training: 1 sees"
CALIBRATED = "warning: the images look unlike those of calibration: they have 1e+02 times the variance"


@pytest.fixture
def trained(tmp_path):
    """Return the options of a model that was trained on values some 1e4 times as large, and its data."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\ndef net():\n"
        "    first = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU()\n"
        "    last = nn.Conv2d(16, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()\n"
        "    return nn.Sequential(*first, nn.Conv2d(16, 16, 3), nn.ReLU(), *last)\n"
    )
    factory = f"{tmp_path / 'net.py'}:net"
    opened = open_model(factory).model
    opened[1].running_var.fill_(1e4)
    torch.save(opened.state_dict(), tmp_path / "net.pt")
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.zeros(16, int))
    return tmp_path / "net.pt", "--arch", factory, "--data", f"npz:{tmp_path / 'data.npz'}"


def test_convert_says_so_in_json(trained, tmp_path):
    found = run_json("convert", *trained, "-o", tmp_path / "out.safetensors")

    assert found["warning"].startswith(TRAINED.removeprefix("warning: "))


def test_evaluating_a_model_says_so(trained):
    said = run("evaluate", *trained)

    assert said.exit_code == 0
    assert TRAINED in said.stderr


def test_training_says_so_before_it_begins(trained, tmp_path):
    said = run("finetune", *trained, "--epochs", 1, "-o", tmp_path / "out.safetensors")

    assert said.exit_code == 0, said.output
    assert said.stderr.index(TRAINED) < said.stderr.index("epoch 1/1")


def test_evaluating_a_network_compares_with_the_images_of_calibration(desk):
    alike = run("evaluate", desk.net, "--data", desk.data)
    other = run("evaluate", desk.net, "--data", desk.data, "--std", "0.1,0.1,0.1")

    assert (alike.exit_code, other.exit_code) == (0, 0)
    assert "warning" not in alike.stderr
    assert CALIBRATED in other.stderr


@pytest.mark.parametrize("command", ["evaluate", "finetune"])
def test_images_that_do_not_fit_are_still_refused_in_one_line(trained, tmp_path, command):
    np.savez(tmp_path / "gray.npz", images=np.zeros((16, 8, 8, 1), np.uint8), labels=np.zeros(16, int))
    net = tmp_path / "net.safetensors"
    assert run("convert", *trained, "-o", net, "--trainable").exit_code == 0

    target = () if command == "evaluate" else ("-o", tmp_path / "out.safetensors")
    for model in ((net,), trained[:3]):
        said = refused(command, *model, "--data", f"npz:{tmp_path / 'gray.npz'}", *target)
        assert "warning" not in said


@pytest.fixture
def mastered(desk, tmp_path):
    """Return a trainable network, and images whose labels are what it decides."""
    net = tmp_path / "net.safetensors"
    words = (desk.checkpoint, "--arch", desk.factory, "--data", desk.data)
    assert run("convert", *words, "-o", net, "--trainable").exit_code == 0
    images = np.random.default_rng(1).integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)
    with torch.no_grad():
        decided = load(net)(torch.from_numpy(images).permute(0, 3, 1, 2) / 255).argmax(1)
    np.savez(tmp_path / "mastered.npz", images=images, labels=decided.numpy())
    return net, "--data", f"npz:{tmp_path / 'mastered.npz'}", "--epochs", 1, "-o", tmp_path / "out.safetensors"


def test_a_teacher_that_knows_less_than_the_network_is_doubted(desk, mastered, tmp_path):
    torch.manual_seed(1)
    torch.save(open_model(desk.factory).model.state_dict(), tmp_path / "other.pt")

    said = run("finetune", *mastered, "--teacher", tmp_path / "other.pt", "--arch", desk.factory)

    doubt = re.search(r"the teacher decides (\d+)% of the first 64 images right, the network 100%", said.stderr)
    assert doubt is not None, said.stderr
    assert int(doubt[1]) < 50
    assert doubt.start() < said.stderr.index("epoch 1/1")


def test_the_original_is_not_doubted(desk, mastered):
    said = run("finetune", *mastered, "--teacher", desk.checkpoint, "--arch", desk.factory)

    assert said.exit_code == 0, said.output
    assert "warning" not in said.stderr


def test_decisions_are_looked_at_on_images_as_they_are(mastered, monkeypatch):
    glances, changed = [], []
    monkeypatch.setattr("binarize.cli.preparation._of_decisions", lambda glance, *_: glances.append(glance))
    monkeypatch.setitem(CHANGES, "cifar", lambda images, generator: changed.append(images) or torch.zeros_like(images))

    said = run("finetune", *mastered, "--augment", "cifar")

    assert said.exit_code == 0, said.output
    assert changed  # in training
    assert glances[0].batch[0].any()


@pytest.mark.parametrize(
    ("layers", "labelled", "why"),
    [
        ("nn.Flatten(), nn.Linear(192, 3)", False, "its outputs have shape (64, 3), the network's (64, 7)"),
        ("nn.Flatten(), nn.Linear(10, 7)", True, "it does not take images of shape (64, 3, 8, 8)"),
        ("nn.Conv2d(3, 7, 1),", True, "its outputs have shape (64, 7, 8, 8), the network's (64, 7)"),
    ],
)
def test_a_teacher_that_cannot_be_compared_is_left_to_the_training(desk, mastered, tmp_path, layers, labelled, why):
    if not labelled:
        images = np.load(tmp_path / "mastered.npz")["images"]
        np.savez(tmp_path / "mastered.npz", images=images)
    (tmp_path / "small.py").write_text(f"from torch import nn\n\n\ndef net():\n    return nn.Sequential({layers})\n")

    said = run("finetune", *mastered, "--teacher", f"{tmp_path / 'small.py'}:net")

    assert "warning" not in said.stderr
    assert f"cannot learn from the teacher: {why}" in said.stderr


@pytest.fixture
def guessed(mastered, tmp_path):
    """Return the spec of the images of `mastered` with labels that nobody knows."""
    arrays = dict(np.load(tmp_path / "mastered.npz"))
    arrays["labels"] = np.random.default_rng(2).integers(0, 7, 64)
    np.savez(tmp_path / "guessed.npz", **arrays)
    return f"npz:{tmp_path / 'guessed.npz'}"


def test_a_teacher_that_guesses_is_doubted(desk, mastered, guessed):
    teacher = "--teacher", desk.checkpoint, "--arch", desk.factory

    trained = run("finetune", *mastered, *teacher, "--data", guessed)
    measured = run("finetune", *mastered, *teacher, "--val", guessed)
    converted = run("convert", *teacher[1:], "--data", guessed, "--finetune", 1, "-o", mastered[-1])

    for said in (trained, converted):
        assert re.search(
            r"the teacher decides \d+% of the first \d+ images right, hardly more than chance", said.stderr
        )
    assert re.search(r"the teacher decides [\d.]+% of .*guessed.npz right, hardly more than chance", measured.stderr)


def test_a_network_that_guesses_is_doubted_where_nobody_teaches_it(mastered, guessed):
    doubt = r"the network decides \d+% of the first 64 images right; unless its conversion left it there"

    assert re.search(doubt, run("finetune", *mastered, "--data", guessed).stderr)
    assert not re.search(doubt, run("finetune", *mastered).stderr)


def test_a_teacher_that_decides_otherwise_is_doubted_without_labels(desk, mastered, tmp_path):
    images = np.load(tmp_path / "mastered.npz")["images"]
    np.savez(tmp_path / "bare.npz", images=images)
    words = *mastered, "--data", f"npz:{tmp_path / 'bare.npz'}", "--arch", desk.factory
    weights = torch.load(desk.checkpoint)
    last = [name for name in weights if weights[name].shape[:1] == (7,)]
    torch.save({**weights, **{name: weights[name].roll(1, 0) for name in last}}, tmp_path / "other.pt")

    doubt = "the network decides as the teacher on "
    assert doubt in run("finetune", *words, "--teacher", tmp_path / "other.pt").stderr
    assert doubt not in run("finetune", *words, "--teacher", desk.checkpoint).stderr


@pytest.mark.parametrize(
    ("share", "samples", "classes", "guessed"),
    [
        (1.0, 8, 2, False),  # who guesses may be right on all of 8
        (0.75, 64, 2, False),
        (0.6, 64, 2, True),
        (0.25, 64, 7, True),
        (0.3, 64, 7, False),
        (0.0, 64, 1000, True),
        (0.05, 64, 1000, False),
        (1.0, 64, 1, False),
    ],
)
def test_chance_is_what_three_deviations_of_guessing_reach(share, samples, classes, guessed):
    assert _is_chance(share, samples, classes) == guessed


@pytest.mark.parametrize("label", [7, -2])
def test_labels_that_are_no_outputs_are_refused_where_they_are_learnt(desk, mastered, tmp_path, label):
    arrays = dict(np.load(tmp_path / "mastered.npz"))
    arrays["labels"][:2] = label, -100  # which torch leaves out
    np.savez(tmp_path / "mastered.npz", **arrays)

    for words in ((), ("--teacher", desk.checkpoint, "--arch", desk.factory, "--labels", 1)):
        said = refused("finetune", *mastered, *words)
        assert f"mastered.npz: a label is {label}, the network has outputs 0 to 6; number the classes from 0" in said
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(("label", "doubted"), [(7, True), (-2, True), (-100, True), (6, False), (0, False)])
def test_labels_that_are_no_outputs_are_doubted_where_only_the_teacher_is_learnt(
    desk, mastered, tmp_path, label, doubted
):
    arrays = dict(np.load(tmp_path / "mastered.npz"))
    arrays["labels"][0] = label
    np.savez(tmp_path / "mastered.npz", **arrays)

    said = run("finetune", *mastered, "--teacher", desk.checkpoint, "--arch", desk.factory)

    assert said.exit_code == 0, said.output
    doubt = f"a label is {label}, the network has outputs 0 to 6; check the labels of"
    assert (doubt in said.stderr) == ("a label is" in said.stderr) == doubted


@pytest.fixture
def folders(desk, tmp_path):
    """Return the options of a trainable network of seven classes, and a function that writes images in folders."""
    net = tmp_path / "net.safetensors"
    words = (desk.checkpoint, "--arch", desk.factory, "--data", desk.data)
    assert run("convert", *words, "-o", net, "--trainable").exit_code == 0

    def write(name, classes):
        generator = np.random.default_rng(0)
        for label in classes:
            (tmp_path / name / label).mkdir(parents=True)
            for index in range(4):
                pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / name / label / f"{index}.png")
        return f"imagefolder:{tmp_path / name}"

    return ("finetune", net, "--epochs", 1, "-o", tmp_path / "out.safetensors"), write


def test_folders_for_other_classes_than_those_trained_on_are_refused_by_name(folders):
    words, write = folders
    train, val = write("train", "abcdefg"), write("val", "bcdefgh")

    said = refused(*words, "--data", train, "--val", val)

    assert "only the training data has the classes a, only the validation data h; give both the same folders" in said


def test_folders_for_more_or_fewer_classes_than_outputs_are_refused_or_doubted(desk, folders):
    words, write = folders
    few, all_of_them = write("few", "abcdef"), write("all", "abcdefg")
    teacher = "--teacher", desk.checkpoint, "--arch", desk.factory
    many = write("many", "abcdefgh")
    refusal = "a label is 7, the network has outputs 0 to 6; number the classes from 0"
    doubt = "has folders for 6 classes, the network 7 outputs; a label is the position of its folder"

    assert doubt in run("evaluate", words[1], "--data", few).stderr
    assert doubt in run(*words, "--data", few).stderr
    assert refusal in refused(*words, "--data", many)
    assert doubt in run(*words, *teacher, "--data", all_of_them, "--val", few).stderr
    assert "folders for" not in run(*words, *teacher, "--data", few, "--val", all_of_them).stderr  # no label is learnt
    assert "folders for" not in run("evaluate", words[1], "--data", all_of_them).stderr


def test_small_files_keep_their_size_in_every_command(desk, folders, tmp_path):
    _, write = folders
    data = write("train", "abcdefg")
    out = tmp_path / "own.safetensors"

    said = run("convert", desk.checkpoint, "--arch", desk.factory, "--data", data, "-o", out, "--trainable")
    assert "chose --input-shape 3,8,8" in said.stderr
    assert record_of(load(out)).input_shape == (3, 8, 8)
    assert run("evaluate", desk.checkpoint, "--arch", desk.factory, "--data", data).exit_code == 0
    assert run("finetune", out, "--data", data, "--epochs", 1, "-o", tmp_path / "tuned.safetensors").exit_code == 0
