"""The whole way of detectors: the same boxes packed and from a file; parts in ONNX, and what is refused as one."""

import detectors
import numpy as np
import onnxruntime
import pytest
import torch

import binarize
from binarize.convert import convert
from binarize.errors import ExportError
from binarize.export.parts import part_of
from binarize.passes.pack import pack


class Pairs(torch.nn.Module):
    """Two convolutions that are called with a list, by code that cannot be traced."""

    def __init__(self):
        super().__init__()
        self.body = Sums()

    def forward(self, x):
        return self.body([x, x]) if float(x.sum()) > 1e9 else self.body([x, -x])


class Sums(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = (torch.nn.Conv2d(c, 16, 3) for c in (3, 16, 16))

    def forward(self, pair):
        return self.last(self.second(self.first(pair[0] + pair[1])))


@pytest.fixture(scope="module", params=[detectors.one_stage, detectors.two_stage], ids=lambda build: build.__name__)
def forms(request):
    """A detector, its training form and its packed form."""
    model = request.param()
    net = convert(model, scheme="encoding:w=4,a=4", data=[detectors.batch()])
    return model, net, pack(net)


def same(ours, theirs):
    """Compare detections: so many, of the same classes, at the same place with the same score."""
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine["labels"], other["labels"])
        # float32 sums of at most 288 products, in other orders, before an exponential of numbers below 5
        torch.testing.assert_close(mine["scores"], other["scores"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mine["boxes"], other["boxes"], rtol=1e-4, atol=1e-2)


@torch.no_grad()
def test_the_packed_form_finds_the_same_boxes(forms, tmp_path):
    model, net, packed = forms
    images, _ = detectors.batch(3)

    found = packed(images)

    assert all(len(item["labels"]) > 2 for item in found)
    same(found, net(images))
    binarize.save(packed, tmp_path / "net.safetensors")
    for mine, other in zip(binarize.load(tmp_path / "net.safetensors", model=model)(images), found, strict=True):
        assert torch.equal(mine["boxes"], other["boxes"])
        assert torch.equal(mine["scores"], other["scores"])


@torch.no_grad()
def test_its_features_are_exported_as_one_part(forms, tmp_path):
    packed = forms[2]

    graph, inputs = part_of(packed, "backbone")
    path = binarize.export_onnx(graph, tmp_path / "backbone.onnx", example_inputs=inputs)

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = torch.randn(3, *inputs[0].shape[1:])
    got = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    wanted = graph(x)
    assert len(got) == len(wanted) == 2
    for mine, other in zip(got, wanted.values(), strict=True):
        # a last bit may move one of 16 codes, whose step is a fifteenth of the range
        np.testing.assert_allclose(mine, other.numpy(), rtol=0, atol=float(other.abs().max()) / 15)
        assert np.mean(np.abs(mine - other.numpy())) < 1e-4 * float(other.abs().max())


def test_what_is_no_part_is_refused_with_the_parts_there_are(forms):
    packed = forms[2]

    with pytest.raises(ExportError, match=r"no such part \(did you mean 'backbone'\?\); the parts are backbone, "):
        part_of(packed, "backbon")


def test_a_part_that_takes_more_than_tensors_is_refused():
    x = torch.randn(2, 3, 12, 12)
    packed = pack(convert(Pairs().eval(), x))

    with pytest.raises(ExportError, match="it is called with list; only tensors"):
        part_of(packed, "body", x)


def test_a_network_captured_whole_has_no_parts():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3), torch.nn.Conv2d(8, 4, 1))

    with pytest.raises(ExportError, match="none: the network was captured whole"):
        part_of(pack(convert(model, torch.randn(2, 3, 8, 8))), "0")
