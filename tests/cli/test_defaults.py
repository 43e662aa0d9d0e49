import os
import shutil
import subprocess
import sys

import click
import pytest
import torch
from cli_desk import run

from binarize import __version__
from binarize.cli import COMMANDS
from binarize.record import record_of


def test_convert_says_what_it_chose(desk, tmp_path):
    checkpoint = tmp_path / "mine.pt"
    shutil.copy(desk.checkpoint, checkpoint)

    result = run("convert", checkpoint, "--arch", desk.factory, "--input-shape", "3,8,8")

    assert result.exit_code == 0
    assert (tmp_path / "mine.binarized.safetensors").is_file()
    assert "chose --scheme encoding:w=4,a=4" in result.stderr
    assert f"chose -o {tmp_path / 'mine.binarized.safetensors'}" in result.stderr
    assert result.stderr.count("noise") == 1


def test_convert_keeps_where_the_model_came_from_but_no_path(desk):
    from binarize.artifact import load

    source = record_of(load(desk.net)).source

    assert source["arch"] == "nets.py:network"
    assert len(source["sha256"]) == 64
    assert str(desk.folder) not in str(source)


def test_a_report_is_one_page_that_loads_nothing(desk, tmp_path):
    page = tmp_path / "report.html"

    result = run("inspect", desk.net, "--report", page)

    assert result.exit_code == 0
    text = page.read_text()
    assert "first layer: reads the image" in text
    assert not any(word in text for word in ("http", "<script", "src=", "@import"))


def test_help_names_every_command_and_every_command_has_help():
    printed = run("--help").stdout

    for command in COMMANDS:
        assert f"\n  {command.name}" in printed
        assert run(command.name, "--help").exit_code == 0
        assert command.help
        assert all(option.help for option in command.params if isinstance(option, click.Option))


def test_the_command_line_starts_with_nothing_heavy_beside_torch():
    heavy = ("torchvision", "onnx", "onnxruntime", "rich", "sklearn")
    code = f"import sys; import binarize.cli; print([name for name in {heavy} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_doctor_reads_well_without_extras_and_ends_well():
    result = run("doctor")

    assert result.exit_code == 0
    assert "kernel" in result.stdout
    assert f"on {torch.get_num_threads()} of {os.cpu_count()} CPUs" in result.stdout


def test_doctor_names_the_kernels_that_the_environment_asks_for(monkeypatch):
    monkeypatch.setenv("BINARIZE_KERNEL", "scalar, reference")

    printed = run("doctor").stdout

    assert "route popcount: scalar (BINARIZE_KERNEL)" in printed
    assert "route int8: scalar (BINARIZE_KERNEL)" in printed


def test_doctor_tells_what_is_wrong_with_the_wishes_of_the_environment(monkeypatch):
    monkeypatch.setenv("BINARIZE_KERNEL", "scalar,avx3")
    monkeypatch.setenv("BINARIZE_ROUTE", "int9")

    printed = run("doctor").stdout

    assert "BINARIZE_KERNEL names 'avx3': there is no such kernel (did you mean" in printed
    assert "BINARIZE_ROUTE is 'int9': there is no such route (did you mean 'int8'?)" in printed


def test_schemes_tell_their_paper():
    printed = run("schemes").stdout

    assert "arXiv:1603.05279" in printed
    assert "encoding:w=4,a=4" in printed


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "binarize", "--version"], capture_output=True, text=True, check=True)

    assert done.stdout.strip().endswith(__version__)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--bogus"], "cannot run python -m binarize: No such option '--bogus'"),
        (["convert", "x", "--scheme"], "cannot run python -m binarize convert: Option '--scheme' requires an argument"),
        (["schemes", "--bogus"], "cannot run python -m binarize schemes: No such option '--bogus'"),
    ],
)
def test_wrong_options_end_in_one_line(words, said):
    done = subprocess.run([sys.executable, "-m", "binarize", *words], capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert done.stderr.startswith(f"binarize: {said}")
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("-h` lists what it takes\n")
