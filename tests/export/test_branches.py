"""Branches, gates and routers in ONNX files: in ONNX Runtime they compute what the packed network computes."""

import group_nets
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from group_nets import FORMS, IMAGES
from onnx.reference import ReferenceEvaluator

import binarize
from binarize.export.onnx import export_onnx
from binarize.layers.branches import branch_groups
from binarize.layers.packed import PackedLayer
from binarize.passes.pack import pack

MORE = torch.cat([IMAGES.flip(3), -IMAGES[:3]])


@pytest.mark.parametrize("form", ["averaged", "a gate for each", "routed and gated"])
def test_the_file_computes_what_the_packed_network_computes_at_every_batch_size(form, tmp_path):
    net = pack(group_nets.net(**FORMS[form]))
    path = export_onnx(net, tmp_path / "net.onnx")
    ours = onnxruntime.SessionOptions()
    ours.register_custom_ops_library(binarize.onnxruntime_library())

    for options in (onnxruntime.SessionOptions(), ours):
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for images in (IMAGES, IMAGES[:1], MORE):
            wanted = net(images).detach().numpy()
            (got,) = session.run(None, {"x": images.numpy()})
            # float sums in another order, ten layers deep: one part in 10^5 of the largest output
            np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_onnx_itself_runs_a_routed_network_and_every_branch_is_in_the_file_as_bits(tmp_path):
    net = pack(group_nets.net(4, executed=2, gates=1))
    path = export_onnx(net, tmp_path / "net.onnx")
    model = onnx.load(path)

    (got,) = ReferenceEvaluator(model).run(None, {"x": IMAGES.numpy()})
    wanted = net(IMAGES).detach().numpy()
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    bits = {name: layer.bits.numpy() for name, layer in net.named_modules() if isinstance(layer, PackedLayer)}
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.name in bits:
            np.testing.assert_array_equal(stored[node.input[1]], bits.pop(node.name))
    assert not bits


def test_the_network_itself_still_runs_only_what_is_chosen(tmp_path):
    net = pack(group_nets.net(4, executed=2))
    export_onnx(net, tmp_path / "net.onnx")

    assert all(group.sparse for _, group in branch_groups(net))
