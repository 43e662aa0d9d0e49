"""Accuracy, agreement and what evaluation refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from binarize.errors import DataError, ModelError
from binarize.evaluate import Evaluation, evaluate


class Table(nn.Module):
    """Gives the scores it was made with: image i is the number i."""

    def __init__(self, scores):
        super().__init__()
        self.scores = nn.Parameter(scores)
        self.inner = nn.Dropout(0.9)

    def forward(self, x):
        return self.inner(self.scores[x.flatten().long()])


def batches(labels, size=4):
    images = torch.arange(len(labels), dtype=torch.float32).reshape(-1, 1, 1, 1)
    return list(zip(images.split(size), labels.split(size), strict=True))


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 20), st.integers(1, 9), st.integers(0, 2**31))
def test_the_fractions_are_those_of_a_count_by_hand(samples, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(samples, classes, generator=generator)
    other = torch.randn(samples, classes, generator=generator)
    labels = torch.randint(classes, (samples,), generator=generator)

    result = evaluate(Table(scores), batches(labels), teacher=Table(other))

    ranked = [row.argsort(descending=True).tolist() for row in scores]
    assert result == Evaluation(
        top1=sum(r[0] == y for r, y in zip(ranked, labels.tolist(), strict=True)) / samples,
        top5=sum(y in r[:5] for r, y in zip(ranked, labels.tolist(), strict=True)) / samples,
        samples=samples,
        agreement=sum(int(a.argmax() == b.argmax()) for a, b in zip(scores, other, strict=True)) / samples,
    )


def test_agreement_is_reported_only_with_a_teacher():
    model, labels = Table(torch.eye(3)), torch.tensor([0, 1, 1])
    assert evaluate(model, batches(labels)).to_dict() == {"top1": 2 / 3, "top5": 1.0, "samples": 3}
    assert evaluate(model, batches(labels), teacher=model).to_dict()["agreement"] == 1.0


def test_images_alone_are_enough_to_compare_with_a_teacher():
    model, other = Table(torch.eye(3)), Table(torch.eye(3)[[0, 0, 2]])
    images = [images for images, _ in batches(torch.tensor([0, 1, 1]))]

    found = evaluate(model, images, teacher=other)

    assert found.to_dict() == {"samples": 3, "agreement": 2 / 3}
    assert [name for name, _ in found.rows()] == ["agreement with the teacher", "samples"]


def test_labels_of_some_images_only_are_refused():
    model = Table(torch.eye(6))
    first, second = list(batches(torch.tensor([0, 1, 1, 0, 1, 2])))[:2]

    with pytest.raises(DataError, match="2 of 6 images have no label"):
        evaluate(model, [first, second[0]], teacher=model)


def test_each_module_gets_its_mode_back_even_after_an_error():
    model = Table(torch.eye(3)).train()
    model.inner.eval()
    with pytest.raises(DataError):
        evaluate(model, batches(torch.tensor([7])))
    assert (model.training, model.inner.training) == (True, False)


def test_progress_hears_of_every_image():
    seen = []
    evaluate(Table(torch.eye(6)), batches(torch.arange(6)), progress=seen.append)
    assert seen == [4, 2]


@pytest.mark.parametrize(("label", "named"), [(3, "a label is 3"), (-1, "a label is -1")])
def test_a_label_that_is_no_output_is_named(label, named):
    with pytest.raises(DataError, match=f"{named}, the model has outputs 0 to 2"):
        evaluate(Table(torch.eye(3)), batches(torch.tensor([0, label, 1])))


def test_empty_data_is_refused():
    with pytest.raises(DataError, match="no samples"):
        evaluate(Table(torch.eye(3)), [])


@pytest.mark.parametrize("batch", [torch.zeros(2, 1, 1, 1), (torch.zeros(2, 1, 1, 1), None)])
def test_data_without_labels_is_refused(batch):
    with pytest.raises(DataError, match="no labels"):
        evaluate(Table(torch.eye(3)), [batch])


def test_images_of_the_wrong_shape_are_refused_with_both_shapes():
    with pytest.raises(ModelError, match="images of 4x8x8 do not fit the model"):
        evaluate(nn.Conv2d(3, 2, 3), [(torch.zeros(2, 4, 8, 8), torch.zeros(2, dtype=torch.long))])


def test_boxes_for_a_network_that_is_no_detector_are_refused():
    boxes = [{"boxes": torch.zeros(1, 4), "labels": torch.ones(1, dtype=torch.long)}]
    with pytest.raises(ModelError, match="the network takes no list of images; give a detector"):
        evaluate(nn.Conv2d(3, 2, 3), [([torch.zeros(3, 8, 8)], boxes)], classes=("background", "cell"))


def test_an_output_that_is_no_table_of_scores_is_refused():
    with pytest.raises(ModelError, match=r"of shape \(2, 2, 6, 6\)"):
        evaluate(nn.Conv2d(3, 2, 3), [(torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.long))])
