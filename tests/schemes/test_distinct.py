import pytest
import torch

from binarize.schemes.distinct import distinct_splits
from binarize.schemes.sign import SignActivation


@pytest.mark.parametrize("count", [1, 2, 5, 8, 16])
def test_splits_differ_and_lie_about_the_best_one(count):
    samples = torch.randn(4000, generator=torch.Generator().manual_seed(0)).relu()
    found = distinct_splits(samples, count)
    thresholds = [float(levels.threshold) for levels in found]

    assert len(set(thresholds)) == count
    best = float(SignActivation().fit(samples).threshold)
    assert thresholds[0] == sorted(thresholds)[(count - 1) // 2]
    if count > 1:
        assert min(thresholds) < best < max(thresholds)


def test_each_split_has_the_means_of_its_sides():
    samples = torch.randn(999, generator=torch.Generator().manual_seed(1))
    for levels in distinct_splits(samples, 3):
        below = samples < levels.threshold.item()
        torch.testing.assert_close(levels.low, samples[below].mean(), rtol=1e-4, atol=1e-5)  # means of 1000 floats
        torch.testing.assert_close(levels.low + levels.step[0], samples[~below].mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("samples", [torch.zeros(5), torch.empty(0), torch.full((3,), 2.0), torch.tensor([0.0, 1.0])])
def test_samples_that_cannot_be_told_apart_give_finite_levels(samples):
    for levels in distinct_splits(samples, 3):
        assert levels.low.isfinite()
        assert levels.step.isfinite().all()
        assert levels.step[0] > 0
