"""Checks of docs/methods.md that go through several rooms: the arithmetic all methods share, and every scheme whole."""

import models as zoo
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn
from torch.nn import functional as F

import binarize
from binarize.layers.binary import BinaryActivation, BinaryConv2d
from binarize.passes.groups import find_groups
from binarize.passes.pack import pack_layer
from binarize.recipe import Recipe
from binarize.schemes.base import Levels
from binarize.schemes.encoding import EncodingActivation
from binarize.schemes.presets import PRESETS, build_scheme

GEOMETRIES = [((1, 1), (1, 1)), ((2, 1), (1, 2)), ((1, 1), (9, 9))]  # stride and dilation; the last passes the image


def binary(conv, x, scheme, levels=None):
    scheme = build_scheme(scheme)
    activation = BinaryActivation(scheme.activation)
    activation.set_levels(levels or scheme.activation.fit(x))
    return BinaryConv2d.from_float(conv, scheme, activation).eval()


def close(seen, wanted):
    """Sums of at most 400 products of sizes below 10, in float32 on both sides."""
    torch.testing.assert_close(seen, wanted, rtol=0, atol=400 * 100 * 2.0**-23)


@pytest.mark.parametrize("scheme", ["xnor-net", "encoding:w=2,a=3", "pa-net:m=2,n=3", "abc-net:m=3,n=2"])
@pytest.mark.parametrize(("stride", "dilation"), GEOMETRIES)
def test_the_three_paddings_differ_by_the_taps_outside(scheme, stride, dilation):
    """Check 3: padding with zeros is exact, and differs from padding with a level by level x the weights outside."""
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 4, 3, stride, (9, 9) if dilation[0] == 9 else (2, 1), dilation, bias=False)
    x = torch.randn(2, 5, 7, 6)
    layer = binary(conv, x, scheme)
    weight, (ph, pw) = layer.weight_value().detach(), conv.padding
    packed = pack_layer(layer)
    with torch.no_grad():
        exact = packed(x)
        levels = layer.activation(torch.tensor([[-9.0, 9.0]])).flatten().tolist()  # the lowest and the highest level
        for level, value in zip((-9.0, 9.0), levels, strict=True):
            around = F.pad(x, (pw, pw, ph, ph), value=level)
            plain = pack_layer(binary(nn.Conv2d(5, 4, 3, stride, 0, dilation, bias=False), x, scheme))
            plain.set_weight(layer.odd(), packed.scale, packed.bias)
            plain.activation = packed.activation
            outside = F.pad(torch.zeros_like(x), (pw, pw, ph, ph), value=1.0)
            outside = F.conv2d(outside, weight, None, stride, 0, dilation)

            close(plain(around), F.conv2d(layer.activation(around), weight, None, stride, 0, dilation))
            close(plain(around), exact + value * outside)
    close(exact, F.conv2d(layer.activation(x).detach(), weight, None, stride, (ph, pw), dilation))


@settings(max_examples=15)
@given(bits=st.integers(1, 8), seed=st.integers(0, 2**31))
def test_an_unsigned_code_padded_with_digit_0_pads_with_the_value_0(bits, seed):
    """Check 4: with sum(w) of the whole window as constant, planes padded with -1 give the exact zero padding."""
    torch.manual_seed(seed)
    x, weight = torch.rand(1, 3, 5, 5), torch.randn(2, 3, 3, 3, dtype=torch.float64)
    basis, step = EncodingActivation(bits), 1 / (2**bits - 1)
    levels = Levels(torch.tensor(0.0), torch.tensor([step]))
    signs = basis.planes(x, levels).signs.double()
    padded = F.pad(signs, (1, 1, 1, 1), value=-1.0)
    products = sum(2**i * F.conv2d(plane, weight) for i, plane in enumerate(padded))
    rebuilt = weight.sum((1, 2, 3)).reshape(1, -1, 1, 1) / 2 + step / 2 * products

    wanted = F.conv2d(basis(x, levels).double(), weight, padding=1)
    torch.testing.assert_close(rebuilt, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_top_plane_of_a_symmetric_code_of_positive_values_is_constant(bits):
    """Check 5: it needs no product, for <+1, w> = sum(w)."""
    x, weight = torch.rand(4, 50), torch.randn(50)
    basis = EncodingActivation(bits)
    planes = basis.planes(x, Levels(torch.tensor(-1.0), torch.tensor([2 / (2**bits - 1)])))
    below, scales = planes.signs[:-1], planes.scales.flatten()

    assert (planes.signs[-1] == 1).all()
    skipped = (planes.offset + scales[-1]) * weight.sum() + torch.einsum("m,mnk,k->n", scales[:-1], below, weight)
    torch.testing.assert_close(skipped, planes.value() @ weight, rtol=0, atol=1e-4)


@pytest.mark.parametrize("order", ["norm first", "clamp first"])
@pytest.mark.parametrize("scheme", ["xnor-net", "encoding:w=3,a=2", "pa-net:m=2,n=3"])
def test_normalisation_and_clamp_of_integers_are_those_of_floats(scheme, order):
    """Check 10: conv -> BN -> ReLU, and Group-Net's conv -> ReLU -> BN, in packed layers or beside them."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6)
    norm.running_mean, norm.running_var = torch.randn(6), torch.rand(6) + 0.1
    norm.weight.data, norm.bias.data = torch.randn(6), torch.randn(6)  # gains of both signs
    tail = [norm, nn.ReLU()] if order == "norm first" else [nn.ReLU(), norm]
    model = nn.Sequential(
        nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Conv2d(7, 6, 3, padding=1), *tail, nn.Conv2d(6, 5, 1)
    ).eval()
    x = torch.randn(4, 3, 8, 8)
    net = binarize.convert(model, x, recipe=Recipe(scheme=scheme, smallest=1))
    packed = binarize.pack(net)

    with torch.no_grad():
        seen, wanted = packed(x), net(x)
    assert float((seen - wanted).norm() / wanted.norm()) < 1e-5
    folded = not any(isinstance(module, nn.BatchNorm2d) for module in packed.modules())
    assert folded == (order == "norm first")


@pytest.mark.parametrize("scheme", ["encoding:w={k},a={k}", "residual:m={k},a=8", "pa-net:m={k},n={k}"])
def test_the_first_groups_error_falls_with_every_plane(scheme):
    """Check 13: after initialisation, for 1 to 8 planes."""
    torch.manual_seed(0)
    model, x = zoo.Residual().eval(), torch.randn(24, 3, 12, 12)
    with torch.no_grad():
        wanted, errors = model.block1(model.stem(x)), []
    for k in range(1, 9):
        net = binarize.convert(model, x, recipe=Recipe(scheme=scheme.format(k=k), smallest=1))
        group = next(group for group in find_groups(net) if group.name == "block1")
        interpreter = fx.Interpreter(net, garbage_collect_values=False)
        with torch.no_grad():
            interpreter.run(x)
        errors.append(float((interpreter.env[group.exit] - wanted).square().mean() / wanted.var()))

    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 10


SCHEMES = [
    "xnor-net",
    "xnor-net:shift=channel",
    "abc-net:m=3,n=3",
    "pa-net:m=4,n=3",
    "encoding:w=4,a=4",
    "residual:m=2,a=3",
]


def with_rows():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=6, dilation=6), nn.SiLU(),
        nn.Flatten(), nn.Linear(150, 20), nn.ReLU(), nn.Linear(20, 5),
    )  # fmt: skip


NETWORKS = [zoo.Residual, zoo.Grouped, zoo.Shared, with_rows]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("build", NETWORKS, ids=lambda build: build.__name__)
def test_every_scheme_goes_all_the_way(build, scheme, tmp_path):
    """Check 14: converted, packed, saved, loaded, exported and run in ONNX Runtime, with the same outputs."""
    torch.manual_seed(0)
    model, x = build().eval(), torch.randn(16, 3, 12, 12)
    net = binarize.convert(model, x, recipe=Recipe(scheme=scheme, smallest=1))
    packed = binarize.pack(net)
    binarize.save(packed, tmp_path / "net.safetensors")
    loaded = binarize.load(tmp_path / "net.safetensors")
    path = binarize.export_onnx(loaded, tmp_path / "net.onnx", example_inputs=x[:2])
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        trained, fast = net(x).flatten(1), packed(x).flatten(1)
        (onnx,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})

    assert torch.equal(loaded(x).flatten(1), fast)
    # A rounding before a code may flip it in some image, and move that image's outputs.
    for seen in (fast, torch.from_numpy(onnx).flatten(1)):
        wrong = (seen - trained).norm(dim=1) / trained.norm(dim=1)
        assert (wrong < 1e-4).float().mean() >= 0.85
        assert wrong.median() < 1e-5


def test_the_sweep_of_all_schemes_leaves_none_out():
    assert set(PRESETS) <= {scheme.partition(":")[0] for scheme in [*SCHEMES, "group-net"]}


@pytest.mark.parametrize("scheme", ["pa-net:m=4,n=5", "abc-net:m=3,n=3"])
def test_depthwise_convolutions_can_be_asked_for(scheme):
    """PA-Net on MobileNet: outputs of a depthwise convolution differ by orders of magnitude, and keep their sizes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU(), nn.Conv2d(16, 4, 1)
    ).eval()
    model[2].weight.data *= 10.0 ** torch.linspace(-3, 1, 16).reshape(-1, 1, 1, 1)
    x = torch.randn(16, 3, 10, 10)
    kept = binarize.convert(model, x, recipe=Recipe(scheme=scheme, smallest=1, convert=("4",)))
    net = binarize.convert(model, x, recipe=Recipe(scheme=scheme, smallest=1, convert=("2",)))
    weight = net.get_submodule("2").weight_value().detach()

    assert isinstance(kept.get_submodule("2"), nn.Conv2d)
    assert isinstance(net.get_submodule("2"), BinaryConv2d)
    share = (weight - model[2].weight).square().flatten(1).sum(1) / model[2].weight.square().flatten(1).sum(1)
    assert (share < 0.7).all()  # statistics of the whole layer would round the small outputs to 0: a share of 1
    torch.testing.assert_close(binarize.pack(net)(x), net(x).detach(), rtol=1e-4, atol=1e-4)
