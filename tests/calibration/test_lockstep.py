"""Lockstep: order, one pass each, and nothing left behind."""

import threading

import pytest
import torch
from torch import nn

from binarize.calibration.lockstep import Place, lockstep
from binarize.errors import ModelError


class Twice(nn.Module):
    """Calls ``a`` a second time for bright images, and ``late`` for them only."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.late = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.runs = 0

    def forward(self, x):
        self.runs += 1
        y = self.b(torch.relu(self.a(x)))
        return self.late(self.a(y)) if x.sum() > 0 else y


def run(net, teacher, batches, visit=lambda name, meetings: None):
    lockstep(net, teacher, {name: Place(name) for name in ("a", "b", "late")}, [(x,) for x in batches], visit)


def hooks(net):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


def test_layers_are_visited_once_in_order_with_the_batches_that_reach_them():
    net, teacher, seen = Twice(), Twice(), []

    run(
        net,
        teacher,
        [torch.ones(2, 3), -torch.ones(4, 3)],
        lambda name, m: seen.append((name, [len(x.input) for x in m])),
    )

    assert seen == [("a", [2, 4]), ("b", [2, 4]), ("late", [2])]
    assert (net.runs, teacher.runs) == (2, 2)


def test_a_visit_sees_the_networks_inputs_and_the_teachers_outputs_and_acts_on_what_follows():
    net, teacher, x = Twice(), Twice(), -torch.ones(2, 3)
    seen = {}

    def visit(name, meetings):
        seen[name] = meetings[0]
        nn.init.constant_(net.a.weight, 2.0)

    with torch.no_grad():
        run(net, teacher, [x], visit)

        torch.testing.assert_close(seen["a"].input, x)
        torch.testing.assert_close(seen["a"].target, teacher.a(x))
        torch.testing.assert_close(seen["b"].input, torch.relu(net.a(x)))
        torch.testing.assert_close(seen["b"].target, teacher.b(torch.relu(teacher.a(x))))


@pytest.mark.parametrize("place", ["network", "visit"])
def test_an_error_arrives_and_leaves_no_thread_and_no_hook(place):
    net, teacher, before = Twice(), Twice(), threading.active_count()
    if place == "network":
        net.b = nn.Linear(7, 7)

    def visit(name, meetings):
        if place == "visit":
            raise ValueError("stop")

    with pytest.raises(RuntimeError if place == "network" else ValueError, match=r"shapes|stop"):
        run(net, teacher, [torch.ones(2, 3)] * 3, visit)

    assert threading.active_count() == before
    assert hooks(net) == hooks(teacher) == 0


def test_networks_that_run_in_different_orders_are_refused():
    net, teacher = Twice(), Twice()
    net.a, net.b = net.b, net.a
    net.forward = lambda x: net.a(net.b(x))

    with pytest.raises(ModelError, match="calls 'b' where the original calls 'a'"):
        run(net, teacher, [torch.ones(2, 3)])
