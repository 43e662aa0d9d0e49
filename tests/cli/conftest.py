import subprocess
import sys

import numpy as np
import pytest
import torch
from cli_desk import NETWORK, Desk, run
from torch import nn


@pytest.fixture(scope="session")
def desk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("desk")
    (folder / "nets.py").write_text(NETWORK)
    factory = f"{folder / 'nets.py'}:network"
    torch.manual_seed(0)
    space = {}
    exec(NETWORK, space)
    model = space["network"]().eval()
    torch.save(model.state_dict(), folder / "net.pt")
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (48, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / "data.npz", images=images, labels=generator.integers(0, 7, 48))
    data = f"npz:{folder / 'data.npz'}"
    net = folder / "net.safetensors"
    words = ("convert", folder / "net.pt", "--arch", factory, "--data", data, "-o", net)
    result = run(*words)
    assert result.exit_code == 0, (result.output, result.exception)
    return Desk(folder, factory, str(folder / "net.pt"), data, str(net))


@pytest.fixture
def diverged(tmp_path, desk):
    state = torch.load(desk.checkpoint, weights_only=True)
    state["3.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, tmp_path / "diverged.pt")
    return tmp_path / "diverged.pt"


@pytest.fixture
def misfit(tmp_path):
    torch.save(nn.Conv2d(3, 4, 3).state_dict(), tmp_path / "misfit.pt")
    return tmp_path / "misfit.pt"


@pytest.fixture
def process():
    """Run the command line as a user's shell does."""

    def start(*words):
        line = [sys.executable, "-c", "from binarize.cli import main; main()", *map(str, words)]
        return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)

    return start
