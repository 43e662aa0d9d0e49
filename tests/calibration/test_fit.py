"""Fits: never worse than rounding the weights, and exact where they can be."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from binarize.calibration.fit import Problem, fit_to_output, fit_to_weight
from binarize.schemes.encoding import EncodingWeight
from binarize.schemes.residual import ResidualWeight
from binarize.schemes.sign import SignWeight

BASES = [SignWeight(), EncodingWeight(1), EncodingWeight(2), EncodingWeight(4), EncodingWeight(8), ResidualWeight(3)]


def data(groups, rows, inputs, outputs, seed):
    """Correlated inputs, a weight, and outputs that the weight explains up to noise; all centred."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(groups, inputs, inputs, generator=generator)
    design = torch.randn(groups, rows, inputs, generator=generator) @ mix
    weight = torch.randn(groups, outputs, inputs, generator=generator)
    targets = design @ weight.transpose(1, 2) + torch.randn(groups, rows, outputs, generator=generator)
    return design - design.mean(1, keepdim=True), targets - targets.mean(1, keepdim=True), weight


def rounded(basis, weight):
    flat = weight.flatten(0, 1)
    return basis(flat, basis.fit(flat)).reshape(weight.shape)


@pytest.mark.parametrize("basis", BASES, ids=repr)
@settings(max_examples=8)
@given(
    groups=st.integers(1, 3), inputs=st.integers(1, 80), outputs=st.integers(1, 5), rows=st.integers(3, 300),
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_the_fit_to_outputs_is_never_worse_than_rounding_the_weights(basis, groups, inputs, outputs, rows, seed):
    design, targets, weight = data(groups, rows, inputs, outputs, seed)
    problem = Problem.of(design, targets, weight, 0.01)

    fit = fit_to_output(basis, problem, 2)

    before = problem.errors(rounded(basis, weight))
    slack = 1e-4 * before.max()  # float32 sums of inputs**2 products
    assert (problem.errors(fit.value(basis)) <= before + slack).all()


@pytest.mark.parametrize("basis", BASES, ids=repr)
def test_the_fit_is_what_the_basis_makes_of_the_latent_weight(basis):
    design, targets, weight = data(2, 200, 12, 4, 0)

    fit = fit_to_output(basis, Problem.of(design, targets, weight, 0.01), 3)

    assert fit.latent.shape == weight.shape
    assert torch.equal(basis(fit.latent.flatten(0, 1), fit.unit).reshape(weight.shape), fit.value(basis))


@pytest.mark.parametrize("basis", [EncodingWeight(2), EncodingWeight(3)], ids=repr)
def test_correlated_inputs_gain_most_from_the_fit_to_outputs(basis):
    design, targets, weight = data(1, 2000, 40, 8, 1)
    problem = Problem.of(design, targets, weight, 0.01)

    fit = fit_to_output(basis, problem, 4)

    assert problem.errors(fit.value(basis)).sum() < 0.5 * problem.errors(rounded(basis, weight)).sum()


def test_more_sweeps_never_cost():
    basis, (design, targets, weight) = EncodingWeight(2), data(1, 500, 100, 6, 2)
    problem = Problem.of(design, targets, weight, 0.01)
    costs = [problem.errors(fit_to_output(basis, problem, sweeps).value(basis)).sum() for sweeps in (1, 2, 5)]

    assert costs == sorted(costs, reverse=True)


def test_weights_that_are_levels_stay():
    basis = EncodingWeight(3)
    unit = torch.tensor([[0.5, 0.125]])
    odd = torch.tensor([[7.0, -1, 3, -7, 5, 1], [-7, 1, 5, 3, -3, 7]])
    weight = (unit.T * odd).unsqueeze(0)
    design = torch.randn(1, 400, 6)
    design -= design.mean(1, keepdim=True)
    problem = Problem.of(design, design @ weight.transpose(1, 2), weight, 0.01)

    value = fit_to_output(basis, problem, 3).value(basis)

    torch.testing.assert_close(value, weight, atol=1e-5, rtol=1e-5)


def test_inputs_that_are_always_zero_do_not_spoil_the_fit():
    design, targets, weight = data(1, 100, 6, 2, 3)
    design[:, :, 2:4] = 0

    fit = fit_to_output(EncodingWeight(4), Problem.of(design, targets, weight, 0.01), 2)

    assert fit.value(EncodingWeight(4)).isfinite().all()


@pytest.mark.parametrize("basis", BASES, ids=repr)
def test_scaling_to_outputs_is_never_worse_than_rounding(basis):
    design, targets, weight = data(2, 50, 90, 4, 4)

    value = fit_to_weight(basis, design, targets, weight).value(basis)

    def cost(v):
        return (design @ v.transpose(1, 2) - targets).square().sum(1)

    assert (cost(value) <= cost(rounded(basis, weight)) * (1 + 1e-4)).all()
