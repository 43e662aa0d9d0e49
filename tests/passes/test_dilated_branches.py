"""Branches with a dilation of their own, without strides, and with shortcuts around each convolution."""

import models
import torch
from decomposed import Chain, decomposed, lively
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.segmentation.fcn import FCN, FCNHead

from binarize.layers.binary import BinaryConv2d
from binarize.passes.select import Rules


def dilated(blocks=(1, 1, 1, 1)):
    backbone = ResNet(Bottleneck, list(blocks), width_per_group=16, replace_stride_with_dilation=[False, True, True])
    for unused in ("avgpool", "fc"):
        delattr(backbone, unused)

    class Features(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = backbone

        def forward(self, x):
            b = self.backbone
            x = b.maxpool(b.relu(b.bn1(b.conv1(x))))
            return {"out": b.layer4(b.layer3(b.layer2(b.layer1(x))))}

    return FCN(Features(), FCNHead(2048, 3)).eval()


def convolutions(body):
    return [m for m in body.modules() if isinstance(m, BinaryConv2d) and m.kernel_size == (3, 3)]


@torch.no_grad()
def test_each_branch_has_its_own_dilation_and_the_output_its_size():
    """Check 8 of docs/methods.md; in the published code every branch ends with the last rate."""
    model, x = dilated((1, 1, 2, 2)), torch.randn(1, 3, 64, 64)
    net, made, _ = decomposed(model, "group-net:k=3,rates=2-4", Rules(), only="backbone.backbone.")

    found = {c.name.split("backbone.")[-1]: net.get_submodule(c.branches) for c in made}
    for name, group in found.items():
        for branch, body in enumerate(group.bodies):
            for conv in convolutions(body):
                rate = branch + 2 if name in ("layer3.1", "layer4.0", "layer4.1") else 1
                assert conv.dilation == conv.padding == (rate, rate), name
    assert net(x)["out"].shape == model(x)["out"].shape


@torch.no_grad()
def test_a_dilated_branch_sees_further():
    model = dilated((1, 1, 2, 1))
    net, made, _ = decomposed(model, "group-net:k=3,rates=1-3,gates=off", only="backbone.backbone.layer3.1")
    (group,) = [net.get_submodule(c.branches) for c in made]
    x = torch.zeros(1, 1024, 15, 15)
    y = x.clone()
    y[..., 7, 7] = 1
    for branch, body in enumerate(group.bodies):
        rows, columns = (body(y) != body(x)).any(1)[0].nonzero().T
        assert set((rows - 7).tolist()) <= {-1 - branch, 0, 1 + branch}
        assert set((columns - 7).tolist()) <= {-1 - branch, 0, 1 + branch}


@torch.no_grad()
def test_dropped_strides_keep_the_size_that_comes_in():
    model, x = models.Residual().eval(), torch.randn(1, 3, 8, 8)
    net, made, _ = decomposed(model, "group-net:k=2,rates=2-3,strides=drop", only="block2")
    seen = {}
    net.get_submodule(made[0].branches).register_forward_hook(lambda module, args, y: seen.update(y=y))
    net(x)

    assert seen["y"].shape == (1, 16, 8, 8)
    for branch, body in enumerate(net.get_submodule(made[0].branches).bodies):
        assert {m.stride for m in body.modules() if isinstance(m, BinaryConv2d)} == {(1, 1)}
        assert [conv.dilation for conv in convolutions(body)] == [(branch + 2, branch + 2)] * 2


def test_a_pool_of_an_even_window_needs_its_stride():
    _, made, skipped = decomposed(Chain().eval(), "group-net:k=2,strides=drop")

    assert not made
    assert all("even window" in reason for reason in skipped.values())


@torch.no_grad()
def test_shortcuts_add_the_input_of_each_convolution_to_its_normalised_output():
    model, x = lively(models.Residual()), torch.randn(2, 8, 6, 6)
    net, _, _ = decomposed(model, "group-net:k=1,shortcuts=on")
    body = net.get_submodule("block1").bodies[0]
    part = body.get_submodule
    u = F.relu(part("bn1")(part("conv1")(x)) + x)
    v = F.relu(part("bn2")(part("conv2")(u)) + u)  # x is in u: the block's own shortcut would count it twice

    torch.testing.assert_close(body(x), v, rtol=0, atol=2.0**-21 * float(v.max()))  # two additions in another order


@torch.no_grad()
def test_a_block_keeps_its_own_shortcut_where_none_brings_its_input_along():
    model, x = lively(models.Residual()), torch.randn(2, 8, 6, 6)
    net, _, _ = decomposed(model, "group-net:k=1,shortcuts=on")
    body = net.get_submodule("block2").bodies[0]
    part = body.get_submodule
    u = F.relu(part("bn1")(part("conv1")(x)))  # of another shape than x
    v = F.relu(part("bn2")(part("conv2")(u)) + u + part("shortcut")(x))

    torch.testing.assert_close(body(x), v, rtol=0, atol=2.0**-20 * float(v.max()))  # three additions in another order
