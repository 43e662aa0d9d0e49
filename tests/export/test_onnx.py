"""Whole networks as ONNX files: what they compute, what they hold, and what is refused."""

import os
import re

import models
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn
from torch.nn import functional as F

from binarize.convert import convert
from binarize.errors import ExportError, OutputError
from binarize.export.onnx import export_onnx
from binarize.layers.packed import PackedLayer
from binarize.passes.pack import pack
from binarize.recipe import Recipe


def packed(model, x, scheme="encoding:w=4,a=4"):
    return pack(convert(model.eval(), x, recipe=Recipe(scheme=scheme, smallest=1)))


def session(path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(path, *inputs):
    opened = session(path)
    feed = {slot.name: x.numpy() for slot, x in zip(opened.get_inputs(), inputs, strict=True)}
    return {slot.name: y for slot, y in zip(opened.get_outputs(), opened.run(None, feed), strict=True)}


class TwoHeads(nn.Module):
    """Every form of layer at once: odd paddings, groups, rows, a layer called twice; two inputs, nested outputs."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.second = nn.Conv2d(8, 8, 3, padding=(2, 1), dilation=(2, 1), padding_mode="reflect")
        self.uneven = nn.Conv2d(8, 8, (2, 4), padding="same")
        self.wrapped = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")
        self.repeated = nn.Conv2d(8, 8, 3, padding=1, padding_mode="replicate")
        self.rows = nn.Linear(8, 8)
        self.head = nn.Conv2d(8, 4, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x, shift):
        x = F.relu(self.stem(x) + shift)
        x = F.relu6(self.second(F.relu(self.first(x))))
        x = self.wrapped(self.uneven(x)) + x
        x = self.repeated(F.relu(self.repeated(x)))
        rows = self.rows(x.permute(0, 2, 3, 1))
        return {"map": self.head(x), "classes": [self.fc(rows.mean((1, 2))), rows.sum(1)]}


@pytest.fixture(scope="module", params=["encoding:w=4,a=4", "xnor-net", "pa-net:m=4,n=3"])
def exported(request, tmp_path_factory):
    torch.manual_seed(0)
    net = packed(models.Residual(), torch.randn(8, 3, 16, 16), request.param)
    return net, export_onnx(net, tmp_path_factory.mktemp("onnx") / "net.onnx")


def test_decisions_agree_at_every_batch_size(exported):
    net, path = exported
    for batch in (1, 2, 64):
        x = torch.randn(batch, 3, 16, 16)
        (y,) = run(path, x).values()

        wanted = net(x).numpy()
        assert y.shape == wanted.shape
        # a rounding before a code or sign may move one image's outputs, so closeness is asked of most of them
        close = np.abs(y - wanted).max(1) <= 1e-4 * np.abs(wanted).max()
        assert close.mean() >= 0.95
        assert (y.argmax(1) == wanted.argmax(1)).mean() >= 0.98


def test_onnx_itself_runs_the_file(exported):
    _, path = exported
    x = torch.randn(2, 3, 16, 16)
    (wanted,) = run(path, x).values()

    (y,) = ReferenceEvaluator(str(path)).run(None, {"x": x.numpy()})

    np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


def test_the_file_holds_each_tensor_once_and_weights_as_bits(exported):
    net, path = exported
    model = onnx.load(path)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}

    assert len({(t.data_type, tuple(t.dims), t.raw_data) for t in stored.values()}) == len(stored)
    for name, layer in net.named_modules():
        if isinstance(layer, PackedLayer):
            node = next(node for node in model.graph.node if node.name == name)
            np.testing.assert_array_equal(onnx.numpy_helper.to_array(stored[node.input[1]]), layer.bits.numpy())
            assert node.domain == "binarize"
            assert layer.weight_spec in node.doc_string
    state = sum(tensor.nbytes for tensor in net.state_dict().values())
    assert path.stat().st_size < state + 700 * len(model.graph.node) + 8000  # nodes with their names, and the bodies


def test_the_file_says_who_made_it_and_tells_no_paths_and_no_traces(exported):
    _, path = exported
    model = onnx.load(path)
    text = path.read_bytes().decode("latin-1")

    assert (model.producer_name, model.ir_version) == ("binarize", 8)
    assert {item.domain: item.version for item in model.opset_import} == {"": 18, "binarize": 1}
    assert {entry.key for entry in model.metadata_props} == {
        *("binarize.scheme", "binarize.recipe", "binarize.provenance"),
    }
    assert not any(node.metadata_props for node in model.graph.node)
    assert not re.search(r"stack|\.py|File \"|site-packages", text)
    for folder in (os.getcwd(), os.path.expanduser("~"), os.path.dirname(torch.__file__)):  # noqa: PTH109, PTH111, PTH120
        assert folder not in text


def test_nodes_are_named_after_modules_and_the_batch_is_open(exported):
    _, path = exported
    model = onnx.load(path)
    names = [node.name for node in model.graph.node]

    assert len(set(names)) == len(names)
    assert {"stem.0", "block1.conv1", "block2.conv2", "block2.shortcut", "fc"} <= set(names)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [value.name for value in model.graph.output] == ["output"]
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    assert {value.type.tensor_type.elem_type for value in model.graph.value_info} <= floats  # no promise on planes


@pytest.fixture
def _warns_always():
    """Torch gives some warnings once in a process, and another test may have had this one."""
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


@pytest.mark.usefixtures("_warns_always")
def test_every_form_of_layer_and_output_survives(tmp_path):
    x, shift = torch.randn(4, 3, 9, 10), torch.randn(4, 8, 9, 10)
    with pytest.warns(UserWarning, match="even kernel lengths"):  # torch, of the model's own padding="same"
        net = packed(TwoHeads(), (x, shift), "encoding:w=8,a=8")

    path = export_onnx(net, tmp_path / "net.onnx", example_inputs=(x, shift), opset=21)

    outputs, wanted = run(path, x, shift), net(x, shift)
    assert list(outputs) == ["map", "classes_output_0", "classes_output_1"]
    for y, want in zip(outputs.values(), [wanted["map"], *wanted["classes"]], strict=True):
        # one code of 8 bits that rounds the other way moves a value by at most a step, about a 256th of the range
        np.testing.assert_allclose(y, want.numpy(), rtol=0, atol=float(want.abs().max()) / 64)
    kinds = {node.op_type for node in onnx.load(path).graph.node if node.domain == "binarize"}
    assert {"PackUniform", "PackedConv2d", "PackedConv2dAdd", "PackedLinear"} <= kinds


def test_a_fixed_batch_stays_fixed(tmp_path):
    net = packed(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1)), torch.randn(2, 3, 8, 8))

    path = export_onnx(net, tmp_path / "n.onnx", example_inputs=torch.randn(1, 3, 8, 8), dynamic_batch=False)

    assert session(path).get_inputs()[0].shape == [1, 3, 8, 8]


def test_what_cannot_be_exported_is_refused_by_name(tmp_path):
    x = torch.randn(2, 3, 16, 16)
    training = convert(models.Residual().eval(), x)
    path = tmp_path / "net.onnx"

    with pytest.raises(ExportError, match="training form; pack it first"):
        export_onnx(training, path)
    with pytest.raises(ExportError, match="no packed layers"):
        export_onnx(models.Residual(), path)
    with pytest.raises(ExportError, match="opset 17"):
        export_onnx(pack(training), path, opset=17)
    with pytest.raises(ExportError, match=r"inputs of shape \(2, 5, 16, 16\)"):
        export_onnx(pack(training), path, example_inputs=torch.randn(2, 5, 16, 16))
    assert list(tmp_path.iterdir()) == []


def test_a_network_captured_by_parts_names_the_parts_that_can_be_exported(tmp_path):
    class Deciding(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = models.Residual()

        def forward(self, x):
            return self.body(x) if float(x.sum()) > 1e9 else self.body(-x)

    x = torch.randn(2, 3, 16, 16)
    net = packed(Deciding(), x)

    with pytest.raises(ExportError, match=r"as one graph.*: body$"):
        export_onnx(net, tmp_path / "net.onnx")
    path = export_onnx(net.body, tmp_path / "body.onnx", example_inputs=x)
    assert run(path, x)["output"].shape == (2, 5)


def test_an_unwritable_output_leaves_nothing_and_an_old_file_survives_a_failure(tmp_path, monkeypatch):
    net = packed(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1)), torch.randn(2, 3, 8, 8))
    old = tmp_path / "net.onnx"
    old.write_bytes(b"old")

    with pytest.raises(OutputError, match="no folder"):
        export_onnx(net, tmp_path / "missing" / "net.onnx", check=False)

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        export_onnx(net, old, check=False)
    assert old.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [old]
