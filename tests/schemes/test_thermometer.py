"""Bases of thermometer planes: pieces and their means, the two forms of one sum, exact zeros, fits of every sample."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from binarize.schemes.piecewise import PiecewiseActivation, PiecewiseWeight
from binarize.schemes.shifted import ShiftedActivation, ShiftedWeight
from binarize.schemes.thermometer import Pieces, between

SEEDS = st.integers(0, 2**31)


def draw(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def levels_of(unit):
    """The levels (m + 1,) of one output's units (m + 1,), the offset last."""
    heights = unit[:-1]
    return unit[-1] - heights.sum() + torch.cat([heights.new_zeros(1), 2 * heights.cumsum(0)])


@settings(deadline=None, max_examples=20)
@given(count=st.integers(1, 6), seed=SEEDS)
def test_the_mean_of_a_piece_is_its_best_level(count, seed):
    """Check 11 of docs/methods.md: mean-per-piece is the L2 minimiser; an empty piece keeps the level it is given."""
    x, thresholds = draw((2, 30), seed), draw((2, count), seed + 1).sort(1).values
    pieces, given_levels = Pieces.of(x), draw((2, count + 1), seed + 2).double()
    levels = pieces.means(thresholds.double(), given_levels)
    piece = (x.unsqueeze(2) >= thresholds.unsqueeze(1)).sum(2)

    for row in range(2):
        for i in range(count + 1):
            held = x[row][piece[row] == i].double()
            wanted = held.mean() if len(held) else given_levels[row, i]
            torch.testing.assert_close(levels[row, i], wanted, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        pieces.error(thresholds.double(), levels), (x - levels.gather(1, piece)).square().sum(1), rtol=1e-6, atol=1e-9
    )
    for change in (1e-3, -1e-3):
        assert (
            pieces.error(thresholds.double(), levels + change) >= pieces.error(thresholds.double(), levels) - 1e-9
        ).all()


@settings(deadline=None, max_examples=20)
@given(count=st.integers(1, 8), seed=SEEDS)
def test_nested_and_disjoint_pieces_give_the_same_products(count, seed):
    """Check 11 of docs/methods.md: popcounts of pieces, weighted, against thermometer planes."""
    weight, x = draw((1, 50), seed), draw((1, 50), seed + 1).relu()
    kind, other = PiecewiseWeight(count), PiecewiseActivation(count)
    unit, levels = kind.fit(weight), other.fit(x)
    values_w, values_x = levels_of(unit[:, 0]), levels.low + torch.cat([torch.zeros(1), levels.step.cumsum(0)])
    piece_w = (weight >= between(values_w.unsqueeze(0)).T.unsqueeze(1)[:, 0]).sum(0)
    piece_x = (x >= levels.threshold).sum(0)
    disjoint = sum(
        values_w[i].double() * values_x[j].double() * ((piece_w == i) & (piece_x == j)).sum()
        for i in range(count + 1)
        for j in range(count + 1)
    )
    planes_w, planes_x = kind.planes(weight, unit), other.planes(x, levels)

    torch.testing.assert_close(
        (planes_w.value().double() * planes_x.value().double()).sum(), disjoint, rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("pieces", [2, 4, 8])
def test_the_centre_piece_of_a_weight_is_zero(pieces):
    weight = draw((5, 200), pieces)
    unit = PiecewiseWeight(pieces).fit(weight)

    for output in range(5):
        assert abs(float(levels_of(unit[:, output])[pieces // 2])) < 1e-6
    assert (unit[:-1] > 0).all()  # levels ascend


def test_the_centre_piece_stays_ordered_where_no_weight_is_near_zero():
    weight = draw((3, 100), 0).abs() + 5.0
    basis = PiecewiseWeight(4)
    unit = basis.fit(weight)

    assert (unit[:-1] >= 0).all()
    assert (weight - basis(weight, unit)).square().mean() < 0.1 * weight.var()


def test_pieces_start_at_the_papers_multiples_of_the_deviation(monkeypatch):
    """docs/methods.md, piecewise: with 4 endpoints at 0.4 and 1.2 deviations, 8.1 % of a Gaussian's power is left."""
    monkeypatch.setattr("binarize.schemes.piecewise.ROUNDS", 1)
    weight, basis = draw((1, 100_000), 1), PiecewiseWeight(4)
    unit = basis.fit(weight)
    ends = torch.tensor([-1.2, -0.4, 0.4, 1.2]) * weight.std()
    piece = (weight.unsqueeze(2) >= ends).sum(2)
    paper = (weight - levels_of(unit[:, 0])[piece]).square().mean()

    assert float(paper) == pytest.approx(0.081, abs=0.002)
    assert (weight - basis(weight, unit)).square().mean() <= paper  # the nearest level instead


@pytest.mark.parametrize("kind", [PiecewiseWeight, ShiftedWeight], ids=lambda kind: kind.__name__)
def test_every_weight_takes_the_nearest_level(kind):
    weight, basis = draw((1, 300), 2), kind(5)
    unit = basis.fit(weight)
    offset = unit if basis.has_offset else torch.cat([unit, torch.zeros(1, 1)])
    nearest = (weight.unsqueeze(2) - levels_of(offset[:, 0])).abs().amin(2)

    torch.testing.assert_close((weight - basis(weight, unit)).abs(), nearest, rtol=0, atol=1e-5)


def test_scales_of_shifted_planes_solve_the_papers_least_squares():
    weight, basis = draw((3, 500), 3), ShiftedWeight(3)
    unit = basis.fit(weight)
    signs = basis.shifted_signs(weight).flip(0)
    mean, spread = weight.mean(1, keepdim=True), weight.std(1, keepdim=True, correction=0)
    generic = torch.stack([torch.linalg.lstsq(signs[:, o].T, weight[o]).solution for o in range(3)], 1)
    paper = (weight - (unit.unsqueeze(2) * signs).sum(0)).square().sum()

    assert torch.equal(signs[0], torch.where(weight - mean + spread >= 0, 1.0, -1.0))
    torch.testing.assert_close(unit, generic, rtol=0, atol=1e-4)
    assert (weight - basis(weight, unit)).square().sum() <= paper


@pytest.mark.parametrize("kind", [PiecewiseActivation, ShiftedActivation], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("count", [1, 3, 8])
def test_zero_is_exact_after_a_relu(kind, count):
    x, basis = draw((4000,), 4).relu(), kind(count)
    levels = basis.fit(x)

    assert float(levels.low) == 0.0
    assert basis(torch.zeros(1, 3), levels).tolist() == [[0.0] * 3]
    assert (levels.step > 0).all()
    assert torch.equal(levels.threshold, levels.threshold.sort(0).values)


def test_pieces_of_an_activation_are_the_best_of_all_thresholds():
    x, basis = draw((60,), 5), PiecewiseActivation(2)
    fitted = (x - basis(x, basis.fit(x))).square().sum()
    places = torch.combinations(x.sort().values[1:].double(), 2)
    pieces = Pieces.of(x.unsqueeze(0))

    assert fitted <= pieces.error(places, pieces.means(places, torch.zeros(len(places), 3).double())).min() * 1.001


@pytest.mark.parametrize("kind", [PiecewiseActivation, ShiftedActivation], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("values", [[0.0, 1.0], [3.0], [-2.0, 5.0, 5.0], [1e-30, 0.0], [1e30, -1e30]], ids=str)
def test_fewer_values_than_pieces_are_met_exactly(kind, values):
    x = torch.tensor(values).repeat(10)
    levels = kind(8).fit(x)
    span = float(x.abs().max())

    assert levels.step.isfinite().all()
    assert (levels.step > 0).all()
    if kind is PiecewiseActivation:
        torch.testing.assert_close(kind(8)(x, levels), x, rtol=0, atol=1e-6 * max(span, 1.0))
