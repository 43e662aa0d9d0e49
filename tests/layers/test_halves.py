"""Packed layers that give floats of 16 bits: the sums of before, rounded once."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_layers import geometries, image, layer_of
from torch import nn

import binarize
from binarize.errors import ExportError, ModelError
from binarize.layers.packed import PackedConv2d, PackedLinear
from binarize.layers.packed_layer import PackedLayer
from binarize.passes.schedule import coverage

HALVES = (torch.float16, torch.bfloat16)
IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))


class Block(nn.Module):
    """A residual block between float layers."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = (
            nn.Conv2d(3, 16, 3),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.Conv2d(16, 16, 3, padding=1),
        )
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.b(torch.relu(self.a(x))))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def fast():
    torch.manual_seed(3)
    return binarize.pack(
        binarize.convert(Block().eval(), IMAGES, recipe=binarize.Recipe("encoding:w=3,a=3", smallest=0))
    )


@settings(max_examples=20)
@given(
    drawn=geometries(),
    dtype=st.sampled_from(HALVES),
    added=st.sampled_from((torch.float32, *HALVES)),
    low=st.booleans(),
)
def test_a_convolution_rounds_its_sums_once(drawn, dtype, added, low):
    layer = layer_of(drawn, -0.5 if low else 0.0, 0.25)
    x = image(drawn, 0.0, 0.25)
    residual = torch.randn(layer(x).shape).to(added)
    wanted = layer(x, residual.float())

    narrow = copy.deepcopy(layer).to(dtype)

    assert torch.equal(narrow(x, residual), wanted.to(dtype))
    assert torch.equal(narrow.float()(x, residual), wanted)  # and nothing was lost


@settings(max_examples=10)
@given(drawn=geometries(linear=True), dtype=st.sampled_from(HALVES))
def test_a_linear_layer_rounds_its_sums_once(drawn, dtype):
    layer = layer_of(drawn, -0.5, 0.25, kind=PackedLinear)
    layer.activation.rows = True
    x = torch.randn(2, 3, drawn.channels)
    wanted = layer(x)

    narrow = copy.deepcopy(layer).to(dtype)

    assert torch.equal(narrow(x), wanted.to(dtype))
    assert torch.equal(narrow(x, wanted.to(dtype)), layer(x, wanted.to(dtype)).to(dtype))
    assert narrow(x[:0]).dtype == dtype


def test_the_numbers_of_packed_layers_stay_float32(fast):
    before = {name: value.clone() for name, value in fast.state_dict().items()}

    fast.half()

    layers = [name for name, module in fast.named_modules() if isinstance(module, PackedLayer)]
    kept = {name for name in before if name.rpartition(".")[0] in layers}
    assert kept
    assert all(torch.equal(fast.state_dict()[name], before[name]) for name in kept)
    assert fast.state_dict()["stem.weight"].dtype == torch.float16


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_network_computes_its_stream_in_16_bits_and_is_kept_so(fast, dtype, tmp_path):
    wanted = fast(IMAGES)
    narrow = copy.deepcopy(fast).to(dtype)

    seen = narrow(IMAGES.to(dtype))

    assert seen.dtype == dtype
    # The float layers and the stream keep 8 bits or more, and a code changes by one step where a value lies next to
    # its border: an eighth of what the seven steps of a code span.
    assert (seen.float() - wanted).abs().max() < 0.125 * wanted.abs().max()
    binarize.save(narrow, tmp_path / "narrow.safetensors")
    again = binarize.load(tmp_path / "narrow.safetensors")
    assert torch.equal(again(IMAGES.to(dtype)), seen)
    reasons = coverage(narrow).left
    assert any(why == f"it gives {str(dtype).removeprefix('torch.')}" for why in reasons.values())


def test_float64_is_refused_and_undone(fast):
    wanted = fast(IMAGES)
    with pytest.raises(ModelError, match=r"no float64: call \.float\(\)"):
        fast.double()(IMAGES.double())

    assert torch.equal(fast.float()(IMAGES), wanted)


def test_a_network_of_16_bits_is_not_exported(fast, tmp_path):
    with pytest.raises(ExportError, match=r"it gives torch\.float16; call \.float\(\)"):
        binarize.export_onnx(fast.half(), tmp_path / "net.onnx", example_inputs=IMAGES.half())
    assert not list(tmp_path.iterdir())


def test_layers_move_without_their_type(fast):
    moved = copy.deepcopy(fast).to("meta", torch.float16)

    layer = next(module for module in moved.modules() if isinstance(module, PackedConv2d))
    assert (layer.scale.device.type, layer.scale.dtype, layer.dtype) == ("meta", torch.float32, torch.float16)
