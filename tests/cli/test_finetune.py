import dataclasses
import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from cli_desk import refused, run, run_json

from binarize.artifact import load
from binarize.cli.training import training_bar
from binarize.finetune import Step
from binarize.record import record_of


@pytest.fixture(scope="module")
def trainable(desk):
    path = desk.folder / "latent.safetensors"
    words = ("convert", desk.checkpoint, "--arch", desk.factory, "--data", desk.data, "--scheme", "xnor-net")
    result = run(*words, "--trainable", "-o", path)
    assert result.exit_code == 0, result.output
    return path


def test_a_network_is_trained_packed_and_measured(desk, trainable, tmp_path):
    out = tmp_path / "out.safetensors"

    found = run_json(
        "finetune", trainable, "-o", out, "--data", desk.data, "--val", desk.data, "--teacher", desk.checkpoint,
        "--arch", desk.factory, "--epochs", 2, "--batch", 16, "--augment", "cifar", "--checkpoint", tmp_path / "run",
        "--report", tmp_path / "page.html",
    )  # fmt: skip

    epochs = found["training"]["epochs"]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2]
    assert set(epochs[0]["val"]) == {"top1"}
    assert out.stat().st_size < trainable.stat().st_size
    assert run_json("evaluate", out, "--data", desk.data)["top1"] == pytest.approx(epochs[-1]["val"]["top1"], abs=0.05)
    assert (tmp_path / "run" / "log.csv").is_file()
    shown = run("inspect", out).stdout
    assert f"fine-tuned for 2 epochs, loss {epochs[0]['loss']:.4f} to {epochs[1]['loss']:.4f}" in shown
    assert f"fine-tuned: top-1 {epochs[1]['val']['top1']:.2%}" in shown
    assert '<polyline points="0.0,' in (tmp_path / "page.html").read_text()


def test_what_holds_latent_weights_is_packed_where_it_is_exported(desk, trainable, tmp_path):
    found = run_json("export", trainable, "-o", tmp_path / "net.onnx", "--check", desk.data)

    assert all(row["agreed"] >= 0.9 for row in found["check"])
    assert found["bytes"] < trainable.stat().st_size


def test_progress_names_the_stage_where_there_are_several(desk, trainable, tmp_path):
    words = "--data", desk.data, "--epochs", 1, "--stage", "activations:epochs=1", "--stage", "binary"

    said = run("finetune", trainable, "-o", tmp_path / "out.safetensors", *words).stderr

    assert "binarize: epoch 1/2 (activations:epochs=1)  loss " in said
    assert "binarize: epoch 2/2  loss " in said


@pytest.mark.parametrize("taught", [False, True])
def test_what_validation_found_is_said_where_no_bar_is_drawn(desk, trainable, tmp_path, taught):
    words = "--data", desk.data, "--val", desk.data, "--epochs", 2
    teacher = ("--teacher", desk.checkpoint, "--arch", desk.factory) if taught else ()
    result = run("finetune", trainable, "-o", tmp_path / "out.safetensors", *words, *teacher)

    original = r" \(the teacher: top-1 \d+\.\d\d%\)" if taught else ""
    assert re.search(rf"^binarize: before training: top-1 \d+\.\d\d%{original}$", result.stderr, re.MULTILINE)
    assert re.findall(r"^binarize: after epoch (\d): top-1 \d+\.\d\d%$", result.stderr, re.MULTILINE) == ["1", "2"]
    progress = r"^binarize: epoch (\d)/2  loss \d\.\d{4}  top-1 in training [\d.]+%  [\d,]+ images/s"
    assert re.findall(progress, result.stderr, re.MULTILINE) == ["1", "2"]


def test_the_file_is_written_before_the_process_leaves_the_others(desk, trainable, tmp_path, monkeypatch):
    out, left = tmp_path / "out.safetensors", []
    monkeypatch.setattr("binarize.training.processes.leave", lambda: left.append(out.exists()))

    assert run("finetune", trainable, "-o", out, "--data", desk.data, "--epochs", 1).exit_code == 0
    assert left == [True]


def test_a_model_is_converted_first_and_is_its_own_teacher(desk, tmp_path):
    found = run_json(
        "finetune", desk.checkpoint, "--arch", desk.factory, "-o", tmp_path / "out.safetensors", "--data", desk.data,
        "--scheme", "xnor-net", "--epochs", 1, "--stage", "activations:epochs=1", "--stage", "binary", "--trainable",
    )  # fmt: skip

    assert [epoch["stage"] for epoch in found["training"]["epochs"]] == ["activations:epochs=1", "binary"]
    assert set(found["training"]["epochs"][0]["terms"]) == {"logits"}
    assert found["scheme"] == "xnor-net"
    assert record_of(load(tmp_path / "out.safetensors")).training["settings"]["epochs"] == 1
    last = found["training"]["epochs"][1]["loss"]
    shown = run("inspect", tmp_path / "out.safetensors").stdout
    assert f"fine-tuned for 2 epochs, loss in stage binary {last:.4f}\n" in shown


def test_convert_trains_too(desk, tmp_path):
    out = tmp_path / "out.safetensors"

    result = run("convert", desk.checkpoint, "--arch", desk.factory, "--data", desk.data, "--finetune", 1, "-o", out)

    assert result.exit_code == 0, result.output
    assert len(run_json("inspect", out)["details"]["training"]["epochs"]) == 1


def test_a_stopped_command_goes_on_where_it_was(desk, trainable, tmp_path):
    words = [
        "finetune", str(trainable), "--data", desk.data, "--epochs", "400", "--batch", "4", "--schedule", "constant",
        "--checkpoint", str(tmp_path / "run"), "-o", str(tmp_path / "out.safetensors"), "--labels", "1",
    ]  # fmt: skip
    line = [sys.executable, "-c", "from binarize.cli import main; main()", *words]
    with subprocess.Popen(
        line, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as process:
        deadline = time.monotonic() + 100
        while not (tmp_path / "run" / "log.csv").is_file() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)

    assert process.returncode == 130, said
    assert said.splitlines()[-1].startswith("binarize: stopped by SIGTERM; the same command with --resume goes on from")
    assert not (tmp_path / "out.safetensors").exists()
    done = len((tmp_path / "run" / "log.csv").read_text().splitlines()) - 1
    assert 0 < done < 400
    words[words.index("--epochs") + 1] = str(done + 1)
    found = run_json(*words, "--resume")
    assert len(found["training"]["epochs"]) == done + 1


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="accelerate is not installed")
def test_two_processes_train_one_network_and_one_writes_it(desk, trainable, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "binarize"]
    words = ["finetune", trainable, "--data", desk.data, "--batch", 8, "--labels", 1, "--epochs", 1, "--json"]
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    done = subprocess.run(
        [*launcher, *map(str, words), "-o", tmp_path / "out.safetensors"], capture_output=True, text=True, env=alone
    )

    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["training"]["epochs"]) == 1
    assert record_of(load(tmp_path / "out.safetensors")).training["processes"] == 2


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--resume",), "cannot resume: no folder for checkpoints"),
        (("--stage", "bits"), "names no width"),
        (("--stage", "activation"), "did you mean 'activations'"),
        (("--val", "npx:nowhere"), "did you mean 'npz'"),
        (("--augment", "imagenet"), "use 'cifar'"),
        (("--device", "cuda:31"), "no such CUDA device; use cpu, cuda or cuda:1"),
        (("--blocks", "1"), "distil without a teacher"),
        (("--stage", "binary", "--stage", "bits:w=4"), "cannot end with the stage 'bits:w=4'"),
        (("--device", "gpu7"), "no such kind of device; use cpu, cuda or cuda:1"),
        (("--lr", "1e6"), "cannot fine-tune with lr 1000000.0: it must be a share"),
        (("--temperature", "2"), "cannot fine-tune with temperature 2.0: the loss of logits has no weight"),
        (("--scheme", "xnor-net"), "are for a MODEL"),
        (("--lr", "much"), "'much' is not a valid float range; `"),
        (("--teacher", "nowhere.pt"), "no such file"),
        (("--teacher", "{network}"), "it is the network itself; give the original"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(desk, trainable, tmp_path, words, why):
    words = [word.format(network=trainable) for word in words]
    said = refused("finetune", trainable, "--data", desk.data, "-o", tmp_path / "out.safetensors", *words)

    assert why in said
    assert not (tmp_path / "out.safetensors").exists()


def test_a_packed_network_is_refused_with_the_remedy(desk, tmp_path):
    said = refused("finetune", desk.net, "--data", desk.data, "-o", tmp_path / "out.safetensors")

    assert "convert with --trainable" in said


def test_a_teacher_is_asked_for_by_its_own_options(desk, trainable, tmp_path):
    given = "--data", desk.data, "--teacher", desk.checkpoint
    said = refused("finetune", trainable, *given, "-o", tmp_path / "out.safetensors")

    assert said.endswith("for a teacher the option is --teacher-arch")
    assert refused("evaluate", trainable, *given).endswith("for a teacher the option is --teacher-arch")


def test_training_without_images_is_refused(desk, tmp_path):
    result = run("convert", desk.checkpoint, "--arch", desk.factory, "--finetune", 1, "-o", tmp_path / "out")

    assert result.exit_code == 2
    assert "add --data" in result.stderr


def test_json_says_why_nothing_is_a_number(desk, trainable, tmp_path):
    result = run("finetune", trainable, "--data", desk.data, "--epochs", 1, "-o", tmp_path / "o.safetensors", "--json")

    assert json.loads(result.stdout)["training"]["stopped"] is None


def test_a_resumed_command_says_where_it_goes_on(desk, trainable, tmp_path):
    words = "finetune", trainable, "--data", desk.data, "--checkpoint", tmp_path / "run", "--resume"
    words = *words, "-o", tmp_path / "out.safetensors"

    first = run(*words, "--epochs", 1)
    second = run(*words, "--epochs", 2)

    assert f"there is no checkpoint in {tmp_path / 'run'} yet: the run starts from the beginning" in first.stderr
    assert f"the run in {tmp_path / 'run'} goes on after epoch 1\n" in second.stderr
    assert "epoch 2/2" in second.stderr
    assert "nothing was left to train" in run(*words, "--epochs", 2).stderr


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_is_told_once_where_a_run_goes_on(monkeypatch):
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    step = Step("binary", 2, 3, 1, 4, 10.0, None, 0.5, None)

    with training_bar("the run goes on") as bar:
        before = shown.getvalue()
        bar(step)
        bar(dataclasses.replace(step, done=4, val={"top1": 0.5}))

    assert "goes on" not in before
    assert shown.getvalue().count("binarize: the run goes on") == 1
    assert "binarize: after epoch 2: top-1 50.00%" in shown.getvalue()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--augment", "cifar"), "augment 'none', now it is 'cifar'"),
        (("--mean", "0.1,0.2,0.3"), "mean '0,0,0', now it is '0.1,0.2,0.3'"),
        (("--channels", "bgr"), "channels 'rgb', now it is 'bgr'"),
    ],
)
def test_images_prepared_in_another_way_do_not_continue_a_run(desk, trainable, tmp_path, options, why):
    words = "finetune", trainable, "--data", desk.data, "--checkpoint", tmp_path, "-o", tmp_path / "out.safetensors"
    assert run(*words, "--epochs", 1).exit_code == 0

    assert why in refused(*words, "--epochs", 2, "--resume", *options)
    assert "goes on after" not in run(*words, "--epochs", 2, "--resume", *options).stderr


@pytest.mark.parametrize(("inside", "where"), [("", ""), ("/run/1", " in {file}")])
def test_a_place_for_checkpoints_is_looked_at_before_anything_is_converted(desk, tmp_path, inside, where):
    (tmp_path / "file").write_text("mine")
    words = "finetune", desk.checkpoint, "--arch", desk.factory, "--data", desk.data, "-o", tmp_path / "out.safetensors"
    place = f"{tmp_path / 'file'}{inside}"

    said = run(*words, "--checkpoint", place)

    assert said.exit_code == 2
    where = where.format(file=tmp_path / "file")
    assert said.stderr == f"binarize: cannot write checkpoints to {place}{where}: it is a file; name a folder\n"
    assert (tmp_path / "file").read_text() == "mine"
