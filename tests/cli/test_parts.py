"""Commands on a network whose outer code stays in Python: parts of it are exported, and it is timed."""

import json

import onnxruntime
import pytest
from cli_desk import run

DECIDING = """
import torch
from torch import nn

class Deciding(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1))

    def forward(self, x):
        return self.body(x) if float(x.sum()) > 1e9 else self.body(-x)

def network():
    torch.manual_seed(0)
    return Deciding()
"""


@pytest.fixture
def words(tmp_path):
    (tmp_path / "nets.py").write_text(DECIDING)
    arch = f"{tmp_path / 'nets.py'}:network"
    made = run("convert", arch, "--input-shape", "3,12,12", "-o", tmp_path / "net.safetensors")
    assert made.exit_code == 0, made.output
    return "export", tmp_path / "net.safetensors", "--arch", arch, "-o", tmp_path / "net.onnx"


def test_one_part_is_written(words, tmp_path):
    found = run(*words, "--part", "body", "--json")

    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["bytes"] == (tmp_path / "net.onnx").stat().st_size
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, 12, 12]
    assert session.get_outputs()[0].shape[1:] == [4, 8, 8]


def test_images_of_the_whole_cannot_check_a_part(words):
    found = run(*words, "--part", "body", "--check", "digits")

    assert found.exit_code == 2
    assert "of a --part compare the outputs yourself" in found.output


def test_it_is_timed_beside_its_original(words):
    _, net, _, arch, *_ = words

    found = run("benchmark", net, "--against", arch, "--arch", arch, "--rounds", 3, "--json")

    assert found.exit_code == 0, found.output
    rows = {row["name"]: row for row in json.loads(found.stdout)["rows"]}
    assert rows["binarize"]["median_us"] > 0
    assert rows["torch fp32"]["bytes"] == 4 * (3 * 72 + 8 + 8 * 144 + 16 + 64 + 4)
