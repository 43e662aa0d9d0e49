"""Convolutions of one and three dimensions and transposed ones: by the bodies, beside layers that the library runs."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import binarize
from binarize.convert import convert
from binarize.export.onnx import export_onnx
from binarize.passes.pack import pack
from binarize.recipe import Recipe


class Rising(nn.Module):
    """A transposed convolution whose codes a convolution makes, and two that share codes with a convolution."""

    def __init__(self):
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, 2, 1)
        self.up, self.wide = nn.ConvTranspose2d(12, 8, 4, 2, 1), nn.ConvTranspose2d(8, 8, 3, 1, 1)
        self.side = nn.Conv2d(8, 8, 3, 1, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = torch.relu(self.up(torch.relu(self.down(torch.relu(self.stem(x))))))
        return self.head(torch.relu(self.wide(x) + self.side(x)))


def clip():
    stem, inner = nn.Conv3d(3, 8, (1, 1, 1), bias=False), nn.Conv3d(8, 8, 3, (1, 2, 1), 1)
    return nn.Sequential(stem, nn.ReLU(), inner, nn.ReLU(), nn.Conv3d(8, 4, 1))


def signal():
    wide = nn.Conv1d(8, 8, 3, 2, 1, groups=2)
    layers = [nn.Conv1d(2, 8, 1), nn.ReLU(), wide, nn.ReLU(), nn.ConvTranspose1d(8, 8, 2, 2), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv1d(8, 4, 1))


NETS = {Rising: (4, 3, 10, 12), clip: (4, 3, 4, 7, 6), signal: (4, 2, 20)}
CASES = [
    (Rising, "encoding:w=3,a=4", {"PackUniform", "PackUniformNd", "PackedConv2d", "PackedConvTranspose"}),
    (Rising, "xnor-net", {"PackThresholds", "PackThresholdsNd", "PackedConv2d", "PackedConvTranspose"}),
    (Rising, "abc-net:m=2,n=2", {"PackTerms", "PackTermsNd", "PackedConv2dTerms", "PackedConvTransposeTerms"}),
    (clip, "encoding:w=3,a=4", {"PackUniformNd", "PackedConvNd"}),
    (signal, "abc-net:m=2,n=2", {"PackTermsNd", "PackedConvNdTerms", "PackedConvTransposeTerms"}),
]


@pytest.mark.parametrize(("make", "scheme", "kinds"), CASES)
def test_every_runtime_gives_what_the_packed_form_gives(make, scheme, kinds, tmp_path):
    model = make().eval()
    stem = next(module for module in model.modules() if not list(module.children()))
    with torch.no_grad():  # its sums, which are in full precision, are then exact in any order, and so are all codes
        stem.weight.copy_((stem.weight * 64).round() / 64)
        if stem.bias is not None:
            stem.bias.copy_((stem.bias * 64).round() / 64)
    x = torch.randint(-8, 9, NETS[make]).float() / 4
    net = pack(convert(model, x, recipe=Recipe(scheme, smallest=1)))
    path = export_onnx(net, tmp_path / "net.onnx", example_inputs=x)
    ours = onnxruntime.SessionOptions()
    ours.register_custom_ops_library(binarize.onnxruntime_library())

    found = {node.op_type for node in onnx.load(path).graph.node if node.domain == "binarize"}
    assert {kind.removesuffix("Add") for kind in found} == kinds
    plain = export_onnx(net, tmp_path / "plain.onnx", example_inputs=x, portable=True)
    for file, options in ((path, None), (path, ours), (plain, None)):
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        for batch in (x, x[:1]):
            wanted = net(batch).detach().numpy()
            (got,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
            # a sum that differs in the last bit may move a code of the next layer by one, which few outputs see
            assert np.median(np.abs(got - wanted)) <= 1e-6 * np.abs(wanted).max()
            assert np.abs(got - wanted).mean() <= 1e-3 * np.abs(wanted).max()
