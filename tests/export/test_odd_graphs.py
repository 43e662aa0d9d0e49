"""Graphs of a kind that a tracer, a folder of constants or torch's exporter stumbles over."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import fx, nn

import binarize
from binarize.convert import convert
from binarize.export.onnx import export_onnx
from binarize.passes.fuse import packed_layers
from binarize.passes.pack import pack
from binarize.recipe import Recipe


class Biased(nn.Module):
    """Adds what two layers make of constants, as the position bias of a transformer."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.table_in, self.table_out = nn.Linear(2, 16), nn.Linear(16, 8)
        self.register_buffer("places", torch.linspace(-1, 1, 12).reshape(6, 2))

    def forward(self, x):
        bias = self.table_out(torch.relu(self.table_in(self.places)))
        return self.head(torch.relu(self.inner(torch.relu(self.stem(x))) + bias))


def window_of(sizes, window):
    """Shrink a window in place, as torchvision's video transformer does."""
    for axis, size in enumerate(sizes):
        window[axis] = min(window[axis], size)
    return window


fx.wrap("window_of")


class Windowed(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        window = window_of([x.shape[2], x.shape[3]], [4, 64])
        x = torch.relu(self.inner(x))
        return self.head(x)[:, :, : window[0], : window[1]]


class Spread(nn.Module):
    """Adds to layers what is smaller, or larger, than what they give; one of them crops before that."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.first, self.even = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 2, padding="same")
        self.pooled, self.head = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.rows, self.row = nn.Linear(8, 8), nn.Linear(8, 8)
        self.offsets = nn.Parameter(torch.randn(8, 1, 1))

    def forward(self, x):
        stem = torch.relu(self.stem(x))
        x = torch.relu(self.first(stem) + self.offsets)
        x = torch.relu(self.even(x) + stem)
        x = x + self.pooled(x.mean((2, 3), keepdim=True))
        rows = x.permute(0, 2, 3, 1)
        rows = torch.relu(self.rows(rows) + self.offsets[:, 0, 0])
        return self.head((self.row(rows[:, :1]) + rows).permute(0, 3, 1, 2))


class Frames(nn.Module):
    """The same for a convolution of three dimensions."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner = nn.Conv3d(3, 8, 1), nn.Conv3d(8, 8, 3, padding=1)
        self.pooled, self.head = nn.Conv3d(8, 8, 1), nn.Conv3d(8, 4, 1)
        self.offsets = nn.Parameter(torch.randn(8, 1, 1, 1))

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.inner(x) + self.offsets)
        return self.head(x + self.pooled(x.mean((3, 4), keepdim=True)))


def exact(model):
    """Weights of full precision so coarse that their sums are exact in any order, and so is every code."""
    with torch.no_grad():
        for parameter in model.stem.parameters():
            parameter.copy_((parameter * 64).round() / 64)
    return model


SHAPES = {Biased: (4, 6, 4), Windowed: (4, 3, 6, 10), Spread: (4, 3, 6, 10), Frames: (4, 3, 4, 6, 5)}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("make", SHAPES)
def test_the_file_computes_what_training_form_and_packed_form_compute(make, portable, tmp_path):
    torch.manual_seed(0)
    x = torch.randint(-8, 9, SHAPES[make]).float() / 4
    training = convert(exact(make().eval()), x, recipe=Recipe("encoding:w=4,a=4", smallest=1))
    net = pack(training)
    assert (
        len(packed_layers(net)) == sum(isinstance(m, nn.Linear | nn.Conv2d | nn.Conv3d) for m in make().modules()) - 2
    )
    wanted = net(x).detach().numpy()
    # codes come from sums of float32 numbers in another order; none lies that near to a rounding point here
    np.testing.assert_allclose(training(x).detach().numpy(), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    path = export_onnx(net, tmp_path / "net.onnx", example_inputs=x, portable=portable)
    ours = onnxruntime.SessionOptions()
    ours.register_custom_ops_library(binarize.onnxruntime_library())

    for options in (onnxruntime.SessionOptions(), ours):
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        # the head, of full precision, adds float32 numbers in another order, each within 2**-24 of the largest sum
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())
