import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from training_desk import data, plain

import binarize
from binarize.errors import TrainingError
from binarize.finetune import Losses, Settings, finetune
from binarize.training.processes import find_processes

needs_accelerate = pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None, reason="accelerate is not installed"
)
SCRIPT = Path(__file__).with_name("together.py")


def torchrun(*words, processes=2):
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(SCRIPT.parent)}
    quiet["PYTHONFAULTHANDLER"] = "1"  # says where a process was that aborts
    return subprocess.run([*line, SCRIPT, *map(str, words)], capture_output=True, text=True, timeout=240, env=quiet)


def alone(epochs):
    net, teacher = plain()
    settings = Settings(epochs=epochs, optimiser="sgd", schedule="constant", warmup=0.0, losses=Losses(labels=1.0))
    return net, finetune(net, data(32), teacher=teacher, val=data(shuffle=False), settings=settings)


@pytest.mark.slow
@needs_accelerate
def test_two_processes_train_as_one_with_twice_the_batch(tmp_path):
    done = torchrun(tmp_path, 2)
    net, history = alone(2)

    assert done.returncode == 0, done.stderr
    together = json.loads((tmp_path / "history.json").read_text())
    # the same images in each step, gradients added in another order: float32 rounding over six steps
    for ours, theirs in zip(together["epochs"], history.epochs, strict=True):
        assert ours["loss"] == pytest.approx(theirs.loss, rel=1e-4)
        assert ours["top1"] == theirs.top1
        assert ours["val"] == dict(theirs.val)
    trained = torch.load(tmp_path / "net.pt", weights_only=True)
    for key, value in net.state_dict().items():
        torch.testing.assert_close(trained[key], value, atol=1e-5, rtol=1e-4)
    for rank in range(2):  # a thread of torch that outlives the run may abort the process as it ends
        threads = json.loads((tmp_path / f"threads{rank}.json").read_text())
        assert not [name for name in threads if "gloo" in name]


@pytest.mark.slow
@needs_accelerate
def test_a_process_that_dies_ends_the_run_and_it_resumes(tmp_path):
    died = torchrun(tmp_path, 2, "2,2")
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    place = torch.load(checkpoint, weights_only=True)["place"]
    left = [path.name for path in (tmp_path / "run").iterdir() if path.is_file()]
    again = torchrun(tmp_path, 2)

    assert died.returncode != 0
    # torchrun may end the other process before its own next step notices
    assert not (tmp_path / "error.txt").exists() or "another process" in (tmp_path / "error.txt").read_text()
    assert sorted(left) == ["checkpoint.pt", "log.csv"]
    assert place == {"stage": 0, "epoch": 1, "batch": 0}
    assert again.returncode == 0, again.stderr
    _, history = alone(2)
    together = json.loads((tmp_path / "history.json").read_text())
    assert [epoch["loss"] for epoch in together["epochs"]] == pytest.approx([e.loss for e in history.epochs], rel=1e-4)


def test_without_accelerate_the_remedy_is_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)

    with pytest.raises(TrainingError, match=r"accelerate is not installed; run pip install 'binarize\[distributed\]'"):
        find_processes(plain()[0])


@needs_accelerate
def test_normalisation_over_all_processes_is_refused_where_they_run_different_branches(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.SyncBatchNorm(8), nn.ReLU())
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), block, nn.Flatten(), nn.LazyLinear(4)).eval()
    x = torch.randn(2, 3, 8, 8)
    model(x)
    net = binarize.convert(model, x, "group-net:k=1,stored=2")

    with pytest.raises(TrainingError, match=r"cannot train in several processes: \S+ waits .* BatchNorm before conv"):
        find_processes(net)
