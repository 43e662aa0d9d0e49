import dataclasses

import pytest
import torch
from models import Residual
from torch import nn

from binarize.benchmark import Benchmark, Row, benchmark, interleave
from binarize.convert import convert
from binarize.errors import DataError, ExportError, ModelError, SourceError
from binarize.peers import OnnxModel, write_fp32, write_int8


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    model = Residual().eval()
    return model, convert(model, torch.randn(16, 3, 8, 8), "encoding:w=8,a=8")


@pytest.fixture(scope="module")
def peers(pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("peers")
    images = torch.randn(8, 3, 8, 8)
    write_fp32(pair[0], images[:2], folder / "fp32.onnx")
    write_int8(folder / "fp32.onnx", images, folder / "int8.onnx")
    return folder


def test_contenders_take_turns_and_are_called_alike():
    calls = []
    times = interleave({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=3, seconds=60)

    assert calls == (["a"] * 7 + ["b"] * 7) * 3
    assert {name: len(found) for name, found in times.items()} == {"a": 15, "b": 15}


def test_time_that_is_up_ends_the_run_after_three_rounds():
    assert len(interleave({"a": lambda: None}, rounds=50, seconds=0)["a"]) == 15


def test_without_an_original_there_is_one_row(pair):
    found = benchmark(pair[1], rounds=1)

    assert [row.name for row in found.rows] == ["binarize"]


def test_decisions_are_compared_on_real_images(pair):
    found = benchmark(pair[1], against=pair[0], images=torch.randn(16, 3, 8, 8), rounds=1)

    assert [row.agreement for row in found.rows[1:3]] == [1.0, 1.0]
    assert found.rows[0].agreement >= 0.9  # eight bits: practically lossless


def test_too_few_images_for_a_batch_is_an_error(pair):
    with pytest.raises(DataError, match="batches of 4"):
        benchmark(pair[1], images=torch.randn(2, 3, 8, 8), batch=4)


def test_a_network_that_gives_nan_is_not_timed(pair):
    broken = convert(pair[0], torch.randn(4, 3, 8, 8), "xnor-net")
    with torch.no_grad():
        broken.fc.bias.fill_(float("nan"))

    with pytest.raises(ModelError, match="NaN"):
        benchmark(broken, rounds=1)


def test_a_peer_that_computes_something_else_is_not_timed(pair):
    class Changing(nn.Module):
        """Answers otherwise in the exporter than afterwards."""

        def forward(self, x):
            factor = 3.0 if torch.compiler.is_exporting() else 1.0
            return nn.functional.pad(x.mean((2, 3)), (0, 2)) * factor

    with pytest.raises(ExportError, match="differ"):
        benchmark(pair[1], against=Changing().eval(), rounds=1)


def test_an_original_that_cannot_be_exported_costs_only_its_rows(pair):
    class Stubborn(nn.Module):
        def forward(self, x):
            return nn.functional.pad(x.mean((2, 3)), (0, 2)) if float(x.detach().numpy().sum()) else x

    found = benchmark(pair[1], against=Stubborn().eval(), rounds=1)

    assert [row.name for row in found.rows] == ["binarize", "torch fp32"]
    assert "fp32 ONNX" in found.notes[0]


def test_the_fp32_peer_computes_the_original(pair, peers):
    images = torch.randn(2, 3, 8, 8)

    # The same float32 sums in another order, BN folded: a few units of the last place of values around 1.
    torch.testing.assert_close(OnnxModel(peers / "fp32.onnx")(images), pair[0](images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_file_of_fixed_batch_takes_any_batch(count, pair, peers):
    images = torch.randn(count, 3, 8, 8)

    torch.testing.assert_close(OnnxModel(peers / "fp32.onnx")(images), pair[0](images), rtol=1e-4, atol=1e-5)


def test_the_int8_peer_really_holds_int8_weights(peers):
    import onnx

    model = onnx.load(peers / "int8.onnx")
    kinds = [tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 4]

    assert kinds
    assert set(kinds) == {onnx.TensorProto.INT8}


def test_a_file_that_is_no_onnx_is_a_source_error(tmp_path):
    (tmp_path / "noise.onnx").write_bytes(b"noise")

    with pytest.raises(SourceError, match=r"noise\.onnx"):
        OnnxModel(tmp_path / "noise.onnx")


def _row(name, median):
    return Row(name, median, median, 1, 1, 100)


def test_the_verdict_says_plainly_when_int8_is_faster():
    lines = Benchmark((_row("binarize", 200.0), _row("torch fp32", 600.0), _row("onnxruntime int8", 100.0))).verdict()

    assert lines[:2] == [
        "binarize is 3.0 times faster than torch fp32", "binarize is 2.0 times slower than onnxruntime int8",
    ]  # fmt: skip
    assert "onnxruntime int8 is the better choice" in lines[-1]


def test_the_better_choice_is_the_quickest_and_by_more_than_noise():
    ours, int8 = _row("binarize", 100.0), _row("onnxruntime int8", 80.0)

    assert "openvino int8 is the better choice" in Benchmark((ours, int8, _row("openvino int8", 70.0))).verdict()[-1]
    assert "better choice" not in " ".join(Benchmark((ours, _row("onnxruntime int8", 97.0))).verdict())


@pytest.mark.parametrize(("quiet", "said"), [(200.0, True), (290.0, False)])
def test_the_verdict_tells_of_disturbed_times(quiet, said):
    rows = _row("binarize", 100.0), dataclasses.replace(_row("torch fp32", 310.0), p10_us=quiet)
    busy = "the machine was busy: the median of torch fp32 is 1.6 times its tenth percentile"

    assert any(line.startswith(busy) for line in Benchmark(rows).verdict()) == said


def test_the_verdict_compares_files():
    small, large = _row("binarize", 100.0), _row("torch fp32", 100.0)
    lines = Benchmark((small, dataclasses.replace(large, bytes=750))).verdict()

    assert lines[1] == "its file is 7.5 times smaller than that of torch fp32"


def test_the_verdict_calls_small_differences_none():
    lines = Benchmark((_row("binarize", 100.0), _row("onnxruntime int8", 103.0))).verdict()

    assert lines[0] == "binarize is as fast, within 5 %, as onnxruntime int8"
    assert len(lines) == 2


@pytest.mark.parametrize("other", [nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), nn.Conv2d(1, 4, 3)])
def test_another_model_than_the_original_is_an_error(other, pair):
    with pytest.raises(ModelError, match="give the model that the network was made from") as caught:
        benchmark(pair[1], against=other.eval(), rounds=1)
    assert "\n" not in str(caught.value)
