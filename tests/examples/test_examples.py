import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from binarize.recipe import Recipe
from binarize.schemes import presets

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_quickstart_runs_and_writes_what_it_says(tmp_path, capsys):
    runpy.run_path(str(EXAMPLES / "quickstart.py"))["main"](tmp_path / "new")

    printed = capsys.readouterr().out
    assert "first layer: reads the image" in printed
    assert "original " in printed.splitlines()[-1]
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"digits.onnx", "digits.safetensors"}


def test_the_recipe_can_be_read():
    assert Recipe.from_toml(EXAMPLES / "recipe.toml").layers["*.downsample.0"] == "fp"


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(name, *words):
    runpy.run_path(str(EXAMPLES / name))["main"]([str(word) for word in words])


@pytest.mark.parametrize("name", ["cifar10", "imagenet", "own_training_loop", "own_scheme"])
def test_each_starts_as_a_script_that_imported_nothing_before(name):
    line = [sys.executable, str(EXAMPLES / f"{name}.py"), "--help"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 0, done.stderr
    assert "--tiny" in done.stdout


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("cifar10.py", "--train"),
        ("detection.py", "--train"),
        ("imagenet.py", "--train"),
        ("segmentation.py", "--train"),
    ],
)
def test_data_that_is_not_there_ends_an_example_in_one_line(name, option, tmp_path):
    line = [sys.executable, str(EXAMPLES / name), str(tmp_path), option, "npz:nowhere.npz"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 1
    assert done.stderr.startswith("cannot ")
    assert done.stderr.count("\n") == 1


def test_cifar10_trains_and_goes_on_where_it_was(tmp_path, capsys):
    run("cifar10.py", tmp_path, "--tiny")
    first = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("  ")]  # less the passes
    run("cifar10.py", tmp_path, "--tiny")
    second = capsys.readouterr().out.splitlines()

    assert [line.split()[0] for line in second] == ["original", "converted", "fine-tuned"]
    assert (first[0], first[-1]) == (second[0], second[-1])
    assert (tmp_path / "packed.safetensors").is_file()


def test_imagenet_trains_in_two_stages(tmp_path, capsys):
    run("imagenet.py", tmp_path, "--tiny")

    assert "after 2 epochs" in capsys.readouterr().out
    assert "activations:epochs=1" in (tmp_path / "run" / "log.csv").read_text()


def test_an_own_training_loop_is_enough(capsys):
    run("own_training_loop.py", "--tiny")

    assert capsys.readouterr().out.startswith("converted ")


def test_an_own_scheme_is_packed_saved_and_loaded(tmp_path, capsys):
    try:
        run("own_scheme.py", tmp_path, "--tiny")
    finally:
        presets.PRESETS.pop("ternary")

    assert capsys.readouterr().out.startswith("ternary weights, 3-bit activations: ")
    assert (tmp_path / "ternary.safetensors").is_file()
