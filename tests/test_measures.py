"""Figures of segmentation and detection against counts by hand."""

import pytest
import scenes
import torch

from binarize.errors import DataError, ModelError
from binarize.evaluate import DetectionEvaluation, SegmentationEvaluation, evaluate
from binarize.scenes import VOID

IMAGES = torch.zeros(2, 3, 4, 5)


def masks(classes=3, seed=0):
    found = torch.randint(classes, (2, 4, 5), generator=torch.Generator().manual_seed(seed))
    found[0, 0] = VOID
    return found


def by_hand(decided, truth, classes):
    """Return intersection over union of each class that occurs, pixel accuracy and mean accuracy of the classes."""
    kept = truth != VOID
    ious, accuracies = [], []
    for label in range(classes):
        ours, theirs = (decided == label) & kept, (truth == label) & kept
        if (ours | theirs).any():
            ious.append(float((ours & theirs).sum() / (ours | theirs).sum()))
        if theirs.any():
            accuracies.append(float((ours & theirs).sum() / theirs.sum()))
    return ious, float((decided == truth)[kept].float().mean()), sum(accuracies) / len(accuracies)


def test_masks_are_scored_over_the_whole_set_and_void_is_ignored():
    truth, decided = masks(), masks(seed=1)
    batches = [(IMAGES[:1], truth[:1]), (IMAGES[1:], truth[1:])]
    outputs = [{"out": scenes.one_hot(decided[:1], 3)}, {"out": scenes.one_hot(decided[1:], 3)}]
    decided = torch.where(decided == VOID, 0, decided)

    found = evaluate(scenes.Oracle(outputs), batches, classes=("a", "b", "c"))

    ious, pixels, mean = by_hand(decided, truth, 3)
    assert isinstance(found, SegmentationEvaluation)
    assert list(found.classes.values()) == pytest.approx(ious)
    assert (found.miou, found.pixel_accuracy, found.class_accuracy) == pytest.approx((sum(ious) / 3, pixels, mean))
    assert (found.samples, found.agreement) == (2, None)
    assert found.figures() == {"miou": found.miou, "pixel_accuracy": found.pixel_accuracy}
    assert ("IoU of b", f"{found.classes['b']:.2%}") in found.rows()


def test_outputs_beyond_the_classes_are_not_decided_for():
    truth = masks()
    scores = scenes.one_hot(truth, 3)
    more = torch.cat([scores, torch.full_like(scores[:, :1], 9.0)], 1)  # a void output that is always the largest

    assert evaluate(scenes.Oracle([more]), [(IMAGES, truth)], classes=("a", "b", "c")).miou == 1.0
    assert evaluate(scenes.Oracle([more]), [(IMAGES, truth)]).miou == 0.0


def test_a_class_that_never_occurs_counts_for_nothing():
    truth = torch.zeros(2, 4, 5, dtype=torch.int64)

    found = evaluate(scenes.Oracle([scenes.one_hot(truth, 3)]), [(IMAGES, truth)], classes=("a", "b", "c"))

    assert (found.miou, found.classes) == (1.0, {"a": 1.0})


def test_agreement_of_masks_is_over_all_pixels():
    truth, other = masks(), masks()
    other[1, :2] = (other[1, :2] + 1) % 3
    pair = scenes.Oracle([scenes.one_hot(truth, 3)]), scenes.Oracle([scenes.one_hot(other, 3)])

    assert evaluate(pair[0], [(IMAGES, truth)], teacher=pair[1]).agreement == 1 - 10 / 40


def test_masks_that_do_not_fit_are_refused():
    truth = masks()
    with pytest.raises(DataError, match="a mask holds 3, there are classes 0 to 1"):
        evaluate(scenes.Oracle([scenes.one_hot(truth, 2)]), [(IMAGES, torch.full_like(truth, 3))])
    with pytest.raises(ModelError, match=r"shape \(2, 3, 2, 5\)"):
        evaluate(scenes.Oracle([torch.zeros(2, 3, 2, 5)]), [(IMAGES, truth)])
    with pytest.raises(ModelError, match="no map of scores"):
        evaluate(scenes.Oracle([torch.zeros(2, 3)]), [(IMAGES, truth)])


def boxes(*rows, scores=None):
    corners = torch.tensor([row[:4] for row in rows], dtype=torch.float32).reshape(-1, 4)
    found = {"boxes": corners, "labels": torch.tensor([row[4] for row in rows], dtype=torch.int64)}
    return found if scores is None else {**found, "scores": torch.tensor(scores)}


def test_boxes_are_scored_as_coco_does():
    truth = [boxes((0, 0, 10, 10, 1), (20, 20, 40, 40, 2)), boxes((5, 5, 15, 15, 1))]
    # the second image's box overlaps by 0.82: right at 0.5 to 0.8, seven of ten thresholds
    found = [
        boxes((0, 0, 10, 10, 1), (20, 20, 40, 40, 2), scores=[0.9, 0.8]),
        boxes((5, 5, 15, 13.2, 1), scores=[0.7]),
    ]

    result = evaluate(scenes.Oracle([found]), [([torch.zeros(3, 50, 50)] * 2, truth)], classes=("", "cat", "dog"))

    assert isinstance(result, DetectionEvaluation)
    assert result.classes["dog"] == pytest.approx(1.0)
    # where the second cat is missed, precision is 1 up to a recall of 0.5: 51 of COCO's 101 points of recall
    assert result.classes["cat"] == pytest.approx((7 * 1.0 + 3 * 51 / 101) / 10)
    assert (result.map50, result.map75) == pytest.approx((1.0, 1.0))
    assert result.map == pytest.approx((result.classes["cat"] + result.classes["dog"]) / 2)
    assert result.figures() == {"map": result.map, "map50": result.map50}


def test_crowds_are_neither_found_nor_missed():
    truth = [{**boxes((0, 0, 10, 10, 1), (20, 20, 40, 40, 1)), "iscrowd": torch.tensor([0, 1])}]
    found = [boxes((0, 0, 10, 10, 1), scores=[0.9])]

    assert evaluate(scenes.Oracle([found]), [([torch.zeros(3, 50, 50)], truth)]).map == pytest.approx(1.0)


def test_agreement_of_boxes_counts_what_both_have():
    truth = [boxes((0, 0, 10, 10, 1))]
    ours = [boxes((0, 0, 10, 10, 1), (20, 20, 30, 30, 1), (0, 0, 10, 10, 2), scores=[0.9, 0.9, 0.1])]
    theirs = [boxes((0, 0, 10, 9, 1), (20, 20, 30, 30, 2), scores=[0.9, 0.9])]
    images = [torch.zeros(3, 50, 50)]

    found = evaluate(scenes.Oracle([ours]), [(images, truth)], teacher=scenes.Oracle([theirs]))

    assert found.agreement == 2 * 1 / 4  # one shared; two sure ones each
    assert dict(found.rows())["detections shared with the teacher"] == "50.00%"


def test_a_detector_must_give_detections():
    with pytest.raises(ModelError, match="boxes need a list of dicts"):
        evaluate(scenes.Oracle([torch.zeros(1)]), [([torch.zeros(3, 5, 5)], [boxes((0, 0, 1, 1, 1))])])


def test_nothing_found_is_zero_and_not_an_error():
    nothing = [boxes(scores=[])]

    found = evaluate(scenes.Oracle([nothing]), [([torch.zeros(3, 50, 50)], [boxes((0, 0, 10, 10, 1))])])

    assert (found.map, found.agreement) == (0.0, None)
