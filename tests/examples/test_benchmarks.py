import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def script(name, *words):
    sys.argv = [name, *map(str, words)]
    runpy.run_path(str(BENCHMARKS / name), run_name="__main__")


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture(autouse=True)
def _own_words(monkeypatch):
    monkeypatch.setattr(sys, "argv", [])


def test_the_table_is_trained_row_by_row_and_goes_on(tmp_path, capsys):
    words = [
        tmp_path / "out", "--model", "binarize.demo.network:network", "--train", "digits:train", "--val", "digits:test",
        "--limit", 192, "--epochs", 1, "--original-epochs", 1, "--device", "cpu", "--row", "encoding-2",
    ]  # fmt: skip

    script("gpu_train.py", *words, "--minutes", 2)
    first = json.loads((tmp_path / "out" / "results.json").read_text())
    capsys.readouterr()
    script("gpu_train.py", *words, "--row", "xnor", "--minutes", 2)

    assert first["encoding-2"]["finished"]
    assert first["encoding-2"]["done"] == 1
    assert (tmp_path / "out" / "encoding-2.safetensors").is_file()
    assert {row["row"] for row in lines(capsys)} == {"original", "xnor"}


def test_a_row_whose_time_is_over_is_kept_for_the_next_time(tmp_path, capsys):
    words = [
        tmp_path / "out", "--model", "binarize.demo.network:network", "--train", "digits:train", "--val", "digits:test",
        "--device", "cpu", "--row", "xnor", "--limit", 192, "--epochs", 2,
    ]  # fmt: skip
    script("gpu_train.py", *words, "--minutes", 0.0)

    assert [row["row"] for row in lines(capsys)] == ["original"]


def test_training_forms_are_timed_beside_the_original(capsys):
    script("training_form.py", "resnet18", "--size", 32, "--batch", 2, "--rounds", 2, "--scheme", "encoding:w=2,a=2")

    rows = lines(capsys)
    assert [row["scheme"] for row in rows] == ["fp", "encoding:w=2,a=2"]
    assert rows[0]["ratio"] == 1.0
    assert rows[1]["ratio"] > 0


def test_loaders_are_timed_by_preset_and_threads(capsys):
    script("loader.py", "--count", 8, "--batch", 4, "--threads", 0, 2)

    rows = lines(capsys)
    assert [(row["preset"], row["threads"]) for row in rows] == [
        ("imagenet", 0), ("imagenet", 2), ("cifar", 0), ("cifar", 2),
    ]  # fmt: skip
    assert all(row["images_per_second"] > 0 for row in rows)
