"""Branches in packed form: the same sums as in training form, and only what was chosen runs."""

import copy

import group_nets
import pytest
import torch
from group_nets import FORMS, IMAGES

from binarize.kernels.dispatch import LEVELS
from binarize.layers.branches import branch_groups
from binarize.layers.packed import PackedLayer
from binarize.passes.pack import pack

RUNNING = [level.name for level in LEVELS if level.missing is None and "planes" in level.forms]


def close(got, wanted):
    """Packing rounds float sums in another order: one part in 10^5 of the largest output bounds ten layers of it."""
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("scheme", ["encoding:w=3,a=2", "xnor-net"])
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_the_packed_form_is_the_training_form(form, scheme):
    net = group_nets.net(scheme=scheme, **FORMS[form])
    packed = pack(net)

    close(packed(IMAGES), net(IMAGES))
    close(packed(IMAGES[:1]), net(IMAGES[:1]))
    assert sum(isinstance(module, PackedLayer) for module in packed.modules()) == 5 * len(net.first.bodies)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in packed.modules())


@pytest.mark.parametrize("level", RUNNING)
@torch.no_grad()
def test_running_the_chosen_gives_the_bits_of_the_masked_dense_computation_at_every_level(level, monkeypatch):
    monkeypatch.setenv("BINARIZE_KERNEL", level)
    sparse = pack(group_nets.net(5, gates=1, executed=2))
    dense = copy.deepcopy(sparse)
    for _, group in branch_groups(dense):
        group.sparse = False
    images = torch.cat([IMAGES, -IMAGES.flip(2)])

    for batch in (images, images[:1], images[2:5]):
        assert torch.equal(sparse(batch), dense(batch))


@pytest.mark.parametrize("batch", [1, 4])
@torch.no_grad()
def test_each_branch_runs_for_the_images_that_chose_it_and_no_others(batch):
    packed = pack(group_nets.net(4, executed=2, gates=1))
    seen = {}
    for name, group in branch_groups(packed):
        for k, body in enumerate(group.bodies):
            body.register_forward_hook(lambda m, args, y, key=(name, k): seen.setdefault(key, []).append(len(y)))
    packed(IMAGES[:batch])

    assert all(len(calls) == 1 for calls in seen.values())
    for name in ("first", "second"):
        assert sum(calls[0] for key, calls in seen.items() if key[0] == name) == 2 * batch


@pytest.mark.parametrize("form", ["gated", "routed and gated"])
@torch.no_grad()
def test_a_packed_network_is_copied_moved_compiled_and_given_its_state(form):
    packed = pack(group_nets.net(**FORMS[form]))
    wanted = packed(IMAGES)
    other = pack(group_nets.net(**FORMS[form], seed=1))
    assert not torch.equal(other(IMAGES), wanted)
    other.load_state_dict(packed.state_dict())

    assert torch.equal(copy.deepcopy(packed)(IMAGES), wanted)
    assert torch.equal(packed.to("cpu").float()(IMAGES), wanted)


@pytest.mark.parametrize("form", ["static", "routed and gated"])
@torch.no_grad()
def test_a_compiled_network_gives_the_same(form, monkeypatch):
    monkeypatch.setenv("BINARIZE_SCHEDULE", "off")  # torch.compile sees torch's operations, which sum in another order
    packed = pack(group_nets.net(**FORMS[form]))
    compiled = torch.compile(packed, backend="eager")

    for batch in (IMAGES, IMAGES[:2], IMAGES[1:2]):
        assert torch.equal(compiled(batch), packed(batch))
