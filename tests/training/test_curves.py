import pytest

from binarize.training.curves import HEIGHT, WIDTH, curves_of


def epoch(loss, met=None, /, **val):
    return {"loss": loss, "top1": met, "val": val}


def test_the_largest_value_is_on_top_and_the_last_epoch_at_the_right():
    (curve,) = curves_of({"epochs": [epoch(3.0), epoch(1.0), epoch(2.0)]})

    assert curve.points == f"0.0,0.0 {WIDTH / 2},{HEIGHT:.1f} {WIDTH:.1f},{HEIGHT / 2}"
    assert (curve.first, curve.last, curve.least, curve.most) == (3.0, 2.0, 1.0, 3.0)


def test_every_figure_that_was_measured_each_time_has_its_curve():
    found = curves_of({"epochs": [epoch(1.0, 0.5, top1=0.4, loss=2.0), epoch(0.5, 0.75, top1=0.5)]})

    assert [curve.name for curve in found] == ["loss", "top-1 in training", "top-1 in validation"]


@pytest.mark.parametrize("training", [{}, {"epochs": []}, {"epochs": [epoch(1.0)]}])
def test_a_run_of_less_than_two_epochs_has_none(training):
    assert curves_of(training) == []


def test_a_figure_that_never_changes_is_a_line():
    (curve,) = curves_of({"epochs": [epoch(1.0), epoch(1.0)]})

    assert curve.points == f"0.0,{HEIGHT:.1f} {WIDTH:.1f},{HEIGHT:.1f}"
