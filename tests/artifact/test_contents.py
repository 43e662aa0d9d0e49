"""What a file can hold: graphs with arguments of every plain kind, layers of torch, whole families of networks."""

import json

import pytest
import torch
from artifacts import IMAGES, assert_same, captured
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import binarize
from binarize.artifact import load, operators, save
from binarize.artifact.modules import describe
from binarize.artifact.values import decode, encode
from binarize.record import Record, attach_record


class Outputs(nn.Module):
    """Slices, dtypes, an infinite bound, constants, dicts and tuples: arguments of every kind."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.gain = nn.Parameter(torch.rand(4, 1, 1))
        self.register_buffer("shift", torch.rand(4, 1, 1), persistent=False)

    def forward(self, x, scale=2.0):
        y = self.conv(x)[..., 1:-1, None, ::2].squeeze(3)
        y = torch.clamp(y * self.gain + self.shift, 0.0, float("inf"))
        big = y.to(torch.float64).reshape(y.shape[0], -1)
        return {"y": (y * scale, big.size(1)), "pair": [y.mean((2, 3)), torch.zeros(2, dtype=torch.int64)]}


def test_a_graph_may_hold_arguments_of_every_plain_kind(tmp_path):
    net = captured(Outputs())
    save(net, tmp_path / "net.safetensors")
    back = load(tmp_path / "net.safetensors")
    assert_same(net, back, IMAGES)
    assert_same(net, back, IMAGES, 3.0)
    assert dict(back.named_buffers())["shift"] is not None


class Named(nn.Module):
    """Takes a keyword and returns a dict: its export keeps torch's own code for trees."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x, *, pair):
        y = F.relu(self.conv(x)) + pair[0]
        return {"first": y[:, :1].softmax(1), "all": (y, pair[1].flip(3))}


def test_a_lifted_program_keeps_its_trees_of_inputs_and_outputs(tmp_path):
    from binarize.passes.lift import lift

    pair = [torch.ones(1, 4, 10, 10), torch.randn(1, 1, 10, 10)]
    net = lift(torch.export.export(Named().eval(), (IMAGES,), {"pair": pair}))
    attach_record(net, Record(recipe=binarize.Recipe(), layers=()))
    save(net, tmp_path / "net.safetensors")
    back = load(tmp_path / "net.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(back(IMAGES, pair=pair), net(IMAGES, pair=pair), rtol=0, atol=0)


LAYERS = [
    nn.AdaptiveAvgPool2d((1, None)), nn.AvgPool2d(2, ceil_mode=True, divisor_override=3),
    nn.BatchNorm1d(4, affine=False), nn.BatchNorm2d(4, eps=1e-3, momentum=None),
    nn.BatchNorm3d(4, track_running_stats=False), nn.CELU(0.5),
    nn.Conv1d(4, 6, 3, padding="same", padding_mode="reflect"),
    nn.Conv2d(4, 6, (1, 3), (2, 1), 1, groups=2, bias=False), nn.Conv3d(2, 2, 3, dilation=2),
    nn.ConvTranspose2d(4, 6, 3, 2, output_padding=1), nn.ConstantPad2d((0, 1, 2, 3), 0.5),
    nn.Dropout2d(0.25, inplace=True), nn.ELU(0.5), nn.Embedding(7, 3, padding_idx=1), nn.Flatten(2), nn.GELU("tanh"),
    nn.GLU(1), nn.GroupNorm(2, 4, affine=False), nn.Hardtanh(-2.0, 3.0), nn.Identity(),
    nn.InstanceNorm2d(4, affine=True), nn.LayerNorm((4, 5), elementwise_affine=False), nn.LayerNorm(4, bias=False),
    nn.LeakyReLU(0.3), nn.Linear(3, 2, False), nn.LocalResponseNorm(2), nn.MaxPool2d(3, 2, 1, return_indices=True),
    nn.PReLU(4), nn.PixelShuffle(2),
    nn.MultiheadAttention(8, 2, 0.1, bias=False, add_bias_kv=True, kdim=4, vdim=6, batch_first=True), nn.ReLU6(True),
    nn.ReflectionPad2d(1), nn.ReplicationPad3d(1), nn.Softmax(1), nn.Softplus(2, 10), nn.Threshold(0.1, 20),
    nn.Unflatten(1, (2, 2)), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
    nn.UpsamplingNearest2d(4), nn.ZeroPad2d(2),
]  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_a_layer_of_torch_is_rebuilt_from_its_class_and_arguments(layer, tmp_path):
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.conv = layer, nn.Conv2d(1, 1, 1)

        def forward(self, x):
            return self.layer(self.conv(x))

    net = captured(Holder())
    save(net, tmp_path / "net.safetensors")
    back = load(tmp_path / "net.safetensors").layer
    assert type(back) is type(layer)
    assert repr(back) == repr(layer.eval())
    public = {key: value for key, value in vars(layer).items() if not key.startswith("_")}
    assert {key: value for key, value in vars(back).items() if not key.startswith("_")} == public
    assert all(torch.equal(back.state_dict()[key], value) for key, value in layer.state_dict().items())


def test_attributes_changed_after_construction_are_kept(tmp_path):
    net = captured(nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU()))
    net.get_submodule("0").stride, net.get_submodule("0").note = (2, 2), "trained"
    save(net, tmp_path / "net.safetensors")
    back = load(tmp_path / "net.safetensors")
    assert back.get_submodule("0").note == "trained"
    assert_same(net, back, IMAGES)


def test_a_layer_with_a_hook_is_not_taken_for_a_plain_one():
    layer = nn.Linear(2, 2)
    assert describe(layer) is not None
    layer.register_forward_hook(lambda *_: None)
    assert describe(layer) is None


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
    | st.sampled_from([torch.float16, torch.strided, torch.channels_last, torch.device("cpu"), ..., range(1, 9, 2)]),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple)
    | st.dictionaries(st.text(max_size=3), inner, max_size=3) | st.builds(slice, inner, inner, inner),
    max_leaves=8,
)  # fmt: skip


@given(PLAIN)
def test_plain_arguments_survive_json(value):
    assert decode(json.loads(json.dumps(encode(value)))) == value


def test_every_listed_function_has_one_name_that_leads_back_to_it():
    for name, function in operators._plain().items():
        known = operators.name_of(function)
        assert known is not None
        assert operators.function_named(known) is function, name
