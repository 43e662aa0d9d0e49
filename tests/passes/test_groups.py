import time
from collections import Counter

import pytest
import torch
from models import Grouped, Overwriting, Residual, Shared, TwoUsers
from torch import fx, nn

from binarize.passes.capture import WEIGHTED, capture
from binarize.passes.graph import calls, output_nodes
from binarize.passes.groups import find_groups


def torchvision_graph(name, device="meta", **options):
    import torchvision

    with torch.device(device):
        return capture(torchvision.models.get_model(name, weights=None, **options).eval()).root


class Recorder(fx.Interpreter):
    """Keeps a copy of each value, because some are overwritten."""

    def __init__(self, gm):
        super().__init__(gm)
        self.values = {}

    def run_node(self, n):
        value = super().run_node(n)
        self.values[n] = copied(value)
        return value


def copied(value):
    return fx.node.map_aggregate(value, lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf)


def assert_groups_stand_alone(gm, x):
    """Compute each group from its entry alone and compare its exit."""
    recorder = Recorder(gm)
    recorder.run(x)
    for group in find_groups(gm):
        values = {group.entry: copied(recorder.values[group.entry])}
        for node in group.nodes:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = getattr(recorder, node.op)(node.target, args, kwargs)
        assert torch.equal(values[group.exit], recorder.values[group.exit]), group.name


def assert_each_call_is_in_one_group(gm):
    found = find_groups(gm)
    held = Counter(node for group in found for node in group.nodes)
    assert {held[call.node] for call in calls(gm, WEIGHTED)} == {1}
    assert max(held.values()) == 1
    assert len({group.name for group in found}) == len(found)
    for group in found:
        inside = set(group.nodes)
        outside_readers = {n for n in inside for user in n.users if user not in inside}
        assert outside_readers <= {group.exit}
        assert group.entry not in inside


def summary(gm):
    return Counter((group.kind, len(group.layers)) for group in find_groups(gm))


def test_a_residual_network_is_a_stem_its_blocks_and_a_head():
    gm = capture(Residual().eval()).root
    found = find_groups(gm)
    assert [(group.name, group.kind) for group in found] == [
        ("stem.0", "chain"),
        ("block1", "residual"),
        ("block2", "residual"),
        ("fc", "chain"),
    ]
    assert found[2].layers == ("block2.conv1", "block2.conv2", "block2.shortcut")
    assert found[2].entry is found[1].exit
    assert_groups_stand_alone(gm, torch.randn(2, 3, 12, 12))


def test_the_activation_after_the_exit_belongs_to_the_group():
    found = find_groups(capture(Residual().eval()).root)
    assert all(group.exit.target == f"{group.name}.relu" for group in found[1:3])


@pytest.mark.parametrize("build", [Residual, Shared, TwoUsers, Grouped, Overwriting])
def test_groups_of_tiny_networks_stand_alone(build):
    gm = capture(build().eval()).root
    assert_each_call_is_in_one_group(gm)
    assert_groups_stand_alone(gm, torch.randn(2, 3, 12, 12))


def test_a_layer_called_twice_is_in_a_group_by_call():
    (group,) = find_groups(capture(Shared()).root)
    assert group.layers == ("stem", "conv", "head")
    assert group.name == "stem-head"


class Scaled(nn.Module):
    """A branch with a parameter and sizes of its own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.scale = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x):
        y = self.conv(x) * self.scale
        return x + y.view(y.size(0), 4, -1).reshape(y.shape)


def test_constants_and_sizes_read_only_inside_belong_to_the_group():
    gm = capture(nn.Sequential(Scaled(), Scaled()).eval()).root
    for group in find_groups(gm):
        assert group.kind == "residual"
        assert Counter(node.op for node in group.nodes)["get_attr"] == 1
        assert {"size", getattr} <= {node.target for node in group.nodes}
    assert_groups_stand_alone(gm, torch.randn(2, 4, 5, 5))


class Tapped(nn.Module):
    """Two outputs, the second tapped inside what would else be one region; a size read at the very end."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Scaled(), Scaled())
        self.aux = nn.Conv2d(4, 2, 1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        y = self.blocks[0](x)
        z = self.blocks[1](y)
        return {"out": self.head(z).reshape(x.shape[0], -1), "aux": self.aux(y)}


def test_neither_a_second_output_nor_a_size_hides_a_region():
    gm = capture(Tapped().eval()).root
    assert [(group.name, group.kind) for group in find_groups(gm)] == [
        ("blocks.0.conv", "residual"),
        ("blocks.1.conv", "residual"),
        ("head", "chain"),
        ("aux", "chain"),
    ]
    assert_each_call_is_in_one_group(gm)


def test_a_region_of_too_many_layers_gives_way_to_those_inside():
    gm = capture(nn.Sequential(*(Scaled() for _ in range(3))).eval()).root

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = gm

        def forward(self, x):
            return x + self.inner(x)

    around = fx.GraphModule(root := Around(), fx.Tracer().trace(root))
    assert [len(group.layers) for group in find_groups(around)] == [3]
    assert [len(group.layers) for group in find_groups(around, largest=2)] == [1, 1, 1]


def test_a_chain_of_too_many_layers_is_cut_after_its_pools_then_by_count():
    layers = [nn.Conv2d(3, 3, 1) for _ in range(7)]
    gm = capture(nn.Sequential(*layers[:3], nn.MaxPool2d(1), *layers[3:], nn.ReLU()).eval()).root
    assert [group.layers for group in find_groups(gm, largest=3)] == [("0", "1", "2"), ("4", "5", "6"), ("7",)]
    found = find_groups(gm, largest=4)
    assert [group.layers for group in found] == [("0", "1", "2"), ("4", "5", "6", "7")]
    assert found[0].exit is found[1].entry
    assert found[-1].exit is output_nodes(gm)[0]
    assert [len(group.layers) for group in find_groups(gm)] == [7]


# What each network is known to be made of: (kind, weighted layers in it) and how many.
KNOWN = {
    "resnet18": {("chain", 1): 2, ("residual", 2): 5, ("residual", 3): 3},
    "resnet50": {("chain", 1): 2, ("residual", 3): 12, ("residual", 4): 4},
    "densenet121": {("concat", 12): 1, ("chain", 2): 52, ("chain", 1): 5},
    "mobilenet_v2": {("residual", 3): 10, ("chain", 3): 4, ("chain", 5): 1, ("chain", 6): 1},
    "googlenet": {("concat", 6): 9, ("chain", 3): 1, ("chain", 1): 1},
    "vgg16": {("chain", 16): 1},
    "alexnet": {("chain", 8): 1},
    "shufflenet_v2_x1_0": {("concat", 3): 13, ("concat", 5): 3, ("chain", 1): 1, ("chain", 2): 1},
    "squeezenet1_1": {("concat", 2): 8, ("chain", 1): 8, ("chain", 2): 1},
    "convnext_tiny": {("residual", 3): 18, ("chain", 1): 5},
    "vit_b_16": {("residual", 1): 12, ("residual", 2): 12, ("chain", 1): 2},
}
OPTIONS = {"googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False}}


@pytest.mark.parametrize("name", KNOWN)
def test_known_networks_fall_into_known_groups(name):
    gm = torchvision_graph(name, **OPTIONS.get(name, {}))
    assert summary(gm) == KNOWN[name]
    assert_each_call_is_in_one_group(gm)


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [
        ("inception_v3", "concat", 11),
        ("mobilenet_v3_large", "residual", 10),
        ("efficientnet_b0", "residual", 9),
        ("swin_v2_t", "residual", 12),
    ],
)
def test_known_networks_hold_known_regions(name, kind, count):
    gm = torchvision_graph(name, **OPTIONS.get(name, {}))
    assert sum(group.kind == kind for group in find_groups(gm)) == count
    assert_each_call_is_in_one_group(gm)


def test_an_auxiliary_head_hides_no_block_of_deeplab():
    gm = torchvision_graph("deeplabv3_resnet50", weights_backbone=None, aux_loss=True)
    assert summary(gm) == {
        ("residual", 3): 12,
        ("residual", 4): 4,
        ("concat", 5): 1,
        ("chain", 1): 1,
        ("chain", 3): 1,
        ("chain", 2): 1,
    }
    assert_each_call_is_in_one_group(gm)


@pytest.mark.parametrize("name", ["squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v3_small"])
def test_groups_of_real_networks_stand_alone(name):
    assert_groups_stand_alone(torchvision_graph(name, device="cpu"), torch.rand(1, 3, 32, 32))


def test_resnet50_takes_a_twentieth_of_a_second():
    gm = torchvision_graph("resnet50")
    taken = []
    for _ in range(5):
        start = time.process_time()
        find_groups(gm)
        taken.append(time.process_time() - start)
    assert min(taken) < 0.05
