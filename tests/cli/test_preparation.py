"""Images that are prepared in another way than those of training or of calibration are noticed."""

import numpy as np
import pytest
import torch
from cli_desk import refused, run, run_json

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
