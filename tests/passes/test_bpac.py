"""Segmentation networks of torchvision: every scheme, and a dilation for each branch in dilated stages and ASPP."""

import copy

import pytest
import torch
import torchvision
from detectors import spread
from torch import nn
from torchvision.models.resnet import Bottleneck
from torchvision.models.segmentation.deeplabv3 import DeepLabHead, DeepLabV3
from torchvision.models.segmentation.fcn import FCN, FCNHead

from binarize.artifact import load, save
from binarize.convert import convert, plan
from binarize.finetune import Settings, finetune
from binarize.layers.binary import BinaryConv2d
from binarize.layers.branches import branch_groups
from binarize.passes.pack import pack
from binarize.recipe import Recipe
from binarize.training.scenes import segmentation_loss

RATES = "group-net:k=2,rates=2-3"


class Features(nn.Module):
    """A stem and two dilated bottlenecks of torchvision, as the last stages of its segmentation networks are."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 3, 8, 1), nn.BatchNorm2d(64), nn.ReLU())
        self.layer4 = nn.Sequential(*(Bottleneck(64, 16, dilation=2) for _ in range(2)))

    def forward(self, x):
        return {"out": self.layer4(self.stem(x))}


def network(kind):
    torch.manual_seed(0)
    head = DeepLabHead(64, 5) if kind is DeepLabV3 else FCNHead(64, 5)
    return spread(kind(Features(), head))


def build(name):
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=5).eval()


def recipe(*patterns):
    return Recipe(scheme=RATES, layers={**dict.fromkeys(patterns, RATES), "*": "fp"})


@pytest.mark.parametrize(
    ("kind", "patterns"),
    [
        (FCN, ("backbone.layer4.*",)),
        (DeepLabV3, ("classifier.0.convs.1.*", "classifier.0.convs.2.*")),
    ],
)
def test_branches_have_dilations_of_their_own_on_maps_smaller_than_they_reach(kind, patterns, tmp_path):
    model, x = network(kind), torch.randn(2, 3, 32, 40)  # maps of 4 x 5 in the dilated stages

    net = convert(model, x, recipe=recipe(*patterns))

    groups = dict(branch_groups(net))
    assert groups
    wide = [
        [max(m.dilation) for m in body.modules() if isinstance(m, BinaryConv2d) and max(m.kernel_size) > 1]
        for group in groups.values()
        for body in group.bodies
    ]
    assert all(rates == [2 + index % 2] * len(rates) and rates for index, rates in enumerate(wide))
    packed = pack(net)
    save(packed, tmp_path / "net.safetensors")
    with torch.no_grad():
        wanted, got = net(x)["out"], packed(x)["out"]
        # float32 sums of at most 4608 products: 2 x 4612 roundings of 2^-24, were they all to one side
        assert float((got - wanted).norm() / wanted.norm()) < 6e-4
        assert torch.equal(load(tmp_path / "net.safetensors")(x)["out"], got)
    history = finetune(
        net, [x, x], loss_fn=segmentation_loss(model), settings=Settings(epochs=1, lr=0.001, freeze_norm=True)
    )
    assert history.epochs[0].terms["pixels"] >= 0


@pytest.mark.parametrize("scheme", ["encoding:w=4,a=4", "group-net:k=2,rates=2-3"])
def test_lraspp_converts_layer_by_layer_and_by_groups(scheme):
    model, x = build("lraspp_mobilenet_v3_large"), torch.randn(2, 3, 32, 48)

    net = convert(model, x, recipe=Recipe(scheme=scheme, keep=("backbone.[4-9].*", "backbone.1?.*")))
    packed = pack(copy.deepcopy(net))

    with torch.no_grad():
        wanted, got = net(x)["out"], packed(x)["out"]
    # 960 products at most; a last bit may move a code, which eight later layers carry on
    assert float((got - wanted).norm() / wanted.norm()) < 0.05


def test_every_dilated_convolution_of_the_backbone_takes_a_rate():
    found = plan(build("fcn_resnet50"), Recipe(scheme="group-net:k=5,rates=2-6"))
    reasons = {group.name: group.reason for group in found.groups if group.path is None}

    assert not any("dilation" in str(reason) for reason in reasons.values())
    assert sum(group.path is not None for group in found.groups) >= 16


def test_stored_branches_repeat_the_dilations():
    scheme = "group-net:k=2,stored=4,rates=2-4"
    some = Recipe(scheme=scheme, layers={"backbone.layer4.*": scheme, "*": "fp"})
    net = convert(network(FCN), torch.randn(2, 3, 32, 40), recipe=some)
    groups = [group for _, group in branch_groups(net)]
    wide = [
        [max(m.dilation) for body in group.bodies for m in body.modules() if _is_wide(m)] for group in groups
    ]  # fmt: skip

    assert groups
    assert all(rates == [2, 3, 2, 3] for rates in wide)


def _is_wide(module):
    return isinstance(module, BinaryConv2d) and max(module.kernel_size) > 1
