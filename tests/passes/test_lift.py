"""Exported programs become graphs of layers that compute the same."""

import operator

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from binarize.passes.lift import lift


class Small(nn.Module):
    """One of each trouble: a shared layer, no bias, groups, 'same' padding, dilation, in-place writes, dropout."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding="same", bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.shared = nn.Conv2d(8, 8, 3, stride=1, padding=2, dilation=2, groups=4)
        self.mirror = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.drop = nn.Dropout(0.25)
        self.head = nn.Linear(8, 5)
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        x = F.relu_(self.norm(self.stem(x)))
        y = self.shared(self.shared(x))
        y += x
        y = F.max_pool2d(F.relu6(y), 2)
        y = torch.cat([self.mirror(y), y.mul(2)], 1).mean((2, 3))
        return self.head(self.drop(y[:, :8] - y[:, 8:]))


def exported(model, *shape, batch=2):
    example = torch.randn(batch, *shape)
    program = torch.export.export(model.eval(), (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    return lift(program)


def layers(model, kinds=(nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.LayerNorm)):
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def targets(graph_module, op="call_function"):
    return [node.target for node in graph_module.graph.nodes if node.op == op]


def assert_same_network(model, lifted):
    ours = layers(lifted)
    for name, module in layers(model).items():
        assert str(ours[name]) == str(module), name
    state = lifted.state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(state[key], value), key


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_a_torchvision_network_is_the_same_at_another_batch_size(name):
    model = torchvision.models.get_model(name, weights=None)
    lifted = exported(model, 3, 64, 64)
    x = torch.randn(3, 3, 64, 64)

    with torch.inference_mode():
        assert torch.equal(lifted(x), model(x))  # the same operators in the same order
    assert_same_network(model, lifted)
    assert not [target for target in targets(lifted) if isinstance(target, torch._ops.OpOverload)]


def test_a_small_network_of_troubles_is_the_same_at_another_batch_size():
    model = Small()
    lifted = exported(model, 3, 10, 12)
    x = torch.randn(5, 3, 10, 12)

    with torch.inference_mode():
        torch.testing.assert_close(lifted(x), model(x), rtol=0, atol=0)
    assert targets(lifted, "call_module").count("shared") == 2
    assert isinstance(lifted.get_submodule("drop"), nn.Dropout)
    assert F.relu in targets(lifted)
    assert operator.add in targets(lifted)
    assert lifted.mirror.padding == (0, 0)  # the reflection became an operator of its own
    del model.mirror, lifted.mirror
    assert_same_network(model, lifted)


def test_a_lifted_network_trains():
    lifted = exported(Small(), 3, 10, 12).train()
    before = lifted.norm.running_mean.clone()
    lifted(torch.randn(4, 3, 10, 12)).sum().backward()
    assert all(parameter.grad is not None for parameter in lifted.parameters())
    assert not torch.equal(lifted.norm.running_mean, before)


def test_a_weight_that_is_computed_stays_an_operator():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)

    model = nn.Sequential(Standardised(3, 4, 3), nn.Conv2d(4, 2, 1))
    lifted = exported(model, 3, 8, 8)
    x = torch.randn(3, 3, 8, 8)

    assert list(layers(lifted)) == ["1"]
    assert torch.ops.aten.conv2d.default in targets(lifted)
    assert torch.equal(lifted(x), model(x))
    assert set(lifted.state_dict()) == set(model.state_dict())


def test_a_weight_that_unlike_calls_share_becomes_a_layer_once():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return F.conv2d(self.inner(x), self.inner.weight, None, padding=1)

    model = Shared()
    lifted = exported(model, 3, 8, 8)
    x = torch.randn(3, 3, 8, 8)

    assert torch.equal(lifted(x), model(x))
    assert targets(lifted, "call_module") == ["inner"]
    assert lifted.inner.weight is next(iter(lifted.parameters()))


def test_an_in_place_write_that_others_see_stays_in_place():
    class Aliased(nn.Module):
        def forward(self, x):
            y = x * 2
            view = y.view(-1)
            F.relu_(y)
            return view.sum() + y

    model = Aliased()
    lifted = lift(torch.export.export(model, (torch.randn(2, 3),)))
    x = torch.randn(2, 3)
    assert torch.equal(lifted(x), model(x))
    assert torch.ops.aten.relu_.default in targets(lifted)


def test_inputs_and_outputs_keep_their_structure():
    class Tree(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x, *, scale):
            return {"out": self.layer(x), "parts": (x * scale["a"], [x + 1])}

    model = Tree()
    scale = {"a": torch.tensor(2.0)}
    lifted = lift(torch.export.export(model, (torch.randn(4, 3),), {"scale": scale}))
    x = torch.randn(4, 3)
    ours, theirs = lifted(x, scale=scale), model(x, scale=scale)
    assert torch.equal(ours["out"], theirs["out"])
    assert torch.equal(ours["parts"][1][0], theirs["parts"][1][0])


def test_a_dict_of_outputs_needs_no_tree_code():
    class Two(nn.Module):
        def forward(self, x):
            return {"out": x + 1, "aux": x - 1}

    lifted = lift(torch.export.export(Two(), (torch.randn(2, 3),)))
    x = torch.randn(2, 3)
    assert lifted(x).keys() == {"out", "aux"}
    assert type(lifted.graph._codegen) is torch.fx.graph.CodeGen


def test_attention_shows_its_projections():
    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            y = self.norm(x)
            return self.attention(y, y, y, need_weights=False)[0]

    model = Attend().train()  # eval mode takes torch's fused path
    lifted = lift(torch.export.export(model, (torch.randn(2, 5, 8),)))
    x = torch.randn(2, 5, 8)
    assert set(layers(lifted)) == {"norm", "attention.in_proj", "attention.out_proj"}
    torch.testing.assert_close(lifted(x), model(x))
