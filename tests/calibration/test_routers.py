"""Routers start so that all branches are used and images that look alike use the same ones."""

import copy

import pytest
import torch
from models import Residual
from torch import nn

from binarize.calibrate import calibrate
from binarize.calibration.routers import _replace_statistics, split_branches, start_router
from binarize.layers.binary import BinaryActivation
from binarize.layers.branches import Router, branch_groups, routed_groups, sharing
from binarize.passes.capture import capture
from binarize.passes.decompose_groups import DecomposeGroups
from binarize.schemes.presets import build_scheme


def started(features, stored, executed):
    router = Router(features.shape[1], stored, executed).eval()
    start_router(router, features)
    return router


@pytest.mark.parametrize(("stored", "executed"), [(8, 4), (4, 1), (3, 2), (2, 2), (7, 3)])
def test_each_image_gets_every_branch_once_in_one_of_its_copies_which_are_used_alike(stored, executed):
    features = torch.randn(2000, 24) * torch.linspace(0.1, 3, 24)
    router = started(features[:1000], stored, executed)
    chosen = router(features[1000:]) > 0

    assert torch.equal(chosen.sum(1), torch.full((1000,), executed))
    for role in range(executed):
        copies = chosen[:, role::executed].float()
        assert torch.equal(copies.sum(1), torch.ones(1000))
        share = copies.mean(0) * copies.shape[1]
        assert share.min() > 0.75  # 1 for even use; 1,000 draws of a share of 1/4 scatter by 5 hundredths
        assert share.max() < (1.25 if stored % executed == 0 else 1.5)  # the images of the last set choose again


def test_images_that_look_alike_choose_the_same_branches():
    kinds = torch.randn(4, 16) * 4
    features = kinds.repeat(50, 1) + 0.05 * torch.randn(200, 16)
    chosen = started(features, 4, 1)(features) > 0

    for kind in range(4):
        assert len(chosen[kind::4].unique(dim=0)) == 1
    assert len(chosen[:4].unique(dim=0)) == 4


@pytest.mark.parametrize("features", [torch.ones(6, 9), torch.randn(1, 9), torch.zeros(3, 9), torch.randn(40, 2)])
def test_few_or_equal_images_give_a_router_that_works(features):
    shares = started(features, 4, 2)(features)

    assert bool(shares.isfinite().all())
    torch.testing.assert_close(shares.sum(1), torch.ones(len(features)))


def test_the_shares_are_equal():
    features = torch.randn(500, 16)
    shares = started(features, 8, 4)(features)

    torch.testing.assert_close(shares[shares > 0], torch.full((2000,), 0.25))


def routed(scheme):
    torch.manual_seed(0)
    teacher = Residual().eval()
    captured = capture(Residual().eval())
    captured.root.load_state_dict(teacher.state_dict())
    names = [f"block{k}.conv{i}" for k in (1, 2) for i in (1, 2)]
    DecomposeGroups({name: build_scheme(scheme) for name in names})(captured.root)
    return captured.root.eval(), teacher


@torch.no_grad()
def test_calibration_starts_the_routers_of_all_groups():
    net, teacher = routed("group-net:k=1,stored=2")
    x = torch.randn(64, 3, 8, 8)
    x[::2] += 3
    calibrate(net, teacher, [(part,) for part in x.split(16)])
    seen = {}
    for path, group in branch_groups(net):
        group.register_forward_pre_hook(lambda module, args, path=path: seen.update({path: args[0]}))
    net(x)

    for path, group in branch_groups(net):
        chosen = group.router(seen[path])[:, 0] > 0
        assert bool(chosen[0]) != bool(chosen[1])
        assert chosen[::2].unique().numel() == chosen[1::2].unique().numel() == 1  # bright ones, dark ones


@torch.no_grad()
def test_starting_leaves_no_hooks_and_sparse_execution_agrees():
    net, teacher = routed("group-net:k=2,stored=4")
    x = torch.randn(32, 3, 8, 8)
    calibrate(net, teacher, [(part,) for part in x.split(16)])

    assert all(not group._forward_pre_hooks for _, group in branch_groups(net))
    wanted = net(x)
    for _, group in branch_groups(net):
        group.sparse = True
    torch.testing.assert_close(net(x), wanted, rtol=1e-5, atol=1e-5)


def test_images_stay_in_the_set_of_the_group_before_where_they_can():
    torch.manual_seed(0)
    kinds = torch.arange(300) % 3
    first, second = (torch.randn(3, 16)[kinds] * 4 + 0.05 * torch.randn(300, 16) for _ in range(2))
    before = start_router(Router(16, 6, 2), first)
    router = Router(16, 6, 2).eval()
    chosen = start_router(router, second, before)

    assert len(before.unique()) == 3
    assert torch.equal(chosen, before)
    assert torch.equal((router(second) > 0)[:, ::2].float().argmax(1), chosen)


def test_groups_may_differ_in_the_number_of_their_sets():
    torch.manual_seed(0)
    teacher = Residual().eval()
    captured = capture(copy.deepcopy(teacher))
    schemes = {1: "group-net:k=1,stored=4", 2: "group-net:k=1,stored=2"}
    names = {f"block{k}.conv{i}": build_scheme(schemes[k]) for k in (1, 2) for i in (1, 2)}
    DecomposeGroups(names)(captured.root)
    net = captured.root.eval()
    calibrate(net, teacher, [(part,) for part in torch.randn(64, 3, 8, 8).split(16)])

    used = {}
    for path, group in branch_groups(net):
        group.router.register_forward_hook(lambda module, args, y, path=path: used.update({path: (y > 0).any(0)}))
    with torch.no_grad():
        net(torch.randn(64, 3, 8, 8))
    assert [len(chosen) for chosen in used.values()] == [4, 2]
    assert all(bool(chosen.all()) for chosen in used.values())


@pytest.mark.parametrize(("stored", "executed"), [(3, 2), (8, 4)])
def test_a_choice_is_the_same_where_torch_computes_in_bfloat16(stored, executed):
    features = torch.randn(400, 24) * torch.linspace(0.1, 3, 24)
    router = started(features, stored, executed)
    wanted = router(features)
    with torch.autocast("cpu", torch.bfloat16):
        found = router(features)

    assert torch.equal(found, wanted)


@torch.no_grad()
def test_conversion_makes_what_as_many_branches_make_that_all_run():
    x = torch.randn(64, 3, 8, 8)
    batches = [(part,) for part in x.split(16)]
    (routed_net, teacher), (static, _) = routed("group-net:k=2,stored=4,gates=off"), routed("group-net:k=2,gates=off")
    records = [calibrate(net, teacher, batches) for net in (routed_net, static)]

    # the same branches, and products of the images of one set at a time, in another order
    torch.testing.assert_close(routed_net(x), static(x), rtol=1e-4, atol=1e-4)
    assert not records[0].skipped
    assert len(records[0].layers) == 2 * len(records[1].layers)
    assert records[1].scales
    for path, scales in records[1].scales.items():
        assert records[0].scales[path] == pytest.approx(scales * 2, rel=1e-4)
    assert all(activation.fitted for activation in routed_net.modules() if isinstance(activation, BinaryActivation))


@torch.no_grad()
def test_normalisation_of_copies_holds_the_statistics_of_their_images_and_computes_the_same():
    net, teacher = routed("group-net:k=2,stored=4")
    x = torch.randn(64, 3, 8, 8)
    x[::2] += 0.5
    batches = [(part,) for part in x.split(16)]
    calibrate(net, teacher, batches)
    for group in routed_groups(net):
        for k, body in enumerate(group.bodies):
            for layer in normalisation(body):
                layer.running_mean.add_(0.25 * k)
                layer.bias.add_(0.1 * k)
    wanted = net(x)
    with sharing(net):
        shared = net(x)
    groups = routed_groups(net)
    pairs = [pair for g in groups for k, b in enumerate(g.bodies) for pair in norms_of(b, g.bodies[k % 2])]
    before = {mine: theirs.running_var.double() for mine, theirs in pairs}

    split_branches(net, batches)
    for group in routed_groups(net):
        group.sparse = True
    seen = {}
    for group in routed_groups(net):
        for body in group.bodies:
            for layer in normalisation(body):
                layer.register_forward_pre_hook(lambda layer, args: seen.update({layer: args[0].double()}))
    found = net(x)

    assert not torch.allclose(wanted, shared, atol=1e-2)
    # a value of normalisation is rounded twice more; some sign among 10,000 may turn over
    torch.testing.assert_close(found, shared, rtol=1e-3, atol=1e-3)
    assert len(seen) == sum(len(normalisation(body)) for group in routed_groups(net) for body in group.bodies)
    moved = []
    for layer, values in seen.items():
        variance, mean = torch.var_mean(values, (0, 2, 3), correction=0)
        varies = variance > 0.02 * before[layer]
        moved.append(varies)
        torch.testing.assert_close(layer.running_mean.double()[varies], mean[varies], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(layer.running_var.double()[varies], variance[varies], rtol=1e-3, atol=1e-4)
    assert torch.cat(moved).float().mean() >= 0.5


@torch.no_grad()
def test_a_channel_that_hardly_varies_over_its_images_keeps_its_statistics():
    layer = nn.BatchNorm2d(2)
    layer.running_var.fill_(2.0)
    _replace_statistics(layer, torch.tensor([1.0, 1.0]).double(), torch.tensor([0.5, 0.001]).double())

    assert layer.running_mean.tolist() == [1.0, 0.0]
    assert layer.running_var.tolist() == [0.5, 2.0]
    assert float(layer.weight[0]) == pytest.approx((0.5 / 2.0) ** 0.5, rel=1e-4)
    assert (float(layer.weight[1]), float(layer.bias[1])) == (1.0, 0.0)


def norms_of(body, other):
    return zip(normalisation(body), normalisation(other), strict=True)


def normalisation(body):
    return [module for module in body.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize(("stored", "executed"), [(8, 4), (7, 3), (5, 1), (3, 3)])
@pytest.mark.parametrize("training", [False, True])
def test_one_copy_of_each_branch_is_chosen_however_much_others_are_wanted(stored, executed, training):
    router = Router(6, stored, executed).train(training)
    router.temperature.fill_(5.0)
    with torch.no_grad():
        router.choose.bias.copy_(torch.arange(stored) % executed * 3.0)
    features = torch.randn(300, 6)
    shares = router(features)

    chosen = shares > 0
    assert torch.equal(chosen.sum(1), torch.full((300,), executed))
    assert all(torch.equal(chosen[:, k::executed].sum(1), torch.ones(300, dtype=torch.int64)) for k in range(executed))
    torch.testing.assert_close(shares.sum(1), torch.ones(300))
    if not training:
        best = [router.logits(features)[:, k::executed].argmax(1) * executed + k for k in range(executed)]
        assert bool(chosen.gather(1, torch.stack(best, 1)).all())
