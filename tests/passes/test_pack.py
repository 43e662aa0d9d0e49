"""Decompose, pack, fold and fuse: each keeps the function, leaves the graph it promises, refuses with a reason, and
changes nothing the second time."""

import copy

import pytest
import torch
from torch import fx, nn

from binarize.errors import ModelError
from binarize.layers.binary import BinaryActivation, BinaryConv2d, binary_layers
from binarize.layers.packed import PackActivation, PackedConv2d
from binarize.passes.decompose_layers import DecomposeLayers, decompose
from binarize.passes.fold_batchnorm import FoldBatchNorm
from binarize.passes.fuse import FuseEpilogue, FuseReader, packed_layers
from binarize.passes.pack import PackLayers, pack
from binarize.passes.route import route
from binarize.schemes.presets import build_scheme


class Block(nn.Module):
    """Two convolutions with normalisation, a 1x1 shortcut on the same input, addition and ReLU."""

    def __init__(self, channels=8, outputs=12):
        super().__init__()
        self.a, self.na = nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.b, self.nb = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.short, self.ns = nn.Conv2d(channels, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.relu(self.na(self.a(x)))
        return self.relu(self.nb(self.b(y)) + self.ns(self.short(x)))


def trained(model):
    """Give every normalisation statistics of its own, as training would."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.running_mean = torch.randn(module.num_features, generator=generator) * 0.1
            module.running_var = torch.rand(module.num_features, generator=generator) + 0.5
            module.weight.data = torch.randn(module.num_features, generator=generator)
            module.bias.data = torch.randn(module.num_features, generator=generator) * 0.1
    return model.eval()


def converted(model, scheme, x, names=None):
    """Trace, decompose all convolutions and linear layers, and fit every activation on one batch."""
    gm = fx.symbolic_trace(trained(model))
    names = names or [n for n, m in gm.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    result = DecomposeLayers({name: build_scheme(scheme) for name in names})(gm)
    handles = [
        m.register_forward_pre_hook(lambda m, args: None if m.fitted else m.set_levels(m.basis.fit(args[0])))
        for m in gm.modules()
        if isinstance(m, BinaryActivation)
    ]
    with torch.no_grad():
        gm(x)
    for handle in handles:
        handle.remove()
    return gm, result


def called(gm):
    return [str(node.target) for node in gm.graph.nodes if node.op == "call_module"]


@pytest.fixture
def x():
    return torch.randn(2, 8, 9, 9)


@pytest.fixture(params=["xnor-net", "encoding:w=4,a=4", "residual:m=2,a=3", "pa-net:m=2,n=3"])
def scheme(request):
    return request.param


def test_layers_that_read_one_tensor_share_its_activation(x, scheme):
    gm, result = converted(Block(), scheme, x)

    assert result.changed == ("a", "b", "short")
    assert gm.a.activation is gm.short.activation
    assert gm.a.activation is not gm.b.activation
    assert DecomposeLayers({})(gm).changed == ()


def test_a_layer_that_the_graph_does_not_call_is_reported(x):
    gm = fx.symbolic_trace(Block().eval())

    result = DecomposeLayers({"nowhere": build_scheme("xnor-net")})(gm)

    assert result.changed == ()
    assert result.skipped == {"nowhere": "not called in this graph"}


def test_only_convolutions_and_linear_layers_have_a_binary_form():
    with pytest.raises(TypeError, match="ReLU"):
        decompose(nn.ReLU(), build_scheme("xnor-net"))


def test_packing_keeps_the_function_and_packs_each_tensor_once(x, scheme):
    gm, _ = converted(Block(), scheme, x)
    before = gm(x).detach()

    result = PackLayers()(gm)

    assert result.changed == ("a", "b", "short")
    assert sum(isinstance(gm.get_submodule(name), PackActivation) for name in called(gm)) == 2
    assert PackLayers()(gm).changed == ()
    assert_same(gm(x), before)


def test_folding_keeps_the_function_and_leaves_no_normalisation(x, scheme):
    gm, _ = converted(Block(), scheme, x)
    PackLayers()(gm)
    before = gm(x)

    result = FoldBatchNorm()(gm)

    assert set(result.changed) == {"na", "nb", "ns"}
    assert not [m for m in gm.modules() if isinstance(m, nn.BatchNorm2d)]
    assert FoldBatchNorm()(gm).changed == ()
    assert_same(gm(x), before)


def test_fusing_moves_addition_and_clamp_into_the_later_layer(x, scheme):
    gm, _ = converted(Block(), scheme, x)
    PackLayers()(gm)
    FoldBatchNorm()(gm)
    before = gm(x)

    FuseEpilogue()(gm)

    assert not [node for node in gm.graph.nodes if node.op in ("call_function", "call_method")]
    assert "relu" not in called(gm)
    assert FuseEpilogue()(gm).changed == ()
    assert_same(gm(x), before)


def test_one_plane_between_two_convolutions_becomes_an_integer_threshold(x):
    gm, _ = converted(Block(), "xnor-net", x)
    for step in (PackLayers(), FoldBatchNorm(), FuseEpilogue()):
        step(gm)
    before = gm(x)

    result = FuseReader()(gm)

    assert len(result.changed) == 1
    assert gm.a.reader is not None
    assert list(result.skipped.values()) == ["not fed by a packed convolution"]
    assert torch.equal(gm(x), before)


@pytest.mark.parametrize("asked", ["popcount", "int8"])
def test_a_layer_answers_in_the_several_planes_or_the_codes_of_its_only_reader(x, asked, monkeypatch):
    gm, _ = converted(Block(), "encoding:w=2,a=3", x)
    for step in (PackLayers(), FoldBatchNorm(), FuseEpilogue()):
        step(gm)
    monkeypatch.setenv("BINARIZE_ROUTE", asked)
    before = gm(x)

    assert len(FuseReader()(gm).changed) == 1
    route(gm)
    assert gm.a(x).dtype == (torch.uint8 if asked == "int8" else torch.int32)
    assert torch.equal(gm(x), before)


def test_a_plane_of_a_sum_with_a_residual_is_made_from_floats(x):
    """A threshold on the whole number alone would leave the residual out."""

    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))

        def forward(self, x):
            return self.c(self.b(self.a(x)) + x)

    gm, _ = converted(Chain(), "xnor-net", x)
    for step in (PackLayers(), FuseEpilogue()):
        step(gm)
    before = gm(x)

    assert "'b' adds a residual, which stays in floating point" in FuseReader()(gm).skipped.values()
    assert torch.equal(gm(x), before)


class Awkward(nn.Module):
    """A convolution with two readers, one that is called twice, and normalisation that nothing can take in."""

    def __init__(self):
        super().__init__()
        self.two, self.norm_two = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.shared, self.norm_shared = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.alone = nn.BatchNorm2d(8)

    def forward(self, x):
        y = self.two(x)
        y = self.norm_two(y) + y
        y = self.norm_shared(self.shared(torch.relu(self.shared(y))))
        return self.alone(torch.sigmoid(y))


def test_what_cannot_be_folded_stays_with_its_reason(x, scheme):
    gm, _ = converted(Awkward(), scheme, x)
    PackLayers()(gm)
    before = gm(x)

    result = FoldBatchNorm()(gm)

    assert result.changed == ()
    assert result.skipped == {
        "norm_two": "'two' feeds 2 nodes",
        "norm_shared": "'shared' is called 2 times",
        "alone": "not fed by a convolution or linear layer",
    }
    FuseEpilogue()(gm)
    assert_same(gm(x), before)


def test_normalisation_in_training_mode_is_left(x):
    gm, _ = converted(Block(), "xnor-net", x)
    gm.nb.train()
    PackLayers()(gm)

    assert FoldBatchNorm()(gm).skipped == {"nb": "normalises by the statistics of each batch"}


@pytest.mark.parametrize("scheme", ["xnor-net", "encoding:w=4,a=4"])
@pytest.mark.parametrize("model", [Block(), Awkward()], ids=lambda m: type(m).__name__)
def test_pack_gives_the_training_forms_outputs_and_leaves_it_alone(x, scheme, model):
    gm, _ = converted(copy.deepcopy(model), scheme, x)
    before = gm(x).detach()

    packed = pack(gm)

    assert_same(packed(x), before)
    assert len(packed_layers(packed)) == len(list(binary_layers(gm))) > 0
    assert isinstance(gm.get_submodule("a" if hasattr(gm, "a") else "two"), BinaryConv2d)
    assert not packed.training
    assert all(not p.requires_grad for p in packed.parameters())


def test_linear_layers_with_normalisation_pack_too():
    model = nn.Sequential(nn.Linear(24, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 33), nn.ReLU6())
    rows = torch.randn(5, 24)
    gm, _ = converted(model, "encoding:w=4,a=4", rows)

    packed = pack(gm)

    assert not [m for m in packed.modules() if isinstance(m, nn.BatchNorm1d)]
    assert_same(packed(rows), gm(rows).detach())


def test_layers_outside_any_graph_are_packed_in_place(x):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            scheme = build_scheme("encoding:w=8,a=8")
            self.conv = decompose(nn.Conv2d(8, 4, 3), scheme)
            self.conv.activation.set_levels(scheme.activation.fit(x))

        def forward(self, x):
            return self.conv(x) if x.sum() > 1e9 else self.conv(x) * 2

    net = Plain().eval()
    packed = pack(net)

    assert isinstance(packed.conv, PackedConv2d)
    assert_same(packed(x), net(x).detach())


def test_packing_a_float_network_is_refused():
    with pytest.raises(ModelError, match="run convert first"):
        pack(nn.Conv2d(1, 1, 1))


def assert_same(out, wanted):
    """Close up to float32 rounding, except where it flips a code: few elements, and by one step."""
    far = (out - wanted).abs() > 1e-4 * wanted.abs().max().clamp_min(1.0)
    assert out.shape == wanted.shape
    assert far.float().mean() < 0.01


def test_frozen_normalisation_of_detectors_is_folded(x):
    from torchvision.ops import FrozenBatchNorm2d

    model = nn.Sequential(nn.Conv2d(8, 8, 3), FrozenBatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), FrozenBatchNorm2d(4))
    model[1].running_var.uniform_(0.5, 2.0)
    model[4].bias.normal_()
    tracer = fx.Tracer()
    tracer.is_leaf_module = lambda module, path: True
    gm = fx.GraphModule(model, tracer.trace(model)).eval()
    DecomposeLayers({"0": build_scheme("encoding:w=8,a=8")})(gm)
    gm.get_submodule("0").activation.set_levels(build_scheme("encoding:w=8,a=8").activation.fit(x))
    before = gm(x).detach()
    PackLayers()(gm)

    assert FoldBatchNorm()(gm).changed == ("1", "4")
    torch.testing.assert_close(gm(x).detach(), before, rtol=1e-4, atol=1e-4)
