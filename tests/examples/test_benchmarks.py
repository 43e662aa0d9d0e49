import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

import binarize
from binarize.record import record_of

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
    script("gpu_train.py", *words, "--row", "xnor", "--minutes", 2, "--lr", 0.01, "--reconstruct")

    assert first["encoding-2"]["finished"]
    assert first["encoding-2"]["done"] == 1
    assert (tmp_path / "out" / "encoding-2.safetensors").is_file()
    rows = {row["row"]: row for row in lines(capsys)}
    assert set(rows) == {"original", "xnor"}
    started = torch.load(tmp_path / "out" / "xnor" / "checkpoint.pt", weights_only=True)["settings"]
    assert started["lr"] == rows["xnor"]["lr"] == 0.01
    packed = binarize.load(tmp_path / "out" / "xnor.safetensors")
    assert record_of(packed).recipe.reconstruct


def test_a_row_whose_time_is_over_is_kept_for_the_next_time(tmp_path, capsys):
    words = [
        tmp_path / "out", "--model", "binarize.demo.network:network", "--train", "digits:train", "--val", "digits:test",
        "--device", "cpu", "--row", "xnor", "--limit", 192, "--epochs", 2,
    ]  # fmt: skip
    script("gpu_train.py", *words, "--minutes", 0.0)

    assert [row["row"] for row in lines(capsys)] == ["original"]


@pytest.mark.parametrize("more", [(), ("--bf16",)])
def test_training_forms_are_timed_beside_the_original(capsys, more):
    words = "--size", 32, "--batch", 2, "--rounds", 2, "--scheme", "encoding:w=2,a=2"
    script("training_form.py", "resnet18", *words, *more)

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


def test_the_gpu_benchmark_checks_times_and_writes_tables_on_a_cpu_too(tmp_path, capsys):
    script("gpu.py", "--tiny", "--device", "cpu", "--out", tmp_path / "gpu.json")

    results = json.loads((tmp_path / "gpu.json").read_text())
    assert results["skipped"] == []
    assert len(results["checks"]) >= 6
    assert {row["size"] for row in results["gemm"]} == {64}
    assert [row["layer"] for row in results["layers"]] == [[16, 32, 3, 5], [16, 32, 1, 5]]
    assert {(row["network"], row["graphs"]) for row in results["networks"]} == {("resnet18", True), ("resnet18", False)}
    for section in ("gemm", "layers", "networks"):
        for row in results[section]:
            assert row["contenders"][row["against"]]["ratio"] == 1.0
    held = {name: figures["weights_mb"] for name, figures in results["networks"][0]["contenders"].items()}
    assert held["xnor-net"] < held["torch bf16"] / 2 < held["torch fp32"] / 3
    text = (tmp_path / "gpu.md").read_text()
    assert text.count("| contender |") == 5
    assert "Left out" not in text


def test_the_gpu_benchmark_says_what_it_had_no_time_for(tmp_path, capsys):
    script("gpu.py", "--tiny", "--device", "cpu", "--minutes", 0, "--out", tmp_path / "gpu.json")

    results = json.loads((tmp_path / "gpu.json").read_text())
    assert {part["why"] for part in results["skipped"]} == {"no time left"}
    assert results["gemm"] == results["layers"] == results["networks"] == []
    assert "## Left out" in (tmp_path / "gpu.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_the_gpu_benchmark_without_a_gpu_says_why_it_cannot_run(tmp_path):
    with pytest.raises(SystemExit, match="cannot time a GPU: "):
        script("gpu.py", "--out", tmp_path / "gpu.json")
