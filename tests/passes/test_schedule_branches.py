"""Branches in schedules: bodies, gates and sums in one native call, with the bits of torch's own multiply-adds."""

import pytest
import torch
from models import Residual
from schedules import by_nodes, programs
from torch import nn

import binarize
from binarize.kernels.schedule import why_not_compiled
from binarize.layers.branches import branch_groups
from binarize.passes.schedule import coverage
from binarize.times import layer_times

pytestmark = pytest.mark.skipif(why_not_compiled() is not None, reason="no kernels are compiled")

IMAGES = torch.randn(3, 3, 14, 14, generator=torch.Generator().manual_seed(1))
SCHEMES = ("k=3", "k=2,gates=branch", "k=3,gates=off,scales=mean", "k=2,unit=stage", "k=2,unit=network")


def branched(options="k=3"):
    torch.manual_seed(0)
    recipe = binarize.Recipe(f"group-net:{options}", ends="encoding:w=8,a=8", smallest=0)
    net = binarize.pack(binarize.convert(Residual().eval(), IMAGES, recipe=recipe))
    for _, group in branch_groups(net):
        if group.gate is not None:
            nn.init.uniform_(group.gate.theta, -1, 1)
        if group.scale is not None:
            nn.init.uniform_(group.scale, 0.5, 1.5)
    return net


@torch.no_grad()
def by_schedule(net):
    return net(IMAGES)


@pytest.mark.parametrize("options", SCHEMES)
def test_all_branches_run_in_one_native_call_and_give_the_same_bits(options, monkeypatch):
    net = branched(options)
    assert branch_groups(net)

    # gates and sums are the fused multiply-adds that torch makes of addcmul
    torch.testing.assert_close(by_schedule(net), by_nodes(net, IMAGES, monkeypatch=monkeypatch), rtol=0, atol=1e-6)
    found = coverage(net)
    assert (found.stretches, found.left) == (1, {})
    assert found.scheduled > sum(len(group.bodies) for _, group in branch_groups(net))


def test_every_layer_of_a_branch_has_its_time():
    net = branched()

    rows = layer_times(net, turns=2)

    assert {row.name for row in rows if ".bodies." in row.name}
    assert all(row.measured_us > 0 for row in rows)


def scale(group):
    group.scale.mul_(2.0)


def gate(group):
    group.gate.theta.add_(1.0)


def weights(group):
    next(m for m in group.bodies.modules() if hasattr(m, "bias")).bias.add_(0.5)


def code(group):
    body = group.bodies[0]
    with body.graph.inserting_before(body.graph.output_node()):
        last = body.graph.output_node().args[0]
        node = body.graph.call_function(torch.neg, (last,))
        body.graph.output_node().args = (node,)
    body.recompile()


@pytest.mark.parametrize("change", [scale, gate, weights, code])
@torch.no_grad()
def test_a_changed_branch_is_planned_anew(change, monkeypatch):
    net = branched()
    before = by_schedule(net)

    change(branch_groups(net)[-1][1])

    assert not torch.equal(by_schedule(net), before)
    torch.testing.assert_close(by_schedule(net), by_nodes(net, IMAGES, monkeypatch=monkeypatch), rtol=0, atol=1e-6)


def test_hooks_inside_a_branch_fire():
    net = branched()
    by_schedule(net)
    seen = []
    body = branch_groups(net)[0][1].bodies[1]
    handle = body.register_forward_hook(lambda *_: seen.append(1))

    by_schedule(net)
    handle.remove()
    by_schedule(net)

    assert seen == [1]


def test_branches_that_are_chosen_are_left_to_torch(monkeypatch):
    net = branched("k=2,stored=4")

    assert "it chooses branches" in coverage(net).left.values()
    torch.testing.assert_close(by_schedule(net), by_nodes(net, IMAGES, monkeypatch=monkeypatch), rtol=0, atol=1e-6)


def test_branches_that_hold_what_has_no_kernel_are_left_to_torch(monkeypatch):
    net = branched()
    code(branch_groups(net)[-1][1])

    reasons = coverage(net).left.values()

    assert any(reason.endswith("neg has no kernel") for reason in reasons)
    assert None not in programs(net)
    torch.testing.assert_close(by_schedule(net), by_nodes(net, IMAGES, monkeypatch=monkeypatch), rtol=0, atol=1e-6)
