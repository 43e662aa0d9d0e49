"""The examples and the benchmark of segmentation and detection, on discs and boxes."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

import binarize

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.setattr(sys, "argv", ["examples"])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def example(name, *words):
    runpy.run_path(str(ROOT / "examples" / name))["main"]([str(word) for word in words])


def test_segmentation_gives_the_same_masks_packed_and_pictures_of_them(tmp_path, capsys):
    words = (tmp_path, "--tiny", "--scheme", "group-net:k=2,rates=2-3", "--pictures", 2)
    example("segmentation.py", *words)
    first = capsys.readouterr().out
    example("segmentation.py", *words)

    results = json.loads((tmp_path / "results.json").read_text())
    assert capsys.readouterr().out == first
    assert results["group-net:k=2,rates=2-3"]["same_as_training_form"] == 1.0
    page = (tmp_path / "group-net-k-2-rates-2-3.html").read_text()
    assert "data:image/png;base64," in page
    # two scenes of 48 x 64 in four columns, 4 pixels between them
    assert (tmp_path / "group-net-k-2-rates-2-3.png").read_bytes()[16:24] == bytes([0, 0, 1, 12, 0, 0, 0, 100])


def test_late_stages_take_a_scheme_of_their_own_and_lose_their_strides(tmp_path):
    late = "group-net:k=2,rates=1-2,strides=drop"
    words = ("--tiny", "--strided", "--stage", "tanh:epochs=1", "--stage", "binary", "--pictures", 1)
    example("segmentation.py", tmp_path, *words, "--scheme", "group-net:k=2", "--late", late)

    net = binarize.load(next(tmp_path.glob("*.safetensors")))
    strides = {(name.split(".")[0], m.geometry.stride) for name, m in net.named_modules() if hasattr(m, "geometry")}
    assert ("stage2", (2, 2)) in strides
    assert {stride for stage, stride in strides if stage in ("stage3", "stage4")} == {(1, 1)}


@pytest.mark.parametrize("model", ["one-stage", "two-stage"])
def test_detectors_of_one_stage_and_of_two_are_trained_converted_and_measured(tmp_path, model):
    example("detection.py", tmp_path, "--tiny", "--pictures", 1, "--model", model)

    found = json.loads((tmp_path / "results.json").read_text())["encoding:w=4,a=4"]
    assert 0 <= found["map"] <= found["map50"] <= 1
    assert (tmp_path / "encoding-w-4-a-4.safetensors").stat().st_size == found["bytes"]


@pytest.mark.parametrize(("task", "kind"), [("segmentation", "camvid"), ("detection", "bccd")])
def test_the_table_of_scenes_is_trained(tmp_path, task, kind, monkeypatch):
    shapes = runpy.run_path(str(ROOT / "examples" / "shapes.py"))
    shapes[task](tmp_path / "data.npz", 4, 0)
    (tmp_path / "models.py").write_text(MODELS)
    words = [
        tmp_path / "out", "--task", task, "--model", f"{tmp_path / 'models.py'}:{task}", "--train",
        f"{kind}:{tmp_path / 'data.npz'}", "--val", f"{kind}:{tmp_path / 'data.npz'}", "--batch", 2, "--epochs", 1,
        "--original-epochs", 1, "--row", "encoding-4", "--device", "cpu", "--minutes", 5,
    ]  # fmt: skip

    monkeypatch.setattr(sys, "argv", ["gpu_train.py", *map(str, words)])
    runpy.run_path(str(ROOT / "benchmarks" / "gpu_train.py"), run_name="__main__")

    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["encoding-4"]["finished"]
    assert 0 <= results["encoding-4"][{"segmentation": "miou", "detection": "map"}[task]] <= 1


MODELS = """
from detection import one_stage
from torch import nn


class Segmentation(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=4, dilation=4), nn.ReLU(),
            nn.ConvTranspose2d(16, 16, 2, 2), nn.ReLU(), nn.Conv2d(16, 11, 1),
        )

    def forward(self, x):
        return {"out": self.body(x)}


def segmentation():
    return Segmentation()


def detection():
    return one_stage(3, 64)
"""
