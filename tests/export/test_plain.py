"""The plain form: standard operations only, still small, right in ONNX Runtime and in OpenVINO."""

import models
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from binarize.convert import convert
from binarize.export.onnx import export_onnx
from binarize.export.openvino import open_openvino
from binarize.passes.pack import pack
from binarize.recipe import Recipe

SCHEMES = ["encoding:w=4,a=4", "xnor-net", "pa-net:m=4,n=3", "abc-net:m=2,n=2"]


def packed(scheme, model=None):
    torch.manual_seed(0)
    made = convert(
        (model or models.Residual()).eval(), torch.randn(8, 3, 16, 16), recipe=Recipe(scheme=scheme, smallest=1)
    )
    return pack(made)


def close(got, wanted):
    # a rounding before a code or sign may move one image's outputs, so closeness is asked of most of them
    return (np.abs(got - wanted).max(1) <= 1e-4 * np.abs(wanted).max()).mean() >= 0.9


@pytest.mark.parametrize("opset", [18, 21])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_only_standard_operations_are_left_and_every_runtime_agrees(scheme, opset, tmp_path):
    pytest.importorskip("openvino", reason="OpenVINO is an extra")
    net = packed(scheme)
    path = export_onnx(net, tmp_path / "net.onnx", portable=True, opset=opset)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    x = torch.randn(24, 3, 16, 16)
    wanted = net(x).numpy()

    assert {node.domain for node in model.graph.node} == {""}
    assert [(item.domain, item.version) for item in model.opset_import] == [("", opset)]
    assert len(model.functions) == 0
    assert [d.dim_value for d in inferred.graph.output[0].type.tensor_type.shape.dim][1:] == [5]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert close(session.run(None, {"x": x.numpy()})[0], wanted)
    assert close(open_openvino(path)([x.numpy()])[0], wanted)


def test_the_plain_form_keeps_weights_as_bits_and_names_its_nodes_after_modules(tmp_path):
    wide = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 4, 1))
    net = packed("encoding:w=2,a=4", wide)
    path = export_onnx(net, tmp_path / "net.onnx", portable=True)
    model = onnx.load(path)
    nodes = {node.name: node for node in model.graph.node}

    assert nodes["2"].op_type == "Conv"
    assert "encoding:w=2,a=4" in nodes["2"].doc_string
    modules = {name for name, _ in net.named_modules()} - {""}
    assert all(name.split("/")[0] in modules or "/" not in name for name in nodes if name)
    assert "" not in nodes
    bits = net.get_submodule("2").bits.numpy().transpose(1, 0, 2)  # what the body does with them first is done
    stored = [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    assert any(bits.size == array.size and np.array_equal(bits.ravel(), array.ravel()) for array in stored)
    assert path.stat().st_size < bits.nbytes + 4 * (3 * 64 * 9 + 64 * 4) + 20_000  # the other weights, and nodes
    assert not any(node.metadata_props for node in model.graph.node)


@pytest.mark.parametrize("portable", [False, True])
def test_height_and_width_may_stay_open(portable, tmp_path):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)
    )
    net = packed("encoding:w=4,a=4", model)
    path = export_onnx(net, tmp_path / "net.onnx", portable=portable, dynamic_size=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    for size in [(16, 16), (24, 9), (41, 30)]:
        x = torch.randn(3, 3, *size)
        wanted = net(x).numpy()
        (y,) = session.run(None, {"input": x.numpy()})
        assert y.shape == wanted.shape
        # a code of 4 bits that rounds the other way moves few outputs by a step each
        assert (np.abs(y - wanted) <= 1e-4 * np.abs(wanted).max()).mean() >= 0.98
