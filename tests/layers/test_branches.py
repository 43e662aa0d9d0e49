"""Branches against the equations of the paper, branch by branch in plain torch."""

import copy

import pytest
import torch
from torch import fx, nn

from binarize.layers.branches import Branches, Gate, Router


def body(seed, channels=6, outputs=6):
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())
    layers[1].running_mean.normal_()
    return fx.symbolic_trace(layers).eval()


def group(count, **options):
    made = Branches([body(k) for k in range(count)], {"0": "conv"}, **options).eval()
    if made.scale is not None:
        made.scale.data.uniform_(0.5, 1.5)
    return made


@pytest.mark.parametrize("theta", [-3.0, 0.0, 2.5])
def test_one_branch_of_scale_one_is_the_block_itself_whatever_the_gate(theta):
    """Check 7 of docs/methods.md: with K = 1 the branch's own output is the aggregate, and the gate mixes equals."""
    made = Branches([body(0)], {"0": "conv"}, gate=Gate())
    made.gate.theta.data.fill_(theta)
    x = torch.randn(2, 6, 5, 5)

    # g x + (1 - g) x rounds twice; the convolution adds 54 products of weights below 0.14 and sizes below 5
    torch.testing.assert_close(made.eval()(x, x), body(0)(x), rtol=0, atol=54 * 0.14 * 5 * 2.0**-22)


def test_the_order_of_the_branches_does_not_matter():
    """Check 7 of docs/methods.md."""
    made = group(4, gate=Gate(4))
    made.gate.theta.data.normal_()
    x, own = torch.randn(2, 6, 5, 5), [torch.randn(2, 6, 5, 5) for _ in range(4)]
    order = [2, 0, 3, 1]
    turned = Branches([made.bodies[k] for k in order], {"0": "conv"}, gate=Gate(4)).eval()
    turned.gate.theta.data = made.gate.theta.data[order]
    turned.scale.data = made.scale.data[order]

    # four float32 additions in another order: at most 3 roundings of a sum below 4 x 8
    torch.testing.assert_close(turned(x, *[own[k] for k in order]), made(x, *own), rtol=0, atol=3 * 32 * 2.0**-24)


@pytest.mark.parametrize("gates", [1, 3])
def test_gates_sums_and_scales_are_those_of_the_equations(gates):
    made = group(3, gate=Gate(gates), hands_on=True)
    made.gate.theta.data.normal_()
    x, own = torch.randn(2, 6, 5, 5), [torch.randn(2, 6, 5, 5) for _ in range(3)]
    total, *values = made(x, *own)

    for k in range(3):
        g = made.gate.theta[k % gates].sigmoid()
        # one rounding more or less of inputs below 5; the convolution adds 54 of them times weights below 0.14
        wanted = made.bodies[k](g * own[k] + (1 - g) * x)
        torch.testing.assert_close(values[k], wanted, rtol=0, atol=54 * 0.14 * 5 * 2.0**-22)
    wanted = sum(made.scale[k] / 3 * values[k] for k in range(3))
    torch.testing.assert_close(total, wanted, rtol=1e-5, atol=1e-5)  # three products and sums of size below 10


def test_what_a_branch_hands_on_is_not_the_sum():
    """Check 7 of docs/methods.md: in the published code the first branch's output becomes the sum, by aliasing."""
    made = group(3, scaled=False, hands_on=True)
    x = torch.randn(2, 6, 5, 5)
    total, *values = made(x)

    assert torch.equal(values[0], made.bodies[0](x))
    assert total.data_ptr() not in [value.data_ptr() for value in values]
    torch.testing.assert_close(total, torch.stack(values).mean(0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("images", [1, 7])
@pytest.mark.parametrize("executed", [1, 2, 4])
@pytest.mark.parametrize("hands_on", [False, True])
def test_running_the_chosen_branches_only_equals_the_masked_dense_computation(images, executed, hands_on):
    """Check 9 of docs/methods.md: image by image, in evaluation mode."""
    torch.manual_seed(0)
    made = group(4, gate=Gate(), router=Router(6, 4, executed), hands_on=hands_on)
    sparse = copy.deepcopy(made)
    sparse.sparse = True
    ran = []
    for k, inner in enumerate(sparse.bodies):
        inner.register_forward_hook(lambda module, args, y, k=k: ran.append((k, len(y))))
    x, own = torch.randn(images, 6, 5, 5) * 3, [torch.randn(images, 6, 5, 5) for _ in range(4)]
    wanted, got = made(x, *own), sparse(x, *own)

    for a, b in zip(wanted if hands_on else [wanted], got if hands_on else [got], strict=True):
        b = torch.stack(b) if isinstance(b, list) else b
        # a convolution of fewer images may add its 54 products in another order
        torch.testing.assert_close(b, a, rtol=1e-5, atol=54 * 2.0**-22 * float(a.detach().abs().max()))
    assert sum(count for _, count in ran) == executed * images
    assert len(ran) == len({k for k, _ in ran})


@pytest.mark.parametrize("training", [False, True])
def test_a_branch_hands_on_what_the_copy_of_it_that_ran_gave(training):
    torch.manual_seed(0)
    made = group(5, router=Router(6, 5, 2), hands_on=True)
    x = torch.randn(6, 6, 4, 4) * 5
    made.router.train(training)
    made.router.temperature.zero_()
    made.router.choose.weight.data.mul_(20)
    made.router.choose.bias.data.zero_()
    made.training = training
    _, *values = made(x)
    chosen = made.router(x) > 0

    assert len(chosen.unique(dim=0)) > 2
    for image in range(6):
        for k in range(5):
            (copy,) = [i for i in range(k % 2, 5, 2) if chosen[image, i]]
            wanted = made.bodies[copy](x[image : image + 1])[0]
            # a convolution of fewer images may add its 54 products, below 30 each, in another order
            torch.testing.assert_close(values[k][image], wanted, rtol=1e-5, atol=54 * 30 * 2.0**-22)


def test_shares_of_the_chosen_branches_add_up_to_one_and_carry_gradients():
    router = Router(8, 6, 2).eval()
    shares = router(torch.randn(5, 8, 3, 3))

    assert torch.equal((shares > 0).sum(1), torch.full((5,), 2))
    torch.testing.assert_close(shares.sum(1), torch.ones(5))
    (shares[:, 0].sum() + (shares**2).sum()).backward()
    assert router.choose.weight.grad.abs().sum() > 0


def test_training_adds_noise_and_measures_the_balance():
    torch.manual_seed(0)
    router = Router(8, 4, 2).train()
    x = torch.randn(64, 8, 3, 3)
    one, two = router(x) > 0, router(x) > 0

    assert not torch.equal(one, two)
    assert router.balance.item() == pytest.approx(1.0, abs=0.2)
    router.choose.bias.data = torch.tensor([50.0, 50.0, 0.0, 0.0])
    router(x)
    assert router.balance.item() == pytest.approx(2.0, abs=0.05)  # two of four used: N * (1/2 * 1/2 + 1/2 * 1/2)
    router.balance.backward()


@pytest.mark.parametrize("gates", [0, 1, 4])
@pytest.mark.parametrize("hands_on", [False, True])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_training_runs_the_chosen_branches_only_with_the_gradients_of_the_dense_computation(gates, hands_on, order):
    torch.manual_seed(0)
    gate = Gate(gates) if gates else None
    dense = group(4, gate=gate, router=Router(6, 4, 2), hands_on=hands_on)
    chosen = copy.deepcopy(dense).train()
    chosen.bodies.eval()  # normalisation by the same statistics as in evaluation
    chosen.router.temperature.zero_()
    ran = []
    for k, inner in enumerate(chosen.bodies):
        inner.register_forward_hook(lambda module, args, y, k=k: ran.append((k, len(y))))
    x, own = torch.randn(9, 6, 5, 5) * 3, [torch.randn(9, 6, 5, 5) for _ in range(4)]

    def gradients(made):
        given = [value.to(memory_format=order, copy=True).requires_grad_() for value in (x, *(own if gates else []))]
        found = made(*given)
        weights = torch.Generator().manual_seed(1)
        outputs = found if hands_on else [found]
        sum((torch.randn(y.shape, generator=weights) * y).sum() for y in outputs).backward()
        leaves = {**dict(made.named_parameters()), **{str(at): value for at, value in enumerate(given)}}
        return outputs, {name: value.grad for name, value in leaves.items()}

    wanted, wanted_grads = gradients(dense)
    got, got_grads = gradients(chosen)
    assert sum(count for _, count in ran) == 2 * 9
    for a, b in zip(wanted, got, strict=True):
        # a convolution of fewer images may add its 54 products in another order
        torch.testing.assert_close(b, a, rtol=1e-5, atol=54 * 2.0**-22 * float(a.detach().abs().max()))
    for name, grad in wanted_grads.items():
        # sums over at most 9 x 25 x 54 products, in another order
        atol = 1e-5 * float(grad.abs().max())
        torch.testing.assert_close(got_grads[name], grad, rtol=1e-4, atol=atol, msg=lambda text, name=name: name + text)


def test_no_image_is_no_trouble_in_training():
    made = group(3, gate=Gate(), router=Router(6, 3, 1), hands_on=True).train()
    made.bodies.eval()
    outputs = made(torch.zeros(0, 6, 5, 5), *[torch.zeros(0, 6, 5, 5)] * 3)

    assert all(y.shape == (0, 6, 5, 5) for y in outputs)


def norms_of(made):
    return [next(m for m in inner.modules() if isinstance(m, nn.BatchNorm2d)) for inner in made.bodies]


def test_routed_branches_learn_the_statistics_of_the_images_that_they_run_for():
    torch.manual_seed(3)
    made = group(3, router=Router(6, 3, 1)).train()
    made.router.temperature.zero_()
    made.router.choose.weight.data.zero_()
    made.router.choose.bias.data = torch.tensor([-1.0, 0.0, -1.0])
    made.router.choose.weight.data[0] = 1e3 * torch.ones(8)  # branch 0 where any hidden feature is above 0
    made.router.squeeze.weight.data.fill_(1.0)
    made.router.squeeze.bias.data.zero_()
    x = torch.cat([torch.rand(3, 6, 5, 5), -torch.rand(1, 6, 5, 5)])
    before = [norm.running_mean.clone() for norm in norms_of(made)]
    made(x)

    first, second, third = norms_of(made)
    seen = made.bodies[0].get_submodule("0")(x[:3]).mean((0, 2, 3))
    torch.testing.assert_close(first.running_mean, 0.9 * before[0] + 0.1 * seen, rtol=1e-5, atol=1e-6)
    assert torch.equal(second.running_mean, before[1])  # one image has no statistics of its own
    assert torch.equal(third.running_mean, before[2])
    assert all(norm.training for norm in (first, second, third))


def test_a_branch_that_no_image_chose_learns_nothing_and_hands_on_what_another_gave():
    torch.manual_seed(0)
    made = group(3, router=Router(6, 3, 1), hands_on=True).train()
    made.router.choose.bias.data = torch.tensor([50.0, 0.0, 0.0])
    total, *values = made(torch.randn(4, 6, 5, 5))
    (total.sum() + values[1].square().sum()).backward()

    torch.testing.assert_close(made.scale[0] * values[1], total)
    assert all(p.grad is None for p in made.bodies[1].parameters())
    assert all(p.grad is not None for p in made.bodies[0].parameters())
