"""Every basis: planes rebuilt by the one equation equal its forward, fits are least squares, gradients flow."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from binarize.schemes import residual
from binarize.schemes.base import ActivationBasis, WeightBasis, sign
from binarize.schemes.encoding import EncodingActivation, EncodingWeight
from binarize.schemes.piecewise import PiecewiseActivation, PiecewiseWeight
from binarize.schemes.residual import ResidualWeight, least_squares_units
from binarize.schemes.shifted import ShiftedActivation, ShiftedWeight
from binarize.schemes.sign import SignActivation, SignWeight

PLANES = range(1, 9)
SOME = (1, 2, 5, 8)
SERIES = [ResidualWeight, EncodingWeight, PiecewiseWeight, ShiftedWeight, EncodingActivation, PiecewiseActivation]
WEIGHTS = [
    SignWeight(), *(EncodingWeight(b) for b in PLANES),
    *(kind(k) for kind in (ResidualWeight, PiecewiseWeight, ShiftedWeight) for k in SOME),
]  # fmt: skip
ACTIVATIONS = [
    SignActivation(), *(EncodingActivation(b) for b in PLANES),
    *(kind(k) for kind in (PiecewiseActivation, ShiftedActivation) for k in SOME),
]  # fmt: skip
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3))
SEEDS = st.integers(0, 2**31)


def draw(shape, seed, kind="normal"):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    return x.relu() if kind == "relu" else x


def test_sign_is_never_zero():
    """Check 1 of docs/methods.md: sgn(0) = +1."""
    assert sign(torch.tensor([0.0, -0.0, float("nan"), 1e-45, -1e-45])).tolist() == [1, 1, 1, 1, -1]


@pytest.mark.parametrize("basis", WEIGHTS, ids=repr)
@settings(deadline=None, max_examples=10)
@given(shape=SHAPES, seed=SEEDS)
def test_planes_of_a_weight_rebuild_its_value(basis: WeightBasis, shape, seed):
    weight = draw(shape, seed)
    unit = basis.fit(weight)
    planes = basis.planes(weight, unit)

    assert unit.shape == (len(basis.terms), shape[0])
    assert set(planes.signs.unique().tolist()) <= {-1.0, 1.0}
    assert planes.signs.shape == (basis.count, *shape)
    # m products and sums in float32 against one product per term: m roundings of at most 2^-24 of the clip each
    tolerance = len(planes.scales) * 2.0**-22 * float((unit.abs().sum(0) * 2 ** max(basis.terms)).max())
    torch.testing.assert_close(planes.value(), basis(weight, unit), rtol=0, atol=tolerance)


@pytest.mark.parametrize("basis", ACTIVATIONS, ids=repr)
@pytest.mark.parametrize("kind", ["normal", "relu"])
@settings(deadline=None, max_examples=10)
@given(shape=SHAPES, seed=SEEDS)
def test_planes_of_an_activation_rebuild_its_value(basis: ActivationBasis, kind, shape, seed):
    x = draw(shape, seed, kind)
    levels = basis.fit(x)
    planes = basis.planes(x, levels)

    assert set(planes.signs.unique().tolist()) <= {-1.0, 1.0}
    assert planes.signs.shape == (basis.count, *shape)
    span = float(levels.low.abs() + levels.step.abs().sum() * 2 ** max(basis.terms))
    torch.testing.assert_close(planes.value(), basis(x, levels), rtol=0, atol=(basis.count + 2) * 2.0**-23 * span)


@pytest.mark.parametrize("kind", SERIES, ids=lambda kind: kind.__name__)
def test_every_plane_more_lowers_the_error(kind):
    """Check 13 of docs/methods.md, for one tensor: initialisation falls monotonically with planes 1 to 8."""
    x = draw((6, 300), 11)
    errors = [(x - basis(x, basis.fit(x))).square().mean().item() for basis in map(kind, PLANES)]

    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 4


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_code_of_an_encoding_is_the_sum_of_its_planes(bits):
    """Check 1 of docs/methods.md: bits(c) -> value for all codes, and no other value."""
    odd = torch.arange(-(2**bits - 1), 2**bits, 2).float().unsqueeze(0)
    basis = EncodingWeight(bits)
    unit = torch.ones(1, 1)
    planes = basis.planes(odd, unit)

    assert torch.equal(basis.odd(odd, unit)[0], odd)
    assert torch.equal(planes.value(), odd)
    assert torch.equal(planes.scales.flatten(), 2.0 ** torch.arange(bits))


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_tie_between_two_activation_codes_goes_up(bits):
    """Check 1 of docs/methods.md: ties at thresholds."""
    top = 2**bits - 1
    basis = EncodingActivation(bits)
    levels = basis.fit(torch.arange(top + 1).float())
    ties = torch.arange(top).float() + 0.5

    assert float(levels.low) == 0.0
    assert torch.equal(basis.codes(ties * levels.step, levels)[0], torch.arange(1, top + 1).float())


@pytest.mark.parametrize("bits", range(1, 9))
def test_rounding_is_idempotent(bits):
    basis = EncodingWeight(bits)
    weight = draw((4, 33), bits)
    unit = basis.fit(weight)
    value = basis(weight, unit)

    assert torch.equal(basis(value, unit), value)


def test_the_scale_of_a_sign_is_the_mean_magnitude():
    weight = draw((5, 40), 1)

    assert torch.equal(SignWeight().fit(weight)[0], weight.abs().mean(1))


def test_least_squares_units_solve_the_normal_equations():
    """Check 6 of docs/methods.md: equal to a generic solver."""
    weight, signs = draw((3, 50), 2), sign(draw((4, 3, 50), 3))
    units = least_squares_units(weight, signs)
    generic = torch.stack([torch.linalg.lstsq(signs[:, o].T, weight[o]).solution for o in range(3)], 1)
    rest = weight - (units.unsqueeze(2) * signs).sum(0)

    # the residual is orthogonal to every plane, up to the 1e-6 that keeps the system solvable
    assert torch.einsum("tok,ok->to", signs, rest).abs().max() < 1e-3
    torch.testing.assert_close(units, generic, rtol=0, atol=1e-4)  # the same 1e-6, times the units


def test_least_squares_units_stay_finite_where_two_planes_coincide():
    """Check 6 of docs/methods.md: degenerate bases share the scale of one."""
    weight = draw((2, 20), 4)
    same = sign(weight).expand(3, 2, 20)
    units = least_squares_units(weight, same)

    torch.testing.assert_close(units.sum(0), weight.abs().mean(1), rtol=1e-5, atol=0)
    torch.testing.assert_close(units[0], units[2], rtol=1e-3, atol=0)


@pytest.mark.parametrize("branches", [2, 3, 4])
def test_joint_residual_scales_beat_the_greedy_ones(branches):
    weight = draw((8, 288), 5)
    basis = ResidualWeight(branches)
    greedy, rest = [], weight
    for _ in range(branches):
        greedy.append(rest.abs().mean(1))
        rest = rest - greedy[-1].unsqueeze(1) * sign(rest)

    assert (weight - basis(weight, basis.fit(weight))).square().sum() <= rest.square().sum()


def test_signs_of_a_residual_weight_are_those_of_the_nearest_sum():
    weight, unit = draw((3, 40), 12), torch.tensor([[0.9], [0.7], [0.6]]).expand(3, 3)
    choices = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3)))
    nearest = (weight.unsqueeze(2) - choices @ unit[:, 0]).abs().amin(2)
    basis = ResidualWeight(3)

    torch.testing.assert_close((weight - basis(weight, unit)).abs(), nearest, rtol=0, atol=1e-6)
    # column by column, as calibration rounds, and the whole at once give the same signs
    columns = torch.cat([basis.odd(weight[:, i : i + 1], unit) for i in range(40)], 2)
    assert torch.equal(columns, basis.odd(weight, unit))


@pytest.mark.parametrize("planes", range(2, 7))
@pytest.mark.parametrize("width", [3, 100])
def test_signs_of_a_residual_weight_are_the_same_by_all_three_ways(planes, width, monkeypatch):
    weight, basis = draw((5, width), 14), ResidualWeight(planes)
    unit = basis.fit(draw((5, 100), 15))
    found = []
    for compared in (0, 8):
        monkeypatch.setattr(residual, "COMPARED", compared)
        monkeypatch.setattr(residual, "COMPARED_NARROW", compared)
        found.append(basis.odd(weight, unit))

    assert torch.equal(*found)


@pytest.mark.parametrize("planes", [2, 3, 4])
def test_a_residual_weight_is_no_worse_than_an_encoding_of_as_many_bits(planes):
    weight = draw((8, 288), 13)
    free, powers = ResidualWeight(planes), EncodingWeight(planes)

    assert (weight - free(weight, free.fit(weight))).square().sum() <= (
        weight - powers(weight, powers.fit(weight))
    ).square().sum() * (1 + 1e-6)


@pytest.mark.parametrize(("bits", "most"), [(1, 0.364), (2, 0.119), (3, 0.038), (4, 0.0124), (5, 0.0037)])
def test_weight_fit_reaches_the_error_of_the_best_uniform_quantiser_of_a_gaussian(bits, most):
    weight = draw((1, 200_000), 6)
    basis = EncodingWeight(bits)
    error = (weight - basis(weight, basis.fit(weight))).square().mean()

    assert error < most * 1.03  # 3 % above the value found by fine search on 2e6 samples


def test_two_level_fit_is_the_best_split():
    x = draw((400,), 7)
    basis = SignActivation()
    fitted = (x - basis(x, basis.fit(x))).square().sum()
    tried = [
        (x[x < t] - x[x < t].mean()).square().sum() + (x[x >= t] - x[x >= t].mean()).square().sum()
        for t in x.sort().values[1:]
    ]

    assert fitted <= min(tried) * (1 + 1e-5)


@pytest.mark.parametrize("basis", ACTIVATIONS, ids=repr)
@pytest.mark.parametrize("x", [torch.zeros(10), torch.ones(3), torch.empty(0), torch.full((4,), float("nan"))], ids=str)
def test_degenerate_samples_give_finite_levels(basis, x):
    levels = basis.fit(x)

    assert levels.low.isfinite()
    assert (levels.step > 0).all()


@pytest.mark.parametrize("basis", WEIGHTS, ids=repr)
def test_a_zero_weight_gives_finite_units_and_value(basis):
    weight = torch.zeros(2, 9)

    assert basis(weight, basis.fit(weight)).isfinite().all()


def test_unsigned_samples_keep_an_exact_zero_and_signed_ones_do_not_waste_codes():
    relu, silu = draw((5000,), 8, "relu"), torch.nn.functional.silu(draw((5000,), 9))
    unsigned, signed = EncodingActivation(4).fit(relu), EncodingActivation(4).fit(silu)

    assert float(unsigned.low) == 0.0
    assert -0.5 < float(signed.low) < 0.0  # SiLU ends at -0.28; a symmetric code would start at minus the upper clip


def test_gradients_are_those_of_the_learnt_step():
    weight, unit = torch.tensor([[0.9, -4.0]], requires_grad=True), torch.tensor([[1.0]], requires_grad=True)
    EncodingWeight(2)(weight, unit).sum().backward()

    assert weight.grad.tolist() == [[1.0, 0.0]]  # -4 lies outside the clip of 3
    assert unit.grad.item() == pytest.approx((1 - 0.9) + -3.0)


def test_activation_gradients_stop_outside_the_range():
    x = torch.tensor([[-1.0, 0.4, 9.0]], requires_grad=True)
    low, step = torch.tensor(0.0, requires_grad=True), torch.tensor([1.0], requires_grad=True)
    basis = EncodingActivation(2)
    levels = type(basis.fit(torch.ones(2)))(low, step)
    basis(x, levels).sum().backward()

    assert x.grad.tolist() == [[0.0, 1.0, 0.0]]
    assert low.grad.item() == 2.0
    assert step.grad.item() == pytest.approx(0 + (0 - 0.4) + 3)


@pytest.mark.parametrize("branches", [1, 2, 3])
def test_comparing_finds_the_signs_of_the_nearest_sum(branches):
    flat, unit = (
        torch.randn(5, 200),
        torch.randn(branches, 5),
    )  # scales of any sign and order, as training may leave them
    every = torch.tensor(
        [[1.0 if index >> plane & 1 else -1.0 for plane in range(branches)] for index in range(2**branches)]
    )
    sums = (every @ unit).T

    value = (unit.unsqueeze(2) * ResidualWeight(branches).odd(flat, unit)).sum(0)

    nearest = (flat.unsqueeze(2) - sums.unsqueeze(1)).abs().amin(2)
    torch.testing.assert_close((flat - value).abs(), nearest)
