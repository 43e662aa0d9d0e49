"""What is measured of a network in training, and when."""

import pytest
import torch
from training_desk import converted, data, same, teacher

from binarize.errors import DataError, TrainingError
from binarize.evaluate import evaluate
from binarize.finetune import finetune
from binarize.record import record_of


@pytest.mark.parametrize(
    ("found", "kept"), [(0.25, {"figure": 0.25}), (torch.tensor(2), {"figure": 2.0}), ({"a": 1}, {"a": 1.0})]
)
def test_what_val_returns_are_figures_by_name(found, kept):
    assert finetune(converted(), data(), val=lambda net: found, epochs=1).epochs[0].val == kept


@pytest.mark.parametrize("found", [None, "good", {"a": [1]}, torch.zeros(2)])
def test_a_val_that_returns_no_figures_is_refused(found):
    with pytest.raises(TrainingError, match="return a number, or a dict of numbers"):
        finetune(converted(), data(), val=lambda net: found, epochs=1)


LAST_IS_BAD = [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])), (torch.randn(1, 3, 8, 8), torch.tensor([5]))]


@pytest.mark.parametrize(
    ("val", "why"),
    [
        ([torch.randn(4, 3, 8, 8)], "the data has no labels"),
        ([{"image": torch.randn(4, 3, 8, 8), "label": torch.zeros(4)}], "a batch is a dict with the keys image, label"),
        (LAST_IS_BAD, "a label is 5, the model has outputs 0 to 4; check the data"),
    ],
)
def test_what_the_network_cannot_be_measured_on_is_refused_before_anything_is_trained(val, why):
    net = converted()

    with pytest.raises(DataError, match=why):
        finetune(net, data(), teacher=teacher(), val=val, epochs=1)

    assert same(net, converted())


def test_the_network_is_measured_before_it_is_trained(tmp_path):
    net = converted()
    wanted = evaluate(net, data(shuffle=False)).figures()

    first = finetune(net, data(), teacher=teacher(), val=data(shuffle=False), epochs=1, checkpoint=tmp_path)
    again = converted()
    later = finetune(
        again, data(), teacher=teacher(), val=data(shuffle=False), epochs=2, checkpoint=tmp_path, resume=True
    )

    assert first.before == later.before == wanted != {}
    assert list(record_of(again).metrics) == ["before fine-tuning", "fine-tuned"]
    assert record_of(again).metrics["before fine-tuning"] == wanted
