"""What is measured of a network in training, and when."""

import signal

import numpy as np
import pytest
import torch
from training_desk import converted, data, same, teacher

from binarize.data import load_data
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


def generator():
    yield torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])


def test_a_val_that_can_be_read_once_only_is_refused():
    with pytest.raises(TrainingError, match="more than once: it is used up then; give a loader, not a generator"):
        finetune(converted(), data(), val=generator(), epochs=1)


def test_val_is_tried_before_a_run_goes_on(tmp_path):
    finetune(converted(), data(), teacher=teacher(), epochs=1, checkpoint=tmp_path)
    net = converted()

    with pytest.raises(DataError, match="the data has no labels"):
        finetune(
            net, data(), teacher=teacher(), val=[torch.randn(4, 3, 8, 8)], epochs=2, checkpoint=tmp_path, resume=True
        )

    assert same(net, converted())


def test_the_data_that_does_not_fit_is_named():
    val = data(shuffle=False)
    val.title, val.labels = "npz:mine.npz", val.labels + 9

    with pytest.raises(DataError, match=r"outputs 0 to 4; check npz:mine\.npz"):
        finetune(converted(), data(), teacher=teacher(), val=val, epochs=1)


@pytest.mark.parametrize(
    ("classes", "why"),
    [
        (("a", "b", "d"), "only the training data has the classes c, only the validation data d"),
        (("a", "b"), "only the training data has the classes c, only the validation data none"),
        (("b", "a", "c"), "in another order"),
    ],
)
def test_labels_of_other_classes_are_refused_where_labels_are_learnt(classes, why):
    train, val = data(), data(shuffle=False)
    train.classes, val.classes = ("a", "b", "c"), classes

    with pytest.raises(DataError, match=why):
        finetune(converted(), train, val=val, epochs=1)
    finetune(converted(), train, teacher=teacher(), val=val, epochs=1)  # no label is learnt
    val.classes = None
    finetune(converted(), train, val=val, epochs=1)


def test_a_signal_while_the_network_is_measured_ends_the_run_with_a_checkpoint(tmp_path):
    def progress(step):
        if step.epoch == 0:
            signal.raise_signal(signal.SIGTERM)

    history = finetune(
        converted(), data(), teacher=teacher(), val=data(), epochs=2, checkpoint=tmp_path, progress=progress
    )

    assert (history.stopped, history.epochs) == ("SIGTERM", ())
    assert (tmp_path / "checkpoint.pt").is_file()


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


def test_the_network_and_the_original_are_measured_before_training(tmp_path):
    net = converted()
    wanted, goal = (evaluate(model, data(shuffle=False)).figures() for model in (net, teacher()))

    first = finetune(net, data(), teacher=teacher(), val=data(shuffle=False), epochs=1, checkpoint=tmp_path)
    again = converted()
    later = finetune(
        again, data(), teacher=teacher(), val=data(shuffle=False), epochs=2, checkpoint=tmp_path, resume=True
    )

    assert first.before == later.before == wanted != {}
    assert first.teacher == later.teacher == goal != {}
    assert list(record_of(again).metrics) == ["teacher", "before fine-tuning", "fine-tuned"]
    assert record_of(again).metrics["before fine-tuning"] == wanted
    assert record_of(again).metrics["teacher"] == goal


def test_figures_of_a_run_before_are_not_those_of_this_network():
    net = converted()

    finetune(net, data(), teacher=teacher(), val=data(shuffle=False), epochs=1)
    measured = [*record_of(net).metrics]
    assert record_of(net).training["settings"]["losses"]["temperature"] == 4.0  # what it was, not that nobody gave one
    finetune(net, data(), teacher=teacher(), epochs=1)

    assert (measured, [*record_of(net).metrics]) == (["teacher", "before fine-tuning", "fine-tuned"], [])


def test_images_without_labels_are_no_validation_data(tmp_path):
    np.savez(tmp_path / "bare.npz", images=np.zeros((4, 8, 8, 3), np.uint8))
    bare = load_data(f"npz:{tmp_path / 'bare.npz'}")

    with pytest.raises(DataError, match=r"cannot measure on val: .*bare.npz has no labels; give labelled images"):
        finetune(converted(), data(), teacher=teacher(), val=bare, epochs=1)


def test_a_function_that_measures_is_not_asked_about_the_original():
    steps, net = [], converted()

    history = finetune(net, data(), teacher=teacher(), val=lambda it: float(it is net), epochs=1, progress=steps.append)

    assert history.teacher == steps[0].teacher == {}
    assert history.before == steps[0].val == {"figure": 1.0}
