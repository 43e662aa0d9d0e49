"""Examples that run an exported network without torch, in Python and in C; benchmarks of exported networks."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import binarize

ROOT = Path(__file__).parents[2]
WITHOUT_TORCH = """
import runpy, sys
sys.modules["torch"] = None  # whoever imports it now gets an ImportError
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    packed = binarize.load(ROOT / "examples" / "zoo" / "resnet20_encoding_w3a3.safetensors")
    return binarize.export_onnx(packed, tmp_path_factory.mktemp("zoo") / "net.onnx")


def python(*words):
    line = [sys.executable, "-c", WITHOUT_TORCH, *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)


def test_python_without_torch_runs_both_ways_and_decides_alike(net, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.zeros(8, np.int64))
    words = [ROOT / "examples" / "onnxruntime_only.py", net, "--tiny", "--data", tmp_path / "data.npz"]

    done = python(*words, "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225")
    named = python(*words[:3], "--library", binarize.onnxruntime_library())

    assert (done.returncode, named.returncode) == (0, 0), done.stderr + named.stderr
    ours, bodies, alike = done.stdout.splitlines()
    assert ours.startswith("our library: ")
    assert bodies.startswith("bodies: ")
    assert ours.endswith("% right")
    assert float(alike.partition("%")[0]) >= 87.5  # one image of eight may lie on a rounding
    assert "of 8 images decided alike" in named.stdout


def headers():
    """Return the folder of ONNX Runtime's C headers, or None."""
    asked = [os.environ.get("ONNXRUNTIME_INCLUDE", ""), "/usr/include/onnxruntime", "/usr/local/include/onnxruntime"]
    return next((folder for folder in asked if folder and Path(folder, "onnxruntime_c_api.h").is_file()), None)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    include = headers()
    if include is None:
        pytest.skip("onnxruntime_c_api.h is not installed; ONNXRUNTIME_INCLUDE may name its folder")
    if shutil.which("make") is None or shutil.which("cc") is None:
        pytest.skip("there is no C compiler here")
    folder = tmp_path_factory.mktemp("c")
    for name in ("run.c", "Makefile"):
        shutil.copy(ROOT / "examples" / "c" / name, folder)
    library = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    (folder / "libonnxruntime.so.1").symlink_to(library)  # the wheel has it under its full version only
    line = ["make", "-s", "-C", str(folder), f"HEADERS={include}", f"RUNTIME={folder / 'libonnxruntime.so.1'}"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def c(*words):
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=120, check=False)


def test_the_c_program_gives_what_python_gives_by_the_library_and_by_the_bodies(program, net, tmp_path):
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)
    x.tofile(tmp_path / "x.f32")
    for library in (binarize.onnxruntime_library(), None):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        if library is not None:
            options.register_custom_ops_library(library)
        session = onnxruntime.InferenceSession(str(net), options, providers=["CPUExecutionProvider"])
        scores = session.run(None, {session.get_inputs()[0].name: x})[0][0]

        done = c(program, net, library or "-", tmp_path / "x.f32")

        assert done.returncode == 0, done.stderr
        *shown, taken = done.stdout.splitlines()
        assert [int(line.split()[0]) for line in shown] == np.argsort(-scores)[:5].tolist()
        # printed with six digits
        assert [float(line.split()[1]) for line in shown] == pytest.approx(np.sort(scores)[::-1][:5], rel=1e-5)
        assert taken.endswith(" ms")


def test_the_c_program_says_what_is_wrong(program, net, tmp_path):
    (tmp_path / "short.f32").write_bytes(b"1234")

    assert c(program).returncode == 2
    assert "cannot open shared object file" in c(program, net, tmp_path / "no.so").stderr
    assert "numbers of 3072" in c(program, net, "-", tmp_path / "short.f32").stderr


def test_without_headers_the_makefile_says_what_to_install(tmp_path):
    if shutil.which("make") is None:
        pytest.skip("there is no make here")
    line = ["make", "-C", str(ROOT / "examples" / "c"), f"HEADERS={tmp_path}", "-B", "run"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)

    assert done.returncode != 0
    assert "install libonnxruntime-dev, or give ONNXRUNTIME or HEADERS" in done.stderr


def benchmark(monkeypatch, name, *words):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    runpy.run_path(str(ROOT / "benchmarks" / name), run_name="__main__")


def test_memory_is_measured_alone_and_under_load(net, monkeypatch, capfd):
    benchmark(monkeypatch, "onnx_memory.py", net)
    benchmark(monkeypatch, "onnx_memory.py", net, "--load", 2, 20)

    library, bodies, *load = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert (library["library"], bodies["library"]) == (True, False)
    assert 0 < library["session_mb"] <= library["loading_mb"]
    assert [row["runs"] for row in load] == [4 * tenth for tenth in range(1, 11)]
    assert load[-1]["wrong"] == 0


def test_the_sweep_goes_on_where_it_was_and_writes_a_table(tmp_path, monkeypatch, capsys):
    results = tmp_path / "rows.jsonl"
    for _ in range(2):
        benchmark(monkeypatch, "onnx_sweep.py", results, "--only", "squeezenet1_1", "--scheme", "xnor-net")
    benchmark(monkeypatch, "onnx_sweep.py", results, "--table", tmp_path / "table.md")

    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (row["layers"], row["nodes"], row["graphs"]) == (24, 24, 1)
    assert max(row["library"], row["bodies"]) < 1e-4
    assert "| squeezenet1_1 | `xnor-net` | 1 | 24 |" in (tmp_path / "table.md").read_text()
