"""Groups become branches. Branches start as equal copies, so two of them must give what one binary group gives."""

import models
import pytest
import torch
from decomposed import Chain, decomposed, layerwise, lively, schemes_for
from torch import nn
from torch.nn import functional as F
from torchvision.models import get_model
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

from binarize.layers.binary import binary_layers
from binarize.layers.branches import Branches, Gate, branch_groups
from binarize.passes.capture import capture
from binarize.passes.decompose_groups import DecomposeGroups
from binarize.passes.select import Rules
from binarize.schemes.presets import build_scheme


class Dense(nn.Module):
    """Three layers that each read all before them, an addition of a gate, and a shuffle of halves."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(8 * k, 8, 3, padding=1) for k in (1, 2, 3))
        self.squeeze, self.excite = nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1)
        self.side, self.last = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(32, 5, 1)

    def forward(self, x):
        found = [self.stem(x)]
        for layer in self.layers:
            found.append(layer(F.relu(torch.cat(found, 1))))
        x = torch.cat(found, 1)
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        kept, turned = x.chunk(2, 1)
        return self.last(torch.cat((kept, F.relu(self.side(turned))), 1)).flatten(1)


class Preactivated(nn.Module):
    """A block whose ReLU writes over what comes in, which the addition then reads."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.conv1, self.conv2 = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        y = self.relu(x)
        x = y + self.conv2(F.relu(self.conv1(y)))
        return self.head(x).flatten(1)


class Pyramid(nn.Module):
    """Blocks whose outputs are read by the next one, by a head of their own and by an in-place user at the end."""

    def __init__(self):
        super().__init__()
        self.stem = models.conv_norm_relu(8, padding=1)
        self.block1, self.block2 = models.Block(8, 8), models.Block(8, 16, stride=2)
        self.fpn = FeaturePyramidNetwork([8, 16], 4)

    def forward(self, x):
        a = self.block1(self.stem(x))
        b = self.block2(a)
        found = self.fpn({"a": a, "b": b})
        return found["a"], found["b"], a.add_(1)


NETWORKS = [models.Residual, models.Grouped, Chain, Dense, Preactivated, Pyramid, models.ControlFlow]


def flat(outputs):
    return torch.cat([y.flatten() for y in outputs]) if isinstance(outputs, tuple) else outputs


@torch.no_grad()
@pytest.mark.parametrize("unit", ["group", "stage", "network"])
@pytest.mark.parametrize("build", NETWORKS, ids=lambda build: build.__name__)
def test_two_equal_branches_are_one_binary_group(build, unit):
    """Halves of equal numbers add up exactly, in gates and in sums: bit for bit, gates of one or of two."""
    model, x = lively(build()), torch.randn(2, 3, 8, 8)
    wanted = flat(layerwise(model)(x))

    for gates in ("block", "branch"):
        net, made, _ = decomposed(model, f"group-net:k=2,unit={unit},gates={gates}")
        assert made
        for gate in (module for module in net.modules() if isinstance(module, Gate)):
            gate.theta.zero_()
        assert torch.equal(flat(net(x)), wanted)


@torch.no_grad()
@pytest.mark.parametrize("build", [models.Residual, Chain, Pyramid], ids=lambda build: build.__name__)
def test_one_branch_behind_any_gate_is_the_binary_network(build):
    """Check 7 of docs/methods.md. A gate of a half mixes equals exactly; others round."""
    model, x = lively(build()), torch.randn(2, 3, 8, 8)
    net, made, _ = decomposed(model, "group-net:k=1")

    assert any(connection.gate == "gated" for connection in made)
    assert torch.equal(flat(net(x)), flat(layerwise(model)(x)))


def test_every_other_group_reads_its_own_branches_and_shapes_may_change():
    net, made, skipped = decomposed(models.Residual().eval(), "group-net:k=3")

    assert [(c.name, c.kind, c.branches, c.gate) for c in made] == [
        ("block1", "residual", "block1", "its input is not the output of a group of branches"),
        ("block2", "residual", "block2", "gated"),
    ]
    assert not skipped
    first, second = net.get_submodule("block1"), net.get_submodule("block2")
    assert first.hands_on
    assert not second.hands_on  # the end of the body: nobody reads its branches
    assert second.gate.theta.shape == (1,)
    assert [b.get_submodule("conv1").weight.shape[0] for b in second.bodies] == [16] * 3
    seen = {}
    second.register_forward_pre_hook(lambda module, args: seen.update(args=args))
    net(torch.randn(2, 3, 8, 8))
    assert len(seen["args"]) == 4
    assert {tuple(x.shape) for x in seen["args"]} == {(2, 8, 8, 8)}


def test_readers_beside_the_next_group_get_the_sum():
    net, made, _ = decomposed(Pyramid().eval(), "group-net:k=2", Rules(smallest=0, last=False))
    first = net.get_submodule(made[0].branches)
    with torch.no_grad():
        for body in first.bodies[1:]:
            body.get_submodule("bn2").bias.add_(1)
    seen = {}
    first.register_forward_hook(lambda module, args, y: seen.update(total=y[0].clone(), own=y[1].clone()))
    inner = next(group for name, group in branch_groups(net) if "inner_blocks.0" in name)
    inner.register_forward_pre_hook(lambda module, args: seen.update(head=args[0].clone()))
    net(torch.randn(1, 3, 8, 8))

    assert torch.equal(seen["head"], seen["total"])
    assert not torch.equal(seen["head"], seen["own"])


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        ("group-net:k=2", "group-net:k=3", "the group before has 2 branches"),
        ("group-net:k=4", "group-net:k=2,stored=4", "the group before has 4 branches"),
        ("group-net:k=1,stored=4", "group-net:k=2,stored=4", "the group before has 4 branches, 1 of which run"),
    ],
)
def test_no_gate_between_groups_of_other_numbers_of_branches(first, second, why):
    captured = capture(models.Residual().eval())
    gm = captured.graphs[""]
    chosen = schemes_for(captured, "", first)
    chosen |= {name: build_scheme(second) for name in chosen if name.startswith("block2")}
    step = DecomposeGroups(chosen)
    step(gm)

    assert [c.gate for c in step.made][1] == why
    assert not gm.get_submodule("block1").hands_on


@pytest.mark.parametrize(("unit", "names"), [("stage", ["block1", "block2"]), ("network", ["block1-block2"])])
def test_units_join_groups(unit, names):
    _, made, _ = decomposed(models.Residual().eval(), f"group-net:k=2,unit={unit}")

    assert [connection.name for connection in made] == names
    assert {connection.kind for connection in made} == {unit}


def test_what_is_read_outside_is_not_joined_and_says_so():
    _, made, skipped = decomposed(Pyramid().eval(), "group-net:k=2,unit=network")

    assert any("read outside" in reason for reason in skipped.values())
    assert [connection.kind for connection in made[:2]] == ["residual", "residual"]


def test_layers_that_stay_are_copied_with_their_group():
    net, made, _ = decomposed(models.Residual().eval(), "group-net:k=2", Rules(smallest=0, keep=("block2.shortcut",)))
    branches = net.get_submodule("block2")

    assert made[1].layers == ("block2.conv1", "block2.conv2", "block2.shortcut")
    kept = [body.get_submodule("shortcut") for body in branches.bodies]
    assert [type(layer) for layer in kept] == [nn.Conv2d, nn.Conv2d]
    assert kept[0] is not kept[1]
    assert branches.origin == {"conv1": "block2.conv1", "conv2": "block2.conv2", "shortcut": "block2.shortcut"}


def test_branches_share_nothing():
    net, _, _ = decomposed(models.Residual().eval(), "group-net:k=3")

    for _, group in branch_groups(net):
        tensors = [t.data_ptr() for body in group.bodies for t in (*body.parameters(), *body.buffers()) if t.numel()]
        assert len(tensors) == len(set(tensors))
    paths = [name for name, _ in net.named_modules()]
    assert "block1.conv1" not in paths
    assert "block1.bodies.2.conv1" in paths


def test_a_layer_called_from_elsewhere_is_left_with_the_reason():
    class Tied(models.Residual):
        def forward(self, x):
            return self.block2.conv2(self.block2(self.block1(self.stem(x)))).flatten(1)

    model = Tied().eval()
    net, made, skipped = decomposed(model, "group-net:k=2")

    assert [connection.name for connection in made] == ["block1"]
    assert any("also called elsewhere" in reason for reason in skipped.values())
    assert torch.equal(net(torch.ones(1, 3, 8, 8)), layerwise(model)(torch.ones(1, 3, 8, 8)))


def test_groups_of_different_schemes_are_left():
    captured = capture(models.Residual().eval())
    chosen = schemes_for(captured, "", "group-net:k=2") | {"block1.conv2": build_scheme("xnor-net")}
    step = DecomposeGroups(chosen)
    result = step(captured.graphs[""])

    assert result.skipped == {"block1": "its layers have different schemes"}
    assert [connection.name for connection in step.made] == ["block2"]


def test_a_second_run_changes_nothing():
    captured = capture(models.Residual().eval())
    gm = captured.graphs[""]
    chosen = schemes_for(captured, "", "group-net:k=2")
    DecomposeGroups(chosen)(gm)
    code = gm.code

    assert DecomposeGroups(chosen)(gm).changed == ()
    assert gm.code == code


def test_the_router_knows_the_channels_or_says_why_not():
    net, _, _ = decomposed(models.Residual().eval(), "group-net:k=2,stored=4")
    assert [g.router.squeeze.in_features for _, g in branch_groups(net)] == [8, 8]
    assert {len(g.bodies) for _, g in branch_groups(net)} == {4}
    assert net(torch.randn(3, 3, 8, 8)).shape == (3, 5)

    _, _, skipped = decomposed(Dense().eval(), "group-net:k=2,stored=4")
    assert any("router cannot know" in reason for reason in skipped.values())


# Real networks


@torch.no_grad()
@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "mobilenet_v3_small"])
def test_networks_of_torchvision(name):
    model, x = get_model(name, weights=None).eval(), torch.randn(1, 3, 64, 64)
    net, made, skipped = decomposed(model, "group-net:k=2", Rules())

    assert not skipped
    inside = {layer for connection in made for layer in connection.layers}
    assert {group.origin[k] for _, group in branch_groups(net) for k in group.origin} >= inside
    assert not [layer for path, layer in binary_layers(net) if ".bodies." not in path]
    assert torch.equal(net(x), layerwise(model, Rules())(x))


class Trunk(nn.Sequential):
    """The features of a detector."""

    out_channels = 16

    def __init__(self):
        super().__init__(models.conv_norm_relu(8, padding=1), models.Block(8, 8), models.Block(8, 16, stride=2))


@torch.no_grad()
def test_parts_of_a_detector():
    """A detector cannot be traced whole: its features, its proposals and its heads are graphs of their own."""
    options = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rpn_post_nms_top_n_test": 8}
    pooler = MultiScaleRoIAlign(["0"], output_size=2, sampling_ratio=2)
    model = FasterRCNN(
        Trunk(), min_size=32, max_size=32, rpn_anchor_generator=AnchorGenerator(((16, 32),), ((1.0,),)),
        box_roi_pool=pooler, box_head=TwoMLPHead(64, 16), box_predictor=FastRCNNPredictor(16, 3), **options,
    )  # fmt: skip
    net, made, _ = decomposed(lively(model), "group-net:k=2", Rules())
    x = [torch.rand(3, 32, 32)]

    assert [c.branches for c in made][:2] == ["1", "2"]
    assert isinstance(net.get_submodule("backbone.2"), Branches)
    for got, wanted in zip(net(x), layerwise(model, Rules())(x), strict=True):
        assert torch.equal(got["boxes"], wanted["boxes"])
