import pytest

from binarize.evaluate import Evaluation
from binarize.measures import DetectionEvaluation, SegmentationEvaluation
from binarize.tables import figure


@pytest.mark.parametrize(
    "found",
    [
        Evaluation(0.8756, 0.9912, 10),
        SegmentationEvaluation(0.36311, 0.81234, 0.5, {}, 10),
        DetectionEvaluation(0.41, 0.6234, 0.5, 0.4, {}, 10),
    ],
)
def test_fine_tuning_prints_what_evaluate_prints(found):
    printed = [f"{name} {value}" for name, value in found.rows()]

    assert {figure(name, value) for name, value in found.figures().items()} <= {*printed}


def test_a_figure_of_a_user_is_no_share():
    assert figure("distance", 3.14159) == "distance 3.1416"
    assert figure("", 0.5) == "0.5000"
    assert figure("top1", 84.9) == "top-1 84.9000"  # in percent already
