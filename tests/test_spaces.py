"""The whole way of networks that are not of two dimensions: converted, packed, saved, exported, counted, trained."""

import onnxruntime
import pytest
import spaces
import torch
from torch import nn

import binarize
from binarize.convert import convert
from binarize.cost import measure_macs
from binarize.layers.packed_nd import PackedConvNd
from binarize.passes.pack import pack

SCHEMES = ["encoding:w=8,a=8", "xnor-net", "abc-net:m=2,n=2", "group-net:k=2"]


def distance(a, b):
    return float((a - b).norm() / b.norm())


def run_file(path, x, library):
    options = onnxruntime.SessionOptions()
    if library:
        options.register_custom_ops_library(binarize.onnxruntime_library())
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


@pytest.mark.parametrize("kind", spaces.SHAPES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_packed_saved_and_exported_forms_say_what_the_training_form_says(kind, scheme, tmp_path):
    model, x = spaces.network(kind)
    net = convert(model, x, scheme)
    packed = pack(net)

    binarize.save(packed, tmp_path / "packed.safetensors")
    binarize.save(net, tmp_path / "trainable.safetensors")
    binarize.export_onnx(packed, tmp_path / "net.onnx", example_inputs=x)
    files = [("net", False), ("net", True)]
    if scheme == SCHEMES[0]:
        binarize.export_onnx(packed, tmp_path / "plain.onnx", example_inputs=x, portable=True)
        files.append(("plain", False))

    with torch.no_grad():
        wanted = net(x)
        if scheme == SCHEMES[0]:
            assert distance(wanted, model(x)) < 0.01  # eight bits: the machinery, not the approximation
        # float32 sums of at most 432 products: 2 x 436 roundings of 2^-24, were they all to one side
        assert distance(packed(x), wanted) < 6e-5
        assert torch.equal(binarize.load(tmp_path / "packed.safetensors")(x), packed(x))
        assert torch.equal(binarize.load(tmp_path / "trainable.safetensors")(x), wanted)
        for file, library in files:
            assert distance(run_file(tmp_path / f"{file}.onnx", x[:3], library), wanted[:3]) < 6e-5


@pytest.mark.parametrize("kind", spaces.SHAPES)
def test_each_form_does_as_many_products_as_the_original(kind):
    model, x = spaces.network(kind)
    net = convert(model, x, "xnor-net")

    counts = [measure_macs(form, (x[:1],)) for form in (model, net, pack(net))]

    assert counts[0] == counts[1] == counts[2]


def test_normalisation_and_activation_are_folded_into_them():
    model, x = spaces.network(spaces.Clip)
    packed = pack(convert(model, x, "encoding:w=2,a=2"))

    assert not [module for module in packed.modules() if isinstance(module, nn.BatchNorm3d)]
    assert packed.down.minimum == 0.0
    assert isinstance(packed.inner, PackedConvNd)


def test_the_report_names_them_as_the_model_did():
    model, x = spaces.network(spaces.Rising)
    found = binarize.summary(pack(convert(model, x, "encoding:w=4,a=4")), input_shape=(3, 20, 28))
    row = {layer.name: layer for layer in found.layers}["up"]

    assert (row.kind, row.scheme, row.reason) == ("ConvTranspose2d", "encoding:w=4,a=4", None)
    assert row.macs == 16 * 16 * 16 * 10 * 14
    before = {layer.name: layer for layer in binarize.summary(model).layers}["up"]
    assert before.bytes == row.bytes


def test_they_train():
    model, x = spaces.network(spaces.Rising)
    net = convert(model, x, "encoding:w=1,a=2")

    history = binarize.finetune(net, [x], teacher=model, settings=binarize.Settings(epochs=15, freeze_norm=True))

    assert history.epochs[-1].loss < history.epochs[0].loss
