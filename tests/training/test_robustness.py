import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from models import Residual
from torch.utils.data import DataLoader, TensorDataset
from training_desk import CLASSES, _pixels, converted, data, same, teacher

import binarize
from binarize.errors import OutputError, TrainingError
from binarize.finetune import Settings, finetune
from binarize.training.checkpoints import Checkpoints, random_state, set_random_state


def stop_at(epoch, batch):
    """Send this process SIGTERM once so many batches are done."""

    def progress(step):
        if (step.epoch, step.done) == (epoch, batch):
            os.kill(os.getpid(), signal.SIGTERM)

    return progress


def noisy(images, generator):
    return images + 0.1 * torch.randn(images.shape, generator=generator)


def loader():
    """Return a user's own loader, with a data set that draws from the global generator."""

    class Noisy(TensorDataset):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image + 0.1 * torch.randn(image.shape), label

    return DataLoader(Noisy(*_pixels()), batch_size=32, shuffle=True)


@pytest.mark.parametrize("make", [lambda: data(augment=noisy), loader], ids=["images", "DataLoader"])
@pytest.mark.parametrize("place", [(1, 3), (1, 2), (2, 1)])
@pytest.mark.parametrize("options", [{}, {"ema": 0.9, "optimiser": "sgd", "lr": 0.02}], ids=["adam", "sgd"])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, make, place, options):
    settings = Settings(epochs=2, **options)
    straight, resumed = converted("xnor-net"), converted("xnor-net")
    whole = finetune(straight, make(), teacher=teacher(), settings=settings)

    first = finetune(
        converted("xnor-net"), make(), teacher=teacher(), settings=settings, checkpoint=tmp_path / "run",
        progress=stop_at(*place),
    )  # fmt: skip
    torch.rand(7)
    second = finetune(resumed, make(), teacher=teacher(), settings=settings, checkpoint=tmp_path / "run", resume=True)

    assert first.stopped == "SIGTERM"
    assert second.stopped is None
    assert same(straight, resumed)
    assert [epoch.loss for epoch in whole.epochs] == [epoch.loss for epoch in second.epochs]
    assert [epoch.top1 for epoch in whole.epochs] == [epoch.top1 for epoch in second.epochs]


def test_a_stop_without_a_folder_ends_the_run_too():
    history = finetune(converted(), data(), teacher=teacher(), epochs=3, progress=stop_at(2, 1))

    assert history.stopped == "SIGTERM"
    assert len(history.epochs) == 1


def test_handlers_are_given_back():
    before = signal.getsignal(signal.SIGINT)

    finetune(converted(), data(), teacher=teacher(), epochs=1)

    assert signal.getsignal(signal.SIGINT) is before


TWO_SIGNALS = """
import os
import signal

from binarize.training.guard import StopSignals

with StopSignals():
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
    print("went on")
"""


def test_two_signals_at_once_end_the_process_by_the_second():
    done = subprocess.run([sys.executable, "-c", TWO_SIGNALS], capture_output=True, text=True)

    assert done.returncode in (-signal.SIGTERM, -signal.SIGINT)
    assert "race" not in done.stderr
    assert "went on" not in done.stdout


def test_a_finished_run_resumes_to_the_same_network(tmp_path):
    net, again = converted(), converted()
    settings = Settings(epochs=1, ema=0.9)
    finetune(net, data(), teacher=teacher(), settings=settings, checkpoint=tmp_path)

    history = finetune(again, data(), teacher=teacher(), settings=settings, checkpoint=tmp_path, resume=True)

    assert same(net, again)
    assert len(history.epochs) == 1


def test_the_run_of_another_is_not_overwritten(tmp_path):
    finetune(converted(), data(), teacher=teacher(), epochs=1, checkpoint=tmp_path)

    with pytest.raises(TrainingError, match="holds the checkpoint of one; resume"):
        finetune(converted(), data(), teacher=teacher(), epochs=1, checkpoint=tmp_path)


def test_other_settings_do_not_continue_a_run(tmp_path):
    finetune(converted(), data(), teacher=teacher(), epochs=1, checkpoint=tmp_path)

    with pytest.raises(TrainingError, match=r"started with lr 0.02, now it is 0.1"):
        finetune(
            converted(), data(), teacher=teacher(), settings=Settings(lr=0.1), checkpoint=tmp_path, resume=True
        )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"teacher": None}, "started with teacher 'given', now it is 'none'"),
        ({"train": data(16)}, "batches of a pass 3, now it is 6; give the same images, batch size and number"),
        ({"stages": ("binary:epochs=3",)}, r"give the same \(passes can change where no stage names them\)"),
    ],
)
def test_another_teacher_data_of_another_size_or_other_stages_do_not_continue_a_run(tmp_path, options, why):
    given = {"train": data(), "teacher": teacher(), "checkpoint": tmp_path}
    finetune(converted(), **given, epochs=1)

    with pytest.raises(TrainingError, match=why):
        finetune(converted(), **{**given, **options}, epochs=2, resume=True)


def test_a_run_that_is_past_its_end_does_not_go_on(tmp_path):
    given = {"teacher": teacher(), "checkpoint": tmp_path}
    history = finetune(converted(), data(), **given, epochs=3, progress=stop_at(2, 1))
    assert (history.stopped, len(history.epochs)) == ("SIGTERM", 1)

    with pytest.raises(TrainingError, match="it is in pass 2 of stage binary, and 1 are asked for; ask for more"):
        finetune(converted(), data(), **given, epochs=1, resume=True)
    assert len(finetune(converted(), data(), **given, epochs=2, resume=True).epochs) == 2


def test_passes_left_are_counted_in_the_stage_that_goes_on(tmp_path):
    given = {"teacher": teacher(), "checkpoint": tmp_path, "stages": ("activations", "binary")}
    finetune(converted("xnor-net"), data(), **given, epochs=3, progress=stop_at(5, 1))

    with pytest.raises(TrainingError, match="it is in pass 2 of stage binary, and 1 are asked for"):
        finetune(converted("xnor-net"), data(), **given, epochs=1, resume=True)
    assert len(finetune(converted("xnor-net"), data(), **given, epochs=2, resume=True).epochs) == 5


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_pass_is_not_lost_where_validation_fails(tmp_path, ema):
    tried = []

    def broken(net):
        tried.append(net)
        if len(tried) == 2:  # the first time is before training
            raise OSError("the disk is gone")
        return 0.0

    settings = Settings(epochs=2, ema=ema)
    straight, resumed = converted(), converted()
    whole = finetune(straight, data(), teacher=teacher(), val=data(), settings=settings)
    with pytest.raises(OSError, match="the disk is gone"):
        finetune(converted(), data(), teacher=teacher(), val=broken, settings=settings, checkpoint=tmp_path)

    steps = []
    again = finetune(
        resumed, data(), teacher=teacher(), val=data(), settings=settings, checkpoint=tmp_path, resume=True,
        progress=steps.append,
    )  # fmt: skip

    assert {step.epoch for step in steps if not step.val} == {2}
    assert same(straight, resumed)
    assert [(epoch.loss, epoch.val) for epoch in whole.epochs] == [(epoch.loss, epoch.val) for epoch in again.epochs]


@pytest.mark.parametrize("scheme", ["xnor-net", "encoding:w=3,a=3"], ids=["other values", "values of the same shapes"])
def test_another_scheme_does_not_continue_a_run(tmp_path, scheme):
    finetune(converted(), data(), teacher=teacher(), epochs=1, checkpoint=tmp_path)

    why = f"the scheme of block1.conv1 'encoding:w=2,a=2', now it is '{scheme}'"
    with pytest.raises(TrainingError, match=why):
        finetune(converted(scheme), data(), teacher=teacher(), epochs=2, checkpoint=tmp_path, resume=True)


def test_another_network_does_not_continue_a_run(tmp_path):
    finetune(converted(), data(), teacher=teacher(), epochs=1, checkpoint=tmp_path)
    other = binarize.convert(Residual(CLASSES + 1), scheme="encoding:w=2,a=2", data=data(shuffle=False))

    with pytest.raises(TrainingError, match="it trained another network"):
        finetune(other, data(), teacher=teacher(), epochs=1, checkpoint=tmp_path, resume=True)


def test_a_damaged_checkpoint_is_said_to_be_damaged(tmp_path):
    finetune(converted(), data(), teacher=teacher(), epochs=1, checkpoint=tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(b"no zip file")

    with pytest.raises(TrainingError, match="it is damaged"):
        finetune(converted(), data(), teacher=teacher(), epochs=1, checkpoint=tmp_path, resume=True)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    path = type(tmp_path)
    write, calls = path.write_bytes, []

    def full(self, content):
        calls.append(self)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return write(self, content)

    monkeypatch.setattr(path, "write_bytes", full)

    with pytest.raises(OutputError, match=r"No space left on device.*the previous checkpoint is intact"):
        finetune(converted(), data(), teacher=teacher(), epochs=2, checkpoint=tmp_path)

    monkeypatch.undo()
    assert Checkpoints(tmp_path).read()["place"] == {"stage": 0, "epoch": 1, "batch": 0}
    assert sorted(item.name for item in tmp_path.iterdir() if item.is_file()) == ["checkpoint.pt", "log.csv"]


def test_an_image_that_is_not_finite_stops_the_run_and_is_named():
    images = [(torch.randn(8, 3, 8, 8), torch.zeros(8, dtype=torch.int64)) for _ in range(3)]
    images[2][0][0, 0, 0, 0] = torch.nan
    net = converted()

    with pytest.raises(TrainingError, match=r"epoch 1 is not finite; the first bad layer is 'stem.0'.*its input"):
        finetune(net, images, epochs=1)

    assert same(net, converted())
    assert not net.training


def test_weights_that_run_away_are_named_and_undone():
    net = converted()

    with pytest.raises(TrainingError, match=r"is not finite; .*lower the learning rate, or set clip"):
        finetune(net, data(), settings=Settings(epochs=3, optimiser="sgd", lr=1e30))

    assert all(bool(value.isfinite().all()) for value in net.state_dict().values())


def test_the_log_has_a_row_per_epoch(tmp_path):
    finetune(converted(), data(), teacher=teacher(), val=data(), epochs=2, checkpoint=tmp_path)

    header, *rows = (tmp_path / "log.csv").read_text().splitlines()
    assert {"epoch", "loss", "loss_logits", "top1", "val_top1", "images_per_second"} <= set(header.split(","))
    assert len(rows) == 2


def test_progress_tells_what_was_validated():
    steps = []
    finetune(converted(), data(), teacher=teacher(), val=data(), epochs=2, progress=steps.append)

    assert [(step.epoch, step.done) for step in steps if step.val] == [(0, 0), (1, 3), (2, 3)]
    assert [step.done for step in steps] == [0] + [1, 2, 3, 3] * 2


def test_progress_tells_how_far_and_how_long():
    steps = []

    finetune(converted(), data(), teacher=teacher(), epochs=2, progress=steps.append)

    assert [(step.epoch, step.done) for step in steps] == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]
    assert steps[-1].seconds_left == 0
    assert steps[0].seconds_left > 0
    assert all(step.total == 3 and step.epochs == 2 and step.images_per_second > 0 for step in steps)


def test_every_random_generator_is_remembered():
    state = random_state()
    drawn = (random.random(), np.random.rand(), float(torch.rand(())))  # noqa: NPY002

    set_random_state(state)

    assert (random.random(), np.random.rand(), float(torch.rand(()))) == drawn  # noqa: NPY002
