"""Opening attention: which can be opened, and a network with it through the whole way."""

import onnxruntime
import torch
from torch import nn

from binarize.artifact import load, save
from binarize.convert import convert, plan
from binarize.export.onnx import export_onnx
from binarize.layers.attention import Attention
from binarize.passes.attention import open_attention
from binarize.passes.pack import pack

C = 32


class Reader(nn.Module):
    """Reads a weight of its attention."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(C, 2)

    def forward(self, x):
        return self.attention(x, x, x)[0] * self.attention.in_proj_weight.sum()


class Own(nn.MultiheadAttention):
    pass


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, C, 4, 4), nn.LayerNorm(C)
        self.attention = nn.MultiheadAttention(C, 2, batch_first=True)
        self.head = nn.Linear(C, 5)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        y = self.norm(x)
        return self.head((x + self.attention(y, y, y, need_weights=False)[0]).mean(1))


def test_attention_that_only_its_parent_calls_is_opened():
    shared = nn.MultiheadAttention(C, 2)
    model = nn.ModuleDict({"a": shared, "b": shared, "c": nn.ModuleList([nn.MultiheadAttention(C, 4)])})

    assert open_attention(model) == ("a", "b", "c.0")
    assert isinstance(model["a"], Attention)
    assert model["a"] is model["b"]


def test_the_rest_stays_as_it_is():
    hooked = nn.MultiheadAttention(C, 2)
    hooked.register_forward_hook(lambda *_: None)
    layer = nn.TransformerEncoderLayer(C, 2, batch_first=True)
    others = [Own(C, 2), nn.MultiheadAttention(C, 2, kdim=8), nn.MultiheadAttention(C, 2, add_bias_kv=True), hooked]

    assert open_attention(nn.ModuleList([Reader(), layer, *others])) == ()


def test_its_projections_are_converted_packed_saved_loaded_and_exported(tmp_path):
    torch.manual_seed(0)
    model, x = Encoder().eval(), torch.randn(8, 3, 16, 16)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    net = convert(model, x, "encoding:w=8,a=8")

    assert [layer.name for layer in plan(model).layers if layer.scheme] == [
        f"attention.{name}" for name in ("query", "key", "value", "out_proj")
    ]
    assert isinstance(model.attention, nn.MultiheadAttention)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        wanted, trained = model(x), net(x)
        packed = pack(net)
        save(packed, tmp_path / "net.safetensors")
        # eight bits leave a rounding of 1/255 of the range in each input
        assert (trained - wanted).norm() < 0.02 * wanted.norm()
        # float32 sums of 32 products, in other orders
        torch.testing.assert_close(packed(x), trained, rtol=1e-4, atol=1e-5)
        assert torch.equal(load(tmp_path / "net.safetensors")(x), packed(x))
        export_onnx(packed, tmp_path / "net.onnx")
        session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {session.get_inputs()[0].name: x[:5].numpy()})
        torch.testing.assert_close(torch.from_numpy(found), packed(x)[:5], rtol=1e-4, atol=1e-5)
