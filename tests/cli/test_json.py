import json
from importlib.util import find_spec

import pytest
import torch
from cli_desk import run, run_json

from binarize.artifact import load
from binarize.calibration import reconstruct
from binarize.data import load_data
from binarize.layers.binary import BinaryConv2d
from binarize.layers.packed import PackedConv2d


def test_convert_says_what_it_did_and_where(desk, tmp_path):
    out = tmp_path / "out.safetensors"

    found = run_json("convert", desk.checkpoint, "--arch", desk.factory, "--data", desk.data, "-o", out)

    assert (found["converted"], found["kept"], found["output"]) == (2, 2, str(out))
    assert out.stat().st_size == found["bytes"]
    assert any(isinstance(module, PackedConv2d) for module in load(out).modules())


def test_convert_writes_the_training_form_when_asked(desk, tmp_path):
    out = tmp_path / "out.safetensors"

    run_json("convert", desk.checkpoint, "--arch", desk.factory, "--data", desk.data, "-o", out, "--trainable")

    assert any(isinstance(module, BinaryConv2d) for module in load(out).modules())


def test_convert_follows_a_recipe_file_and_options_overrule_it(desk, tmp_path):
    recipe, out = tmp_path / "recipe.toml", tmp_path / "out.safetensors"
    recipe.write_text('scheme = "xnor-net"\nsamples = 16\n')

    found = run_json(
        "convert", desk.checkpoint, "--arch", desk.factory, "--data", desk.data, "-o", out,
        "--recipe", recipe, "--keep", "3",
    )  # fmt: skip

    assert (found["converted"], found["kept"], found["scheme"]) == (1, 3, "xnor-net")


def test_reconstruct_tells_the_error_of_each_group(desk, tmp_path, monkeypatch):
    monkeypatch.setattr(reconstruct, "STEPS", 2)
    monkeypatch.setattr(reconstruct, "WHOLE_STEPS", 2)
    words = ("convert", desk.checkpoint, "--arch", desk.factory, "--data", desk.data, "--scheme", "encoding:w=2,a=2")

    found = run_json(*words, "-o", tmp_path / "out.safetensors", "--reconstruct")
    shown = run("inspect", tmp_path / "out.safetensors").output

    assert all(0 < fit["after"] <= fit["before"] for fit in found["groups"].values())
    assert all(f"{fit['before']:.4f}" in shown for fit in found["groups"].values())
    assert len(found["groups"]) > 0


def test_convert_is_the_same_for_the_same_seed(desk, tmp_path):
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path in paths:
        run_json("convert", desk.checkpoint, "--arch", desk.factory, "--data", desk.data, "-o", path, "--seed", 5)

    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_evaluate_has_its_fixed_keys(desk):
    found = run_json("evaluate", desk.net, "--data", desk.data)

    assert set(found) == {"top1", "top5", "samples"}
    assert found["samples"] == 48
    assert 0 <= found["top1"] <= found["top5"] <= 1


def test_evaluate_counts_agreement_with_a_teacher(desk):
    found = run_json("evaluate", desk.net, "--data", desk.data, "--teacher", desk.net)

    assert found["agreement"] == 1.0


def test_evaluate_normalises_by_mean_and_std(desk):
    plain = run_json("evaluate", desk.checkpoint, "--arch", desk.factory, "--data", desk.data)
    words = ("--teacher", desk.checkpoint, "--teacher-arch", desk.factory, "--mean", "0.9,0.1,0.5", "--std", "0.01,3,1")
    moved = run_json("evaluate", desk.checkpoint, "--arch", desk.factory, "--data", desk.data, *words)

    assert moved["agreement"] == 1.0  # both see the same images
    assert (moved["top1"], moved["top5"]) != (plain["top1"], plain["top5"])


def test_inspect_of_a_network_has_its_fixed_keys(desk):
    found = run_json("inspect", desk.net)

    keys = {"name", "kind", "scheme", "bytes", "fp32_bytes", "reason"}
    assert all(keys <= set(layer) for layer in found["layers"])
    assert {"bytes", "fp32_bytes", "binary_macs", "float_macs", "converted", "kept"} <= set(found["totals"])
    assert [layer["scheme"] for layer in found["layers"]] == [None, "encoding:w=4,a=4", "encoding:w=4,a=4", None]
    assert found["layers"][0]["reason"].startswith("first layer")


def test_inspect_times_every_packed_layer(desk):
    found = run_json("inspect", desk.net, "--times")

    converted = {layer["name"] for layer in found["layers"] if layer["scheme"] is not None}
    assert {row["name"] for row in found["times"]} == converted
    for row in found["times"]:
        assert set(row) == {"name", "route", "predicted_us", "measured_us"}
        assert row["measured_us"] > 0
    assert "left to torch" in run("inspect", desk.net, "--times").stdout


def test_inspect_of_a_model_says_what_convert_would_do(desk):
    words = ("--arch", desk.factory, "--scheme", "xnor-net", "--input-shape", "3,8,8")
    would = run_json("inspect", desk.checkpoint, *words)

    assert would["form"] == "original"
    assert (would["totals"]["converted"], would["totals"]["kept"]) == (2, 2)
    assert would["totals"]["binary_macs"] == 2 * 8 * 8 * 16 * 16 * 9  # one product per MAC


def test_export_says_what_it_wrote(desk, tmp_path):
    out = tmp_path / "net.onnx"

    found = run_json("export", desk.net, "-o", out)

    assert found == {"output": str(out), "bytes": out.stat().st_size}


def test_an_exported_file_can_be_evaluated(desk, tmp_path):
    out = tmp_path / "net.onnx"
    run_json("export", desk.net, "-o", out)

    found = run_json("evaluate", out, "--data", desk.data, "--teacher", desk.net)

    assert found["agreement"] >= 0.95  # a last-bit difference before a rounding may flip a decision of a random net


def test_openvino_joins_the_benchmark_when_it_is_asked_for(desk):
    found = run_json(
        "benchmark", desk.net, "--against", desk.checkpoint, "--arch", desk.factory, "--threads", 1, "--rounds", 1,
        "--openvino",
    )  # fmt: skip

    names = [row["name"] for row in found["rows"]]
    assert names[:5] == ["binarize", "torch fp32", "onnxruntime fp32", "onnxruntime int8", "openvino fp32"]
    found_nncf = find_spec("nncf")
    quantised = found_nncf is not None and found_nncf.origin is not None
    assert ("openvino int8" in names) == quantised
    assert any("there is no NNCF" in note for note in found["notes"]) == (not quantised)


def test_benchmark_has_its_fixed_keys_and_all_four_contenders(desk):
    threads = torch.get_num_threads()

    found = run_json(
        "benchmark", desk.net, "--against", desk.checkpoint, "--arch", desk.factory, "--data", desk.data,
        "--threads", 1, "--batch", 2, "--rounds", 1,
    )  # fmt: skip

    assert [row["name"] for row in found["rows"]] == [
        "binarize", "torch fp32", "onnxruntime fp32", "onnxruntime int8",
    ]  # fmt: skip
    for row in found["rows"]:
        assert {"name", "median_us", "p10_us", "batch", "threads", "bytes"} <= set(row)
        assert (row["batch"], row["threads"]) == (2, 1)
        assert 0 < row["p10_us"] <= row["median_us"]
        assert row["bytes"] > 0
    assert found["rows"][1]["agreement"] == 1.0
    assert torch.get_num_threads() == threads


def test_schemes_lists_every_preset():
    found = run_json("schemes")

    assert {"xnor-net", "encoding"} <= {row["name"] for row in found["schemes"]}
    assert found["full_precision"]["ResNet-18"]["megabits"] == pytest.approx(373.7, abs=0.05)
    costs = {row["name"]: row["costs"]["ResNet-50"] for row in found["schemes"]}
    assert costs["pa-net"]["megabits"] == pytest.approx(159.6, abs=0.05)
    assert costs["pa-net"]["operations"] == pytest.approx(13.60e8, rel=1e-3)


def test_doctor_gives_a_reason_for_every_kernel_that_does_not_run():
    found = run_json("doctor")

    assert found["kernels"][-1] == {"name": "reference", "reason": None, "routes": ["popcount", "int8"]}
    assert all(row["reason"] is None or row["reason"] for row in found["kernels"])
    assert found["packages"]["torch"] == torch.__version__.partition("+")[0]


def test_demo_does_all_of_it(tmp_path):
    words = ("--folder", tmp_path / "demo", "--epochs", 1)
    found = run_json("demo", *words)

    assert found["rows"][0]["name"] == "binarize"
    assert all(row["top1"] > 0.3 for row in found["rows"])  # one epoch; chance is 0.1
    assert {"network.py", "digits.pt", "digits.safetensors", "digits.onnx"} <= {
        path.name for path in (tmp_path / "demo").iterdir()
    }


def test_json_is_one_object_in_a_real_process(desk, process):
    done = process("inspect", desk.net, "--json")

    assert done.returncode == 0
    assert json.loads(done.stdout)["form"] == "packed"
    assert done.stderr == ""


def test_plain_output_has_no_drawing_when_it_is_no_terminal(desk):
    printed = run("inspect", desk.net).stdout

    assert printed.isascii()
    assert "first layer: reads the image" in printed


def test_an_export_is_checked_on_images_in_the_order_that_is_asked_for(desk, tmp_path, monkeypatch):
    seen = []

    def noting(*args, **options):
        seen.append(options)
        return load_data(*args, **options)

    monkeypatch.setattr("binarize.data.load_data", noting)

    found = run_json("export", desk.net, "-o", tmp_path / "net.onnx", "--check", desk.data, "--channels", "bgr")

    assert [options["channels"] for options in seen] == ["bgr"]
    assert all(row["agreed"] >= 0.9 for row in found["check"])
