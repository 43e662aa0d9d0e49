"""Whole networks in ONNX Runtime with our library decide exactly as the packed form does."""

import models
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import binarize
from binarize.convert import convert
from binarize.errors import ExportError
from binarize.export.check import compare
from binarize.export.onnx import export_onnx
from binarize.passes.pack import pack
from binarize.recipe import Recipe


def session_of(path):
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(binarize.onnxruntime_library())
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path) + ".optimized"
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def exact_stem(model):
    """Weights of the full-precision ends so coarse that sums of them are exact in any order."""
    with torch.no_grad():
        for module in (next(m for m in model.modules() if isinstance(m, nn.Conv2d)),):
            module.weight.copy_((module.weight * 64).round() / 64)
            if module.bias is not None:
                module.bias.copy_((module.bias * 64).round() / 64)
        norm = next((m for m in model.modules() if isinstance(m, nn.BatchNorm2d)), None)
        if norm is not None:
            norm.eps = 0.0
    return model


@pytest.mark.parametrize(
    "scheme", ["encoding:w=4,a=4", "xnor-net", "pa-net:m=4,n=3", "abc-net:m=2,n=2", "residual:m=2"]
)
def test_decisions_are_identical_and_nothing_falls_back(scheme, tmp_path):
    torch.manual_seed(0)
    model = exact_stem(models.Residual().eval())
    net = pack(convert(model, torch.randn(8, 3, 16, 16), recipe=Recipe(scheme=scheme, smallest=1)))
    path = export_onnx(net, tmp_path / "net.onnx")
    session = session_of(path)
    x = torch.randint(-8, 9, (96, 3, 16, 16)).float() / 4

    (y,) = session.run(None, {"x": x.numpy()})
    wanted = net(x).numpy()

    # the stem is exact, so every code is; the classifier adds float32 numbers in another order
    assert np.abs(y - wanted).max() <= 1e-6 * np.abs(wanted).max()
    assert (y.argmax(1) == wanted.argmax(1)).all()
    kinds = {node.op_type for node in onnx.load(f"{path}.optimized").graph.node if node.domain == "binarize"}
    asked = {node.op_type for node in onnx.load(path).graph.node if node.domain == "binarize"}
    assert kinds == asked


class Pooled(nn.Module):
    """A pool between two convolutions; its output is added to later, or read by something else too."""

    def __init__(self, pool, kind):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 20, 3, padding=1), nn.Conv2d(20, 20, 3, padding=1)
        self.c, self.pool, self.kind = nn.Conv2d(20, 6, 1), pool, kind

    def forward(self, x):
        y = self.pool(torch.relu(self.a(x)))
        z = torch.relu(self.b(y) + y)
        if self.kind == "another reads it":
            return self.c(z) + y.mean()
        return self.c(z)


POOLS = {
    "plain": (nn.MaxPool2d(2), "plain", True),
    "padded": (nn.MaxPool2d(3, 2, 1), "plain", True),
    "dilated": (nn.MaxPool2d((2, 3), (1, 2), dilation=(3, 2)), "plain", True),
    "rounded up": (nn.MaxPool2d(3, 2, ceil_mode=True), "plain", False),
    "read elsewhere": (nn.MaxPool2d(2), "another reads it", False),
}


@pytest.mark.parametrize("case", POOLS.values(), ids=POOLS)
def test_pools_between_layers_are_ours_and_give_the_same_bits(case, tmp_path):
    pool, kind, ours = case
    torch.manual_seed(0)
    recipe = Recipe("encoding:w=2,a=3", convert=("*",), keep_first=False, keep_last=False, smallest=1)
    net = pack(convert(Pooled(pool, kind).eval(), torch.randn(4, 3, 15, 14), recipe=recipe))
    x = torch.randn(3, 3, 15, 14)

    path = export_onnx(net, tmp_path / "net.onnx")

    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert ("MaxPool2d" in kinds, "MaxPool" in kinds) == (ours, not ours)
    (y,) = session_of(path).run(None, {"x": x.numpy()})
    (bodies,) = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x.numpy()})
    wanted = net(x).numpy()
    assert np.abs(y - wanted).max() <= 1e-6 * np.abs(wanted).max()  # the mean adds in another order
    assert np.median(np.abs(bodies - wanted)) <= 1e-5 * np.abs(wanted).max()  # a code that rounding moves is rare


@pytest.mark.parametrize("inner", [(0, 0), (0, 1), (1, 0)])
def test_pools_take_and_give_images_in_either_order(inner):
    x = torch.randn(2, 20, 9, 8)
    node = onnx.helper.make_node(
        "MaxPool2d", ["x"], ["y"], "pool", domain="binarize", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 0],
        dilations=[1, 2], x_inner=inner[0], y_inner=inner[1], version=1,
    )  # fmt: skip
    slots = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy"]
    imports = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("binarize", 1)]
    graph = onnx.helper.make_graph([node], "g", slots[:1], slots[1:])
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(binarize.onnxruntime_library())
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    given = x.permute(0, 2, 3, 1).contiguous() if inner[0] else x
    (y,) = session.run(None, {"x": given.numpy()})

    wanted = nn.functional.max_pool2d(x, (3, 2), (2, 1), (1, 0), (1, 2))
    assert torch.equal(torch.from_numpy(y), wanted.permute(0, 2, 3, 1) if inner[1] else wanted)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    torch.manual_seed(0)
    net = pack(
        convert(models.Residual().eval(), torch.randn(8, 3, 16, 16), recipe=Recipe("encoding:w=4,a=4", smallest=1))
    )
    return net, export_onnx(net, tmp_path_factory.mktemp("check") / "net.onnx")


def test_a_comparison_reports_both_runtimes(small):
    net, path = small

    found = compare(net, path, [torch.randn(20, 3, 16, 16), (torch.randn(4, 3, 16, 16), torch.zeros(4))])

    assert [row.runtime for row in found] == ["ONNX Runtime with our library", "ONNX Runtime, bodies"]
    assert all(row.samples == 24 and row.agreed >= 0.95 for row in found)
    assert all(0 <= row.largest < row.scale for row in found)


def test_a_comparison_sees_a_file_of_another_network(small, tmp_path):
    net, _ = small
    torch.manual_seed(1)
    other = pack(convert(models.Residual().eval(), torch.randn(8, 3, 16, 16), recipe=Recipe("xnor-net", smallest=1)))
    path = export_onnx(other, tmp_path / "other.onnx")

    assert all(
        row.agreed < 0.9 and row.largest > row.scale / 10 for row in compare(net, path, [torch.randn(40, 3, 16, 16)])
    )


def test_what_cannot_be_compared_is_refused(small, tmp_path):
    net, path = small
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(path.read_bytes()[:1000])

    with pytest.raises(binarize.BinarizeError, match="no samples"):
        compare(net, path, [])
    with pytest.raises(binarize.BinarizeError, match=r"images of shape \(1, 8, 8\).*does not take them.*give"):
        compare(net, path, [torch.randn(2, 1, 8, 8)])
    with pytest.raises(ExportError, match=r"cannot check .*broken.onnx"):
        compare(net, broken, [torch.randn(1, 3, 16, 16)])


def test_open_sizes_run_by_the_library_at_more_sizes_than_it_keeps_tables_of(tmp_path):
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)]
    model = exact_stem(nn.Sequential(*convs).eval())
    net = pack(convert(model, torch.randn(8, 3, 16, 16), recipe=Recipe("encoding:w=4,a=4", smallest=1)))
    session = session_of(export_onnx(net, tmp_path / "net.onnx", dynamic_size=True))

    for turn in range(2):
        for size in range(5, 16):
            x = torch.randint(-8, 9, (2, 3, size, size + turn)).float() / 4
            wanted = net(x).numpy()
            (y,) = session.run(None, {"input": x.numpy()})
            # the last layer, in full precision, adds float32 numbers in another order
            assert np.abs(y - wanted).max() <= 1e-6 * np.abs(wanted).max()
