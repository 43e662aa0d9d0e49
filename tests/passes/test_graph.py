import operator
from math import inf

import pytest
import torch
import torch.nn.functional as F
from models import Overwriting, Residual, Shared, TwoUsers, conv_norm_relu
from torch import fx, nn

from binarize.passes.graph import (
    add_module,
    bypass,
    call_after,
    call_again,
    call_before,
    call_of,
    calls,
    delete_if_unused,
    erase_dead,
    first_input,
    flowing,
    input_nodes,
    join,
    module_uses,
    output_nodes,
    put,
    single_user,
    swap,
    take_over,
    unique_name,
)
from binarize.passes.inplace import thread_inplace
from binarize.passes.operations import add_of, clamp_of, is_add, is_inplace, is_size


def names(gm):
    return [str(node.target) for node in gm.graph.nodes if node.op == "call_module"]


def node_of(function):
    """Trace a function and return the graph and its last node before the output."""
    gm = fx.symbolic_trace(function)
    return gm, output_nodes(gm)[0]


def test_calls_come_in_graph_order_once_per_call():
    gm = fx.symbolic_trace(Shared())
    assert [call.name for call in calls(gm, nn.Conv2d)] == ["stem", "conv", "conv", "head"]
    assert [call.name for call in calls(gm, (nn.Linear, nn.BatchNorm2d))] == []
    assert {path: len(nodes) for path, nodes in module_uses(gm).items()} == {"stem": 1, "conv": 2, "head": 1}


def test_call_of_tells_kinds_apart():
    gm = fx.symbolic_trace(conv_norm_relu())
    conv = calls(gm, nn.Conv2d)[0]
    assert call_of(gm, conv.node, nn.Conv2d) == conv
    assert call_of(gm, conv.node, nn.Linear) is None
    assert call_of(gm, conv.node.args[0], nn.Conv2d) is None
    assert call_of(gm, 3, nn.Conv2d) is None


def test_first_input_is_found_by_position_and_by_name():
    _, node = node_of(lambda x: F.relu(input=x))
    assert first_input(node).name == "x"
    _, node = node_of(lambda x: torch.add(2, x))
    assert first_input(node).name == "x"
    with pytest.raises(LookupError, match="reads no other node"):
        first_input(node.all_input_nodes[0])


def test_single_user_is_none_for_several():
    gm = fx.symbolic_trace(TwoUsers())
    conv = calls(gm, nn.Conv2d)[0]
    assert single_user(conv.node) is None
    assert single_user(input_nodes(gm)[0]) is conv.node


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: x + y,
        lambda x, y: operator.iadd(x, y),
        lambda x, y: torch.add(x, y),
        lambda x, y: torch.add(x, other=y),
        lambda x, y: x.add(y),
        lambda x, y: x.add_(y),
        lambda x, y: x.add(y, alpha=1),
        lambda x, y: torch.ops.aten.add.Tensor(x, y),
    ],
)
def test_an_addition_is_seen_in_every_spelling(function):
    gm, node = node_of(function)
    assert is_add(node)
    assert [term.name for term in add_of(node)] == [term.name for term in input_nodes(gm)]


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: x + 1,
        lambda x, y: x.add(y, alpha=2),
        lambda x, y: torch.mul(x, y),
        lambda x, y: x.sub(y),
        lambda x, y: torch.cat([x, y]),
    ],
)
def test_what_is_no_plain_addition_is_not_taken_for_one(function):
    assert not is_add(node_of(function)[1])


@pytest.mark.parametrize(
    ("function", "bounds"),
    [
        (nn.ReLU(), (0, inf)),
        (nn.ReLU6(), (0, 6)),
        (nn.Hardtanh(-2, 3), (-2, 3)),
        (lambda x: F.relu(x), (0, inf)),
        (lambda x: torch.relu(x), (0, inf)),
        (lambda x: F.relu(x, inplace=True), (0, inf)),
        (lambda x: F.relu_(x), (0, inf)),
        (lambda x: x.relu(), (0, inf)),
        (lambda x: x.relu_(), (0, inf)),
        (lambda x: F.relu6(x), (0, 6)),
        (lambda x: F.hardtanh(x), (-1, 1)),
        (lambda x: F.hardtanh(x, max_val=4.0), (-1, 4)),
        (lambda x: x.clamp(-1, 2), (-1, 2)),
        (lambda x: x.clamp_(max=2), (-inf, 2)),
        (lambda x: torch.clamp(x, min=0.5), (0.5, inf)),
        (lambda x: torch.clip(x, None, 3), (-inf, 3)),
        (lambda x: x.clamp_min(0), (0, inf)),
        (lambda x: torch.clamp_max(x, 6), (-inf, 6)),
        (lambda x: torch.ops.aten.hardtanh.default(x, 0.0, 6.0), (0, 6)),
        (lambda x: torch.ops.aten.relu.default(x), (0, inf)),
    ],
)
def test_a_clamp_is_seen_in_every_spelling_and_clamps_so(function, bounds):
    gm, node = node_of(nn.Sequential(function) if isinstance(function, nn.Module) else function)
    assert clamp_of(gm, node) == bounds
    x = torch.linspace(-9, 9, 37)
    assert torch.equal(gm(x.clone()), x.clamp(*bounds))


class OwnReLU(nn.ReLU):
    def forward(self, x):
        return x.abs()


@pytest.mark.parametrize("module", [nn.SiLU(), OwnReLU(), nn.LeakyReLU()])
def test_other_activations_are_no_clamps(module):
    root = nn.Sequential(module)
    graph = fx.Graph()
    graph.output(graph.call_module("0", (graph.placeholder("x"),)))
    gm = fx.GraphModule(root, graph)
    assert clamp_of(gm, output_nodes(gm)[0]) is None


def test_a_clamp_to_a_tensor_is_none():
    gm, node = node_of(lambda x, y: x.clamp(y, y))
    assert clamp_of(gm, node) is None


def test_sizes_are_no_data():
    gm = fx.symbolic_trace(Overwriting())
    sizes = [node for node in gm.graph.nodes if is_size(node)]
    assert [node.args[1] for node in sizes] == ["shape"]
    assert flowing(gm).isdisjoint(sizes)
    assert not any(node.target is operator.ifloordiv for node in flowing(gm))
    assert {"conv", "relu", "head", "x"} <= {node.name for node in flowing(gm)}


def test_swap_replaces_all_calls_and_hands_the_mode_on():
    gm = fx.symbolic_trace(Shared().eval())
    new = nn.Conv2d(8, 8, 1)
    swap(gm, calls(gm, nn.Conv2d)[1], new)
    assert [call.module for call in calls(gm, nn.Conv2d)][1:3] == [new, new]
    assert not new.training


def test_bypass_keeps_a_module_that_is_called_elsewhere():
    gm = fx.symbolic_trace(Shared())
    bypass(gm, calls(gm, nn.Conv2d)[1])
    assert names(gm) == ["stem", "conv", "head"]
    bypass(gm, calls(gm, nn.Conv2d)[1])
    assert not hasattr(gm, "conv")
    gm.graph.lint()


def test_a_new_name_is_free_and_a_nested_one_finds_its_parent():
    gm = fx.symbolic_trace(Residual())
    assert unique_name(gm, "fc") == "fc_1"
    assert unique_name(gm, "train") == "train_1"
    assert unique_name(gm, "block1.bn1") == "block1.bn1_1"
    assert add_module(gm, "block1.extra.deep", nn.ReLU()) == "block1.extra.deep"
    assert add_module(gm, "fc", nn.ReLU()) == "fc_1"
    assert isinstance(gm.get_submodule("block1.extra.deep"), nn.ReLU)


def test_put_reaches_into_lists_and_refuses_the_root():
    root = nn.Module()
    root.items = nn.ModuleList([nn.ReLU(), nn.ReLU()])
    put(root, "items.1", nn.SiLU())
    assert [type(item) for item in root.items] == [nn.ReLU, nn.SiLU]
    with pytest.raises(ValueError, match="empty path"):
        put(root, "", nn.ReLU())


def test_inserted_calls_are_read_by_whom_they_are_told_to():
    gm, x = fx.symbolic_trace(conv_norm_relu().eval()), torch.randn(1, 3, 8, 8)
    before = gm(x)
    norm = calls(gm, nn.BatchNorm2d)[0]
    made = call_after(gm, norm.node, "1", nn.Hardtanh(-1, 1))
    take_over(norm.node, made.node)
    gm.recompile()
    assert made.name == "1_1"
    assert not made.module.training
    torch.testing.assert_close(gm(x), before.clamp(0, 1), rtol=0, atol=0)

    first = calls(gm, nn.Conv2d)[0]
    scaled = call_before(gm, first.node, "before", nn.Identity(), (first.node.args[0],))
    again = call_again(gm, first.node, "before", (scaled.node,))
    first.node.replace_input_with(first.node.args[0], again)
    gm.recompile()
    assert names(gm)[:3] == ["before", "before", "0"]
    gm.graph.lint()


def test_dead_code_goes_with_its_modules_but_never_what_is_read_or_overwritten():
    class Wasteful(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.relu = nn.ReLU(inplace=True)
            self.tied = nn.Linear(4, 4)

        def forward(self, x):
            x = self.used(x)
            self.unused(x).mean()
            self.tied(x)
            self.relu(x)
            x.add_(1)
            return F.linear(x, self.tied.weight)

    gm, x = fx.symbolic_trace(Wasteful()), torch.randn(1, 3, 4, 4)
    before = gm(x)
    erase_dead(gm)
    gm.recompile()
    assert names(gm) == ["used", "relu"]
    assert {name.split(".")[0] for name, _ in gm.named_parameters()} == {"used", "tied"}
    assert torch.equal(gm(x), before)


def test_delete_if_unused_spares_what_a_parameter_is_read_from():
    gm = fx.symbolic_trace(Residual())
    delete_if_unused(gm, "fc")
    delete_if_unused(gm, "block1")
    delete_if_unused(gm, "nothing.here")
    assert hasattr(gm, "fc")
    assert hasattr(gm, "block1")


def test_overwriting_becomes_visible_so_that_the_operation_need_not_overwrite():
    model, x = Overwriting().eval(), torch.randn(1, 3, 8, 8)
    gm = fx.symbolic_trace(model)
    assert [node.name for node in gm.graph.nodes if is_inplace(gm, node)] == ["relu"]

    assert thread_inplace(gm) == 1
    swap(gm, calls(gm, nn.ReLU)[0], nn.ReLU())
    gm.recompile()

    assert torch.equal(gm(x), model(x))
    assert thread_inplace(gm) == 0


def test_paths_join_at_the_root_and_below():
    assert [join("", "a.b"), join("a", "b"), join("a", "")] == ["a.b", "a.b", "a"]
