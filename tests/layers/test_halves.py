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
from binarize.layers.geometry import Geometry
from binarize.layers.halves import as_taken
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


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_residual_that_the_epilogue_cannot_add_is_rounded_once_too(dtype):
    layer = layer_of(Geometry(8, 40, (3, 3), (1, 1), (1, 1)), -0.5, 0.25)
    x = torch.randn(2, 8, 9, 9)
    for residual in (torch.randn(2, 40, 1, 1), torch.randn(2, 40, 9, 9)):
        layer.crop = (int(residual.shape[-1] > 1), 0)
        added = residual[:, :, layer.crop[0] :]
        wanted = layer(x, added)
        assert torch.equal(copy.deepcopy(layer).to(dtype)(x, added), wanted.to(dtype))


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


def test_images_are_given_to_a_network_of_16_bits_in_its_type(fast, tmp_path):
    binarize.save(fast.half(), tmp_path / "net.safetensors")
    narrow = binarize.load(tmp_path / "net.safetensors")

    found = binarize.evaluate(narrow, [(IMAGES, torch.tensor([0, 1]))], teacher=fast)

    assert found.agreement == 1.0
    assert binarize.summary(narrow).totals.converted == 2
    assert torch.equal(as_taken(nn.Conv2d(3, 3, 1).double(), IMAGES), IMAGES)  # which says itself what it takes


def test_float64_is_refused_and_undone(fast):
    wanted = fast(IMAGES)
    with pytest.raises(ModelError, match=r"no float64: call \.float\(\)"):
        fast.double()(IMAGES.double())

    assert torch.equal(fast.float()(IMAGES), wanted)


def test_a_network_of_float64_is_not_saved(fast, tmp_path):
    with pytest.raises(ModelError, match=r"float64, which they cannot; call \.float\(\)"):
        binarize.save(fast.double(), tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_type_that_nobody_knows_is_refused():
    config = layer_of(Geometry(8, 8, (3, 3)), 0.0, 1.0).half().config()
    assert PackedConv2d.from_config(config).dtype == torch.float16
    with pytest.raises(ModelError, match="gives 'float8'; it gives one of float32, float16, bfloat16"):
        PackedConv2d.from_config({**config, "dtype": "float8"})


def test_layers_that_were_pickled_before_give_float32(fast):
    layer = next(module for module in fast.modules() if isinstance(module, PackedConv2d)).half()
    del layer.dtype

    assert layer.dtype == torch.float32


def test_a_network_of_16_bits_is_not_exported(fast, tmp_path):
    with pytest.raises(ExportError, match=r"it gives torch\.float16; export the network it was made from"):
        binarize.export_onnx(fast.half(), tmp_path / "net.onnx", example_inputs=IMAGES.half())
    assert not list(tmp_path.iterdir())


def test_layers_move_without_their_type(fast):
    with torch.device("meta"):
        copy.deepcopy(fast).to("cpu")
    moved = copy.deepcopy(fast).to("meta", torch.float16)

    layer = next(module for module in moved.modules() if isinstance(module, PackedConv2d))
    assert (layer.scale.device.type, layer.scale.dtype, layer.dtype) == ("meta", torch.float32, torch.float16)
