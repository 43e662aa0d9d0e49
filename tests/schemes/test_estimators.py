"""Straight-through estimators: their slopes, and the gradients of staircases that the papers state."""

import pytest
import torch
from torch import nn

from binarize.layers.binary import BinaryActivation, set_temperature
from binarize.schemes.base import Levels
from binarize.schemes.encoding import EncodingActivation
from binarize.schemes.estimators import SLOPES, STES
from binarize.schemes.piecewise import PiecewiseActivation
from binarize.schemes.sign import SignActivation

SIGN = Levels(torch.tensor(-1.0), torch.tensor([2.0]), torch.zeros(1, 1))


def slope_of_sign(ste, at, temperature=1.0):
    x = torch.tensor(at, requires_grad=True)
    SignActivation(ste=ste, temperature=temperature)(x, SIGN).sum().backward()
    return x.grad.tolist()


@pytest.mark.parametrize(
    ("ste", "wanted"),
    [
        ("identity", [1.0, 1.0, 1.0, 1.0]),
        ("clipped", [0.0, 1.0, 1.0, 0.0]),
        ("polynomial", [0.0, 1.0, 2.0, 0.0]),  # Bi-Real Net: 2 - 2 |x|
    ],
)
def test_sign_gets_the_slope_of_the_estimator(ste, wanted):
    assert slope_of_sign(ste, [-1.5, -0.5, 0.0, 3.0]) == wanted


def test_tanh_goes_from_the_identity_to_the_jump():
    assert slope_of_sign("tanh", [-1.0, 0.0, 1.0], 100.0) == pytest.approx([1.0, 1.0, 1.0], abs=1e-3)
    flat, steep = slope_of_sign("tanh", [0.5, 0.0], 0.05)
    assert flat < 1e-6
    assert steep == pytest.approx(20.0)


@pytest.mark.parametrize("ste", ["clipped", "polynomial", "tanh"])
def test_a_slope_over_a_jump_has_the_area_of_the_jump(ste):
    t = torch.linspace(-4, 4, 8001, dtype=torch.float64)
    area = torch.trapezoid(SLOPES[ste](t.clone(), 0.3), t)

    assert float(area) == pytest.approx(2.0, abs=2e-3)  # from -1 to +1


@pytest.mark.parametrize("ste", STES)
def test_gradients_of_a_staircase_are_those_of_the_paper(ste):
    """docs/methods.md, piecewise: dA/dx = sum_j slope_j, dA/dv_j = -slope_j, dA/dd_j = [x >= v_j]."""
    basis = PiecewiseActivation(3, ste=ste)
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    low, step, v = (
        torch.tensor(0.1, dtype=torch.float64, requires_grad=True),
        torch.tensor([0.5, 0.7, 0.2], dtype=torch.float64, requires_grad=True),
        torch.tensor([[-0.3], [0.2], [0.9]], dtype=torch.float64, requires_grad=True),
    )
    g = torch.randn(4, 5, dtype=torch.float64)
    (basis(x, Levels(low, step, v)) * g).sum().backward()
    # d_j delta_j(t) with the window of half width d_j / 2
    windows = [SLOPES[ste]((x - v[j]) / (step[j] / 2), 1.0).detach() for j in range(3)]

    torch.testing.assert_close(x.grad, g * sum(windows))
    torch.testing.assert_close(v.grad.flatten(), torch.stack([-(g * window).sum() for window in windows]))
    torch.testing.assert_close(step.grad, torch.stack([g[x >= v[j]].sum() for j in range(3)]))
    torch.testing.assert_close(low.grad, g.sum())


def test_contiguous_windows_of_equal_steps_are_the_clipped_identity():
    """docs/methods.md, piecewise."""
    x = torch.linspace(-1.05, 6, 50).unsqueeze(0).requires_grad_()
    levels = Levels(torch.tensor(0.0), torch.ones(4), torch.arange(0.5, 4.5).unsqueeze(1))
    PiecewiseActivation(4)(x, levels).sum().backward()

    assert torch.equal(x.grad, ((x > 0) & (x < 4)).float())


def test_the_order_of_the_thresholds_does_not_matter():
    x, turned = torch.randn(3, 8), torch.tensor([2, 0, 1])
    step, v = torch.tensor([0.5, 0.7, 0.2]), torch.tensor([[-0.3], [0.2], [0.9]])
    basis, low = PiecewiseActivation(3), torch.tensor(0.0)

    torch.testing.assert_close(basis(x, Levels(low, step, v)), basis(x, Levels(low, step[turned], v[turned])))


def test_each_channel_learns_a_shift_of_its_own():
    activation = BinaryActivation(SignActivation("channel"))
    activation.set_channels(3)
    activation.set_levels(Levels(torch.tensor(-1.0), torch.tensor([2.0]), torch.full((1, 1), 0.25)))
    x = torch.tensor([[0.5, 0.5, 5.0], [-0.5, 5.0, 5.0]])
    activation(x).sum().backward()

    assert activation.threshold.tolist() == [[0.25] * 3]
    assert activation.threshold.grad.tolist() == [[-2.0, -1.0, 0.0]]


def test_the_temperature_reaches_every_estimator_that_has_one():
    net = nn.Sequential(*(BinaryActivation(SignActivation(ste=ste)) for ste in STES))

    assert set_temperature(net, 0.5) == 1
    assert [part.basis.temperature for part in net] == [1.0, 1.0, 1.0, 0.5]
    with pytest.raises(ValueError, match="positive"):
        set_temperature(net, 0.0)


def staircase(columns):
    """Return an activation with levels that half floats do not hold, for values ``(n, 6, 3, 3)``."""
    v = torch.tensor([[-0.301], [0.2003], [0.9001]]).expand(-1, columns) + torch.linspace(0, 0.001, columns)
    return PiecewiseActivation(3), Levels(torch.tensor(0.1003), torch.tensor([0.501, 0.702, 0.2001]), v.clone())


def coded():
    return EncodingActivation(8), Levels(torch.tensor(-0.5003), torch.tensor([0.0101]))


def numbers(levels):
    return [value for value in (levels.low, levels.step, levels.threshold) if value is not None]


def learnt(levels):
    return Levels(*(value.clone().requires_grad_() for value in numbers(levels)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("made", [lambda: staircase(1), lambda: staircase(6), coded])
@pytest.mark.parametrize("count", [2, 9000])  # one portion, and several
def test_half_floats_meet_levels_as_float32_holds_them(made, dtype, count):
    basis, levels = made()
    exact, half = learnt(levels), learnt(levels)
    x = torch.randn(count, 6, 3, 3).to(dtype)
    grad = torch.randn(count, 6, 3, 3).to(dtype)
    wide, narrow = x.float().requires_grad_(), x.clone().requires_grad_()

    wanted, found = basis(wide, exact), basis(narrow, half)
    wanted.backward(grad.float())
    found.backward(grad)

    assert found.dtype == narrow.grad.dtype == dtype
    assert torch.equal(found, wanted.to(dtype))
    assert torch.equal(narrow.grad, wide.grad.to(dtype))
    for ours, theirs in zip(numbers(half), numbers(exact), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
