"""Functions with estimators work through large tensors in portions: values and gradients are those of one portion."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import binarize
from binarize.layers.binary import BinaryActivation
from binarize.schemes import estimators
from binarize.schemes.base import Levels
from binarize.schemes.encoding import EncodingActivation, EncodingWeight
from binarize.schemes.estimators import STES
from binarize.schemes.piecewise import PiecewiseActivation, PiecewiseWeight
from binarize.schemes.residual import ResidualWeight
from binarize.schemes.shifted import ShiftedWeight
from binarize.schemes.sign import SignActivation, SignWeight

WEIGHTS = [SignWeight(), EncodingWeight(3), ResidualWeight(2), ResidualWeight(5), PiecewiseWeight(4), ShiftedWeight(3)]
ACTIVATIONS = [EncodingActivation(2), SignActivation("channel"), *(PiecewiseActivation(3, ste=ste) for ste in STES)]
LARGER = 1 << 40
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
SEEDS = st.integers(0, 2**31)


def run(portion, forward, *inputs):
    """Return the value of ``forward`` and the gradients of the inputs, in portions of so many elements."""
    inputs = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimators, "PORTION", portion)
        value = forward(*inputs)
        weights = torch.arange(1.0, value.numel() + 1, dtype=value.dtype).sin().reshape(value.shape)
        (value * weights).sum().backward()
    return value.detach(), [x.grad for x in inputs]


def check(portion, forward, *inputs):
    value, grads = run(portion, forward, *inputs)
    whole, whole_grads = run(LARGER, forward, *inputs)
    assert torch.equal(value, whole)
    for grad, other in zip(grads, whole_grads, strict=True):
        # sums of at most 324 float64 products of size 10, in another order
        torch.testing.assert_close(grad, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("basis", WEIGHTS, ids=repr)
@settings(deadline=None, max_examples=15)
@given(shape=SHAPES, seed=SEEDS, portion=st.integers(1, 60))
def test_a_weight(basis, shape, seed, portion):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    unit = basis.fit(weight).clamp_min(1e-3)
    check(portion, basis, weight, unit)


@pytest.mark.parametrize("basis", ACTIVATIONS, ids=repr)
@settings(deadline=None, max_examples=15)
@given(shape=SHAPES, seed=SEEDS, portion=st.integers(1, 60), last=st.booleans())
def test_an_activation(basis, shape, seed, portion, last):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    activation = BinaryActivation(basis)
    activation.set_channels(shape[1])
    levels = [level.double() for level in (activation.low, activation.step, activation.threshold) if level is not None]
    check(portion, lambda x, *levels: basis(x, Levels(*levels)), x, *levels)


@pytest.mark.parametrize("basis", [*WEIGHTS, ResidualWeight(6)], ids=repr)
def test_backward_sees_the_planes_of_forward_also_under_autocast(basis):
    """Autocast is on in forward alone; what it rounds there would be other planes in backward."""
    weight = torch.randn(16, 300, generator=torch.Generator().manual_seed(0))
    unit = basis.fit(weight)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = basis.odd(weight, unit)

    assert torch.equal(rounded, basis.odd(weight, unit))


def test_levels_gather_gradients_in_their_own_type():
    """Sums of 2**15 gradients of 1 pass what bfloat16 can count, 2**8, long before the last portion."""
    x = torch.randn(64, 512, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    levels = [torch.tensor(0.0), torch.tensor([0.5, 0.7]), torch.tensor([[0.2], [1.5]])]
    levels = [level.requires_grad_() for level in levels]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimators, "PORTION", 1 << 10)
        PiecewiseActivation(2)(x, Levels(*levels)).sum().backward()
    reached = [float((x.detach() >= at).sum()) for at in levels[2].detach()]

    # the gradient of x itself is bfloat16: its sum is rounded once, to 2**-9 of 2**15
    assert levels[1].grad.tolist() == pytest.approx(reached, abs=2.0**6)


@pytest.mark.parametrize("basis", [EncodingActivation(2), PiecewiseActivation(3)], ids=repr)
@pytest.mark.parametrize("last", [False, True])
def test_an_activation_of_the_usual_type(basis, last):
    """In float32 sums of products are taken from memory as it lies, of a portion from where it begins."""
    x = torch.randn(12, 5, 4, 3, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    activation = BinaryActivation(basis)
    levels = [level for level in (activation.low, activation.step, activation.threshold) if level is not None]
    few, whole = (run(portion, lambda x, *levels: basis(x, Levels(*levels)), x, *levels) for portion in (130, LARGER))

    assert torch.equal(few[0], whole[0])
    for grad, other in zip(few[1], whole[1], strict=True):
        # 720 roundings of at most 2**-24 of sums of products of size 3, which random signs keep near 3 * 720 ** 0.5
        torch.testing.assert_close(grad, other, rtol=0, atol=720 * 2.0**-24 * 3 * 720**0.5)


def test_portions_cover_the_first_axis_once():
    x = torch.empty(10, 7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimators, "PORTION", 21)
        parts = estimators.portions(x)
        patch.setattr(estimators, "PORTION", 70)
        assert estimators.portions(x) == [slice(None)]
    assert [len(range(10)[part]) for part in parts] == [3, 3, 3, 1]
    assert [i for part in parts for i in range(10)[part]] == list(range(10))


@pytest.mark.parametrize("scheme", ["encoding:w=2,a=2", "pa-net:m=4,n=5", "residual:m=2,a=4", "xnor-net"])
def test_torch_compiles_the_training_form_whole(scheme):
    torch.manual_seed(0)
    torch.compiler.reset()
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)
    x = torch.randn(2, 3, 12, 12)
    net = binarize.convert(nn.Sequential(*layers), x, scheme).train()

    def gradients(runner):
        net.zero_grad()
        runner(x).square().sum().backward()
        return [p.grad.clone() for p in net.parameters() if p.grad is not None]

    found = gradients(torch.compile(net, fullgraph=True, backend="aot_eager"))
    for one, other in zip(found, gradients(net), strict=True):
        # the same operations, sums of up to 1e3 terms perhaps in another order
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))
