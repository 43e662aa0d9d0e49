"""Bad input: exit code 2, one line that names the thing, nothing written, what stood there intact."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_desk import refused, run
from torch import nn


@pytest.fixture
def old(tmp_path):
    """An output of an earlier day; it must survive every refusal."""
    path = tmp_path / "out" / "net.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"from an earlier day")
    yield path
    assert path.read_bytes() == b"from an earlier day"
    assert [other.name for other in path.parent.iterdir()] == [path.name]


def test_a_file_that_is_not_there(old, tmp_path):
    assert "none.pt" in refused("convert", tmp_path / "none.pt", "-o", old)


def test_a_truncated_checkpoint(desk, old, tmp_path):
    cut = tmp_path / "cut.pt"
    whole = Path(desk.checkpoint).read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])

    assert "cut.pt" in refused("convert", cut, "--arch", desk.factory, "-o", old)


def test_garbage(desk, old, tmp_path):
    (tmp_path / "noise.pt").write_bytes(bytes(range(256)) * 8)

    assert "noise.pt" in refused("convert", tmp_path / "noise.pt", "--arch", desk.factory, "-o", old)


def test_a_pickle_with_a_foreign_global_is_not_run(old, tmp_path):
    marker = tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return open, (str(marker), "w")

    (tmp_path / "trap.pt").write_bytes(pickle.dumps(Trap(), protocol=2))

    refused("convert", tmp_path / "trap.pt", "-o", old)
    assert not marker.exists()


def test_a_state_dict_that_does_not_fit_names_keys(desk, misfit, old):
    assert "0.weight" in refused("convert", misfit, "--arch", desk.factory, "-o", old)


def test_a_state_dict_without_an_architecture_says_what_to_give(desk, old):
    assert "--arch" in refused("convert", desk.checkpoint, "-o", old)


def test_an_unknown_architecture_suggests_the_nearest(desk, old):
    assert "'resnet18'" in refused("convert", desk.checkpoint, "--arch", "resnt18", "-o", old)


@pytest.mark.parametrize("scheme", ["xnornet", "xnor_net"])
def test_an_unknown_scheme_suggests_the_nearest(scheme, desk, old):
    line = refused("convert", desk.checkpoint, "--arch", desk.factory, "--scheme", scheme, "-o", old)

    assert "'xnor-net'" in line


def test_a_recipe_that_cannot_be_read(desk, old, tmp_path):
    (tmp_path / "recipe.toml").write_text("scheme = ")

    assert "recipe.toml" in refused("convert", desk.checkpoint, "--recipe", tmp_path / "recipe.toml", "-o", old)


def test_no_convertible_layer_is_an_error_with_reasons_on_one_line(desk, old):
    line = refused(
        "convert", desk.checkpoint, "--arch", desk.factory, "--data", desk.data, "--keep", "*", "-o", old
    )  # fmt: skip

    assert "4 x kept by recipe pattern '*'" in line


def test_a_wrong_input_shape(desk, old):
    words = ("convert", desk.checkpoint, "--arch", desk.factory, "--input-shape", "1,8,8", "-o", old)

    assert "1x8x8" in refused(*words)


def test_a_kernel_that_does_not_exist_is_named_and_not_the_images(desk, monkeypatch):
    monkeypatch.setenv("BINARIZE_KERNEL", "avx3")

    result = run("evaluate", desk.net, "--data", desk.data)

    assert result.exit_code != 0
    assert "no such kernel (did you mean 'avx2'?)" in result.stderr
    assert "resize" not in result.stderr


def test_data_of_another_shape_than_asked(desk, old):
    words = ("convert", desk.checkpoint, "--arch", desk.factory, "--data", desk.data, "--input-shape", "3,9,9")

    assert "3x9x9" in refused(*words, "-o", old)


def test_data_with_other_channels_than_the_model(desk, old, tmp_path):
    np.savez(tmp_path / "grey.npz", images=np.zeros((4, 8, 8, 1), np.uint8))
    words = ("convert", desk.checkpoint, "--arch", desk.factory, "--data", f"npz:{tmp_path / 'grey.npz'}")

    line = refused(*words, "-o", old)

    assert "1, 8, 8" in line
    assert line.endswith("give images of 3 channels")
    assert "take data of 3 channels" in refused(*words, "--input-shape", "3,8,8", "-o", old)


def test_an_onnx_file_on_images_of_another_size_and_on_boxes(desk, tmp_path):
    path, size, grey = tmp_path / "net.onnx", tmp_path / "large.npz", tmp_path / "grey.npz"
    assert run("export", desk.net, "-o", path).exit_code == 0
    np.savez(size, images=np.zeros((4, 24, 20, 3), np.uint8), labels=np.zeros(4, np.int64))
    np.savez(grey, images=np.zeros((4, 8, 8, 1), np.uint8), labels=np.zeros(4, np.int64))

    assert "--dynamic-size" in refused("evaluate", path, "--data", f"npz:{size}")
    assert "give images of the shape" in refused("evaluate", path, "--data", f"npz:{grey}")
    assert "as many channels as it takes" in refused("evaluate", desk.net, "--data", f"npz:{grey}")
    assert "it is an ONNX file already" in refused("export", path, "-o", tmp_path / "other.onnx")


@pytest.mark.parametrize("words", [("inspect",), ("inspect", "--times"), ("benchmark",)])
def test_an_onnx_file_where_a_network_is_wanted(words, tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"a healthy file for all that is known")

    assert "it is an ONNX file" in refused(words[0], tmp_path / "net.onnx", *words[1:])


@pytest.mark.parametrize(
    ("name", "remedy"), [("net.xml", "add --format openvino"), ("net.safetensors", "end its name")]
)
def test_an_onnx_file_under_the_name_of_another_kind(name, remedy, desk, tmp_path):
    assert remedy in refused("export", desk.net, "-o", tmp_path / name)
    assert not (tmp_path / name).exists()


def test_images_to_check_with_that_cannot_be_read_leave_no_file(desk, tmp_path):
    assert "nowhere.npz" in refused("export", desk.net, "-o", tmp_path / "net.onnx", "--check", "npz:nowhere.npz")
    assert not (tmp_path / "net.onnx").exists()


@pytest.mark.parametrize("words", [("--mean", "0.5"), ("--samples", 3), ("--format", "openvino", "--opset", 19)])
def test_options_that_would_do_nothing_are_usage_errors(words, desk, tmp_path):
    result = run("export", desk.net, "-o", tmp_path / "net.xml", *words)

    assert result.exit_code == 2
    assert "--check" in result.stderr or "OpenVINO's" in result.stderr


def test_python_code_where_a_model_or_its_builder_is_wanted(desk, old, tmp_path):
    code = Path(desk.factory.rpartition(":")[0])

    for words in ((code, "-o", old), (desk.checkpoint, "--arch", code, "-o", old)):
        assert (
            f"name the function in it{' that builds the network: ' if words[0] is code else ', '}{code}:FUNCTION"
            in (refused("convert", *words))
        )


def test_a_weight_that_is_not_finite_names_the_layer(desk, diverged, old):
    assert "'3'" in refused("convert", diverged, "--arch", desk.factory, "-o", old)


def test_empty_data(desk, old, tmp_path):
    np.savez(tmp_path / "empty.npz", images=np.zeros((0, 8, 8, 3), np.uint8), labels=np.zeros(0, np.int64))
    words = ("convert", desk.checkpoint, "--arch", desk.factory, "--data", f"npz:{tmp_path / 'empty.npz'}")

    assert "empty.npz" in refused(*words, "-o", old)


def test_an_unknown_data_spec_suggests_the_nearest(desk, old):
    words = ("convert", desk.checkpoint, "--arch", desk.factory, "--data", "digit", "-o", old)

    assert "'digits'" in refused(*words)


def test_labels_out_of_range(desk, tmp_path):
    np.savez(tmp_path / "far.npz", images=np.zeros((4, 8, 8, 3), np.uint8), labels=np.array([0, 1, 99, 2]))

    assert "99" in refused("evaluate", desk.net, "--data", f"npz:{tmp_path / 'far.npz'}")


def test_an_output_in_no_folder(desk, tmp_path):
    words = ("convert", desk.checkpoint, "--arch", desk.factory, "--data", desk.data)

    assert "nowhere" in refused(*words, "-o", tmp_path / "nowhere" / "net.safetensors")


def test_an_output_that_is_a_folder(desk, tmp_path):
    words = ("convert", desk.checkpoint, "--arch", desk.factory, "--data", desk.data)

    assert "it is a folder" in refused(*words, "-o", tmp_path)


@pytest.mark.parametrize("command", ["export", "inspect", "evaluate", "benchmark"])
def test_a_damaged_network(command, desk, tmp_path):
    cut = tmp_path / "cut.safetensors"
    whole = Path(desk.net).read_bytes()
    cut.write_bytes(whole[: len(whole) - 40])
    more = {"export": ("-o", tmp_path / "net.onnx"), "evaluate": ("--data", desk.data)}.get(command, ())

    line = refused(command, cut, *more)
    assert "cut.safetensors" in line
    assert "damaged or cut short" in line
    assert not (tmp_path / "net.onnx").exists()


def test_a_model_where_a_converted_network_belongs(desk, tmp_path):
    assert "net.pt" in refused("export", desk.checkpoint, "-o", tmp_path / "net.onnx")
    for model in (desk.checkpoint, "torchvision:resnet18"):
        line = refused("export", model, "-o", tmp_path / "net.onnx")
        assert f"convert it first: binarize convert {model} -o NET" in line


def test_a_converted_network_where_a_model_belongs(desk, old):
    assert "net.safetensors" in refused("convert", desk.net, "-o", old)


def test_an_unknown_command_suggests_the_nearest():
    result = run("convrt")

    assert result.exit_code == 2
    assert "'convert'" in result.stderr


def test_an_option_with_a_bad_value_is_a_usage_error(desk):
    result = run("convert", desk.checkpoint, "--input-shape", "3,8")

    assert result.exit_code == 2
    assert "write 3,224,224" in result.stderr


def test_an_interruption_leaves_the_old_output(desk, old, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["binarize.convert"], "convert", interrupted)
    result = run("convert", desk.checkpoint, "--arch", desk.factory, "--data", desk.data, "-o", old)

    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "binarize: interrupted; what it was writing is left as it was"


def test_a_bug_keeps_its_traceback(desk, old, monkeypatch):
    def buggy(*_, **__):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(sys.modules["binarize.convert"], "convert", buggy)
    result = run("convert", desk.checkpoint, "--arch", desk.factory, "--data", desk.data, "-o", old)

    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


def test_in_a_real_process_a_refusal_is_one_line_on_stderr(process, tmp_path):
    done = process("convert", tmp_path / "none.pt")

    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


def test_a_whole_module_of_foreign_classes_names_the_class(old, tmp_path):
    torch.save(_Foreign(), tmp_path / "module.pt")

    assert "_Foreign" in refused("convert", tmp_path / "module.pt", "-o", old)


class _Foreign(nn.Module):
    """A user's own class, pickled whole."""


@pytest.mark.parametrize("option", [("--scheme", "xnor-net"), ("--recipe", "recipe.toml")])
def test_a_scheme_for_a_converted_network_is_a_usage_error(option, desk):
    result = run("inspect", desk.net, *option)

    assert result.exit_code == 2
    assert "are for a MODEL" in result.stderr
