import group_nets
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from models import Residual
from torch import nn

from binarize.convert import convert
from binarize.cost import example_arguments, measure_macs, packed_bytes, split_of, tensor_bytes, weight_bytes
from binarize.errors import ModelError
from binarize.layers.branches import branch_groups
from binarize.passes.pack import pack
from binarize.passes.select import Rules
from binarize.schemes.presets import build_scheme


def test_a_convolution_counts_its_products_at_every_output():
    net = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2))

    assert measure_macs(net, (torch.randn(1, 4, 8, 10),)) == {"0": 6 * 4 * 5 * (2 * 3 * 3)}


def test_a_transposed_convolution_counts_its_products_at_every_input():
    net = nn.Sequential(nn.ConvTranspose2d(4, 6, 2, stride=2))

    assert measure_macs(net, (torch.randn(1, 4, 5, 5),)) == {"0": 4 * 5 * 5 * (6 * 2 * 2)}


def test_a_linear_layer_counts_every_row():
    net = nn.Sequential(nn.Linear(7, 3))

    assert measure_macs(net, (torch.randn(2, 5, 7),)) == {"0": 2 * 5 * 7 * 3}


def test_a_layer_called_twice_counts_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(self.layer(x))

    assert measure_macs(Twice(), (torch.randn(1, 4),)) == {"layer": 2 * 16}


@pytest.mark.parametrize("scheme", ["xnor-net", "encoding:w=2,a=2"])
def test_all_three_forms_of_a_network_have_the_same_macs(scheme):
    model, x = Residual().eval(), torch.randn(1, 3, 8, 8)
    net = convert(model, torch.randn(4, 3, 8, 8), scheme)

    macs = measure_macs(model, (x,))
    assert measure_macs(net, (x,)) == macs
    assert measure_macs(pack(net), (x,)) == macs


def test_counting_restores_the_mode_and_leaves_no_hooks():
    net = Residual().train()
    measure_macs(net, (torch.randn(1, 3, 8, 8),))

    assert all(module.training and not module._forward_hooks for module in net.modules())


def test_a_wrong_input_is_named_with_its_shape():
    with pytest.raises(ModelError, match="1x4x8x8"):
        measure_macs(Residual(), (torch.randn(1, 4, 8, 8),))


class _TakesAPair(nn.Module):
    def forward(self, first, second):
        return first - second


@pytest.mark.parametrize(("model", "kinds"), [
    (nn.Identity(), [torch.Tensor]), (_TakesAPair(), [torch.Tensor, torch.Tensor]),
])  # fmt: skip
def test_arguments_take_the_form_that_the_model_takes(model, kinds):
    assert [type(argument) for argument in example_arguments(model, torch.randn(2, 3, 8, 8))] == kinds


def test_a_detection_model_gets_a_list():
    class Detector(nn.Module):
        def forward(self, images):
            if not isinstance(images, list):
                raise TypeError("give a list of images")
            return images

    (images,) = example_arguments(Detector(), torch.randn(2, 3, 8, 8))
    assert [image.shape for image in images] == [(3, 8, 8)] * 2


@given(
    weight=st.tuples(st.integers(1, 40), st.integers(1, 20), st.integers(1, 3), st.integers(1, 3)),
    scheme=st.sampled_from(["xnor-net", "encoding:w=3,a=2", "residual:m=3,a=2", "abc-net:m=2,n=3", "pa-net:m=2,n=3"]),
)
def test_packed_bytes_are_what_packing_gives(weight, scheme):
    from binarize.layers.binary import BinaryActivation, BinaryConv2d
    from binarize.passes.pack import pack_layer

    outputs, channels, *kernel = weight
    built = build_scheme(scheme)
    layer = BinaryConv2d.from_float(
        nn.Conv2d(channels, outputs, tuple(kernel)), built, BinaryActivation(built.activation)
    )  # fmt: skip

    packed = packed_bytes(torch.Size(weight), built)

    assert packed == weight_bytes(layer) == weight_bytes(pack_layer(layer))


def test_shared_tensors_take_their_bytes_once():
    shared = nn.Linear(4, 4)

    assert tensor_bytes(nn.Sequential(shared, nn.ReLU(), shared)) == 4 * (16 + 4)


# docs/methods.md, costs: (network, downsample binary, bits per weight, products per MAC) to Mbit and 1e8 operations
PUBLISHED = {
    ("resnet18", True, 32, 64): (373.7, 18.14), ("resnet34", True, 32, 64): (696.9, 36.64),
    ("resnet50", True, 32, 64): (816.1, 40.89), ("resnet18", True, 1, 1): (27.8, 1.45),
    ("resnet34", True, 1, 1): (37.9, 1.74), ("resnet50", True, 1, 1): (89.3, 1.82),
    ("resnet18", False, 1, 1): (33.2, 1.64), ("resnet34", False, 1, 1): (43.3, 1.93),
    ("resnet50", False, 1, 1): (175.1, 5.36), ("resnet18", True, 3, 3): (50.2, 1.98),
    ("resnet34", True, 3, 3): (80.5, 2.85), ("resnet50", True, 3, 3): (136.2, 3.06),
    ("resnet18", True, 4, 4): (61.3, 2.24), ("resnet34", True, 4, 4): (101.7, 3.40),
    ("resnet50", True, 4, 4): (159.6, 3.68), ("resnet18", True, 5, 5): (72.5, 2.51),
    ("resnet34", True, 5, 5): (123.0, 3.95), ("resnet50", True, 5, 5): (183.1, 4.30),
    ("resnet18", True, 8, 8): (105.9, 3.30), ("resnet34", True, 8, 8): (186.8, 5.62),
    ("resnet50", True, 8, 8): (253.4, 6.16), ("resnet18", False, 5, 5): (77.1, 2.69),
    ("resnet34", False, 5, 5): (127.6, 4.13), ("resnet50", False, 5, 5): (257.8, 7.62),
    ("resnet18", True, 4, 20): (61.3, 6.48), ("resnet34", True, 4, 20): (101.7, 12.26),
    ("resnet50", True, 4, 20): (159.6, 13.60), ("resnet18", True, 5, 25): (72.5, 7.81),
    ("resnet34", True, 5, 25): (123.0, 15.03), ("resnet50", True, 5, 25): (183.1, 16.71),
}  # fmt: skip


@pytest.mark.parametrize("network", ["resnet18", "resnet34", "resnet50"])
@pytest.mark.parametrize("downsample", [True, False], ids=["downsample binary", "downsample fp"])
def test_costs_are_those_of_the_papers_table(network, downsample):
    """Check 12 of docs/methods.md: the calculator reproduces the table that the literature gives."""
    rules = Rules(keep=() if downsample else ("*downsample*",))
    with torch.device("meta"):
        split = split_of(torchvision.models.get_model(network).eval(), torch.empty(1, 3, 224, 224), rules)

    rows = {key[2:]: cost for key, cost in PUBLISHED.items() if key[:2] == (network, downsample)}
    assert len(rows) >= 2
    for (bits, products), (megabits, operations) in rows.items():
        assert split.memory(bits) / 1e6 == pytest.approx(megabits, abs=0.051)
        assert split.operations(products) / 1e8 == pytest.approx(operations, abs=0.0051)


@pytest.mark.parametrize(
    ("scheme", "bits", "products"),
    [("xnor-net", 1, 1), ("pa-net:m=4,n=5", 4, 20), ("abc-net:m=5,n=5", 5, 25), ("group-net:k=5", 5, 5)],
)
def test_schemes_have_the_bits_and_products_of_their_papers(scheme, bits, products):
    built = build_scheme(scheme)

    assert (built.bits, built.products) == (bits, products)


@pytest.mark.parametrize("form", ["training", "packed"])
@pytest.mark.parametrize(("stored", "executed"), [(3, 0), (4, 3), (4, 1)])
def test_branches_count_as_many_times_as_they_run_and_routers_count(form, stored, executed):
    net = group_nets.net(stored, executed=executed)
    net = pack(net) if form == "packed" else net
    macs = measure_macs(net, (group_nets.IMAGES[:1],))

    one = 12 * 12 * 8 * 8 * 9 * 2  # two 3x3 convolutions of 8 channels
    two = 6 * 6 * (12 * 8 * 9 + 12 * 12 * 9 + 12 * 8)  # the strided block, with its 1x1 shortcut
    for group, each in (("first", one), ("second", two)):
        bodies = {name: count for name, count in macs.items() if name.startswith(f"{group}.bodies.")}
        assert sum(bodies.values()) == (executed or stored) * each
        assert len({name.split(".")[2] for name in bodies}) == (executed or stored)
        router = {name: count for name, count in macs.items() if name.startswith(f"{group}.router.")}
        assert sum(router.values()) == (8 * 8 + 8 * stored if executed else 0)
    assert [group.sparse for _, group in branch_groups(net)] == [form == "packed" and executed > 0] * 2
