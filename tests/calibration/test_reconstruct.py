"""Reconstruction of groups: it helps, it undoes what does not help, and it leaves the rest alone."""

import copy

import models
import pytest
import torch
from torch import nn

from binarize.calibrate import CalibrationSettings, calibrate
from binarize.calibration import reconstruct as module
from binarize.calibration import regions
from binarize.calibration.reconstruct import WHOLE, reconstruct
from binarize.convert import convert
from binarize.layers.branches import branch_groups
from binarize.passes.capture import capture
from binarize.passes.decompose_layers import DecomposeLayers
from binarize.recipe import Recipe
from binarize.schemes.presets import build_scheme

LAYERS = ["block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2", "block2.shortcut"]


def calibrated(scheme="encoding:w=2,a=2", net=None, layers=LAYERS):
    teacher = (net or models.Residual()).eval()
    student = capture(copy.deepcopy(teacher)).root
    parts = [student] if hasattr(student, "graph") else [part for part in student.children() if hasattr(part, "graph")]
    for part in parts:
        DecomposeLayers(dict.fromkeys(layers, build_scheme(scheme)))(part)
    batches = [(torch.randn(24, 3, 8, 8),) for _ in range(4)]
    calibrate(student, teacher, batches)
    return student, teacher, batches


def silent(stage, done, total):
    pass


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(module, "STEPS", 40)
    monkeypatch.setattr(module, "WHOLE_STEPS", 10)


@pytest.mark.usefixtures("few_steps")
def test_no_group_ends_further_from_the_teacher_and_some_end_closer():
    student, teacher, batches = calibrated("xnor-net")
    told = []

    found = reconstruct(student, teacher, batches, 0, lambda *args: told.append(args))

    assert list(found) == ["block1", "block2", WHOLE]
    assert all(fit.after <= fit.before for fit in found.values())
    assert any(fit.after < fit.before for fit in found.values())
    assert [args for args in told if args[0] == "reconstruct"] == [("reconstruct", done, 3) for done in (1, 2, 3)]
    assert told[2] == (WHOLE, 10, 10)


def test_steps_that_do_not_help_are_undone(monkeypatch, few_steps):
    monkeypatch.setattr(regions, "RATES", dict.fromkeys(regions.RATES, (1e3, 1e3)))
    student, teacher, batches = calibrated()
    before = copy.deepcopy(student.state_dict())

    found = reconstruct(student, teacher, batches, 0, silent)

    assert all(fit.after == fit.before for fit in found.values())
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())


@pytest.mark.usefixtures("few_steps")
def test_only_binary_layers_change_and_the_teacher_does_not():
    student, teacher, batches = calibrated("xnor-net")
    ours, theirs = copy.deepcopy(student.state_dict()), copy.deepcopy(teacher.state_dict())

    reconstruct(student, teacher, batches, 0, silent)

    changed = {key for key, value in student.state_dict().items() if not torch.equal(value, ours[key])}
    assert changed
    assert {".".join(key.split(".")[:2]) for key in changed} <= set(LAYERS)
    assert all(torch.equal(value, theirs[key]) for key, value in teacher.state_dict().items())


@pytest.mark.usefixtures("few_steps")
def test_the_zero_of_an_unsigned_code_stays_zero():
    student, teacher, batches = calibrated("encoding:w=3,a=3")

    reconstruct(student, teacher, batches, 0, silent)

    assert student.get_submodule("block1.conv1").activation.low.item() == 0.0


@pytest.mark.usefixtures("few_steps")
def test_parts_of_a_network_that_is_not_one_graph_are_reconstructed_too():
    student, teacher, batches = calibrated(net=models.ControlFlow(), layers=["1"])

    found = reconstruct(student, teacher, batches, 0, silent)

    assert list(found) == ["body.0.0-1", f"body.{WHOLE}"]
    assert all(fit.after <= fit.before for fit in found.values())


class Twice(nn.Module):
    """A traced part that untraceable code calls twice."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))

    def forward(self, x):
        return self.body(self.body(x)) if x.mean() < 9 else x


@pytest.mark.usefixtures("few_steps")
def test_a_part_that_is_called_twice_is_left_as_it_is():
    student, teacher, batches = calibrated(net=Twice(), layers=["2"])

    assert reconstruct(student, teacher, batches, 0, silent) == {}


@pytest.mark.usefixtures("few_steps")
def test_the_same_seed_gives_the_same_bits_and_calibrate_runs_it_when_asked():
    teacher = models.Residual().eval()
    student = capture(copy.deepcopy(teacher)).root
    DecomposeLayers(dict.fromkeys(LAYERS, build_scheme("encoding:w=2,a=2")))(student)
    other, batches = copy.deepcopy(student), [(torch.randn(24, 3, 8, 8),) for _ in range(4)]
    settings = CalibrationSettings(reconstruct=True, seed=3)

    records = [calibrate(net, teacher, batches, settings=settings) for net in (student, other)]

    assert list(records[0].groups) == ["block1", "block2", WHOLE]
    assert records[0] == records[1]
    ours, theirs = student.state_dict(), other.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.usefixtures("few_steps")
def test_branches_of_groups_come_closer_with_their_scales_and_gates():
    model, images = models.Residual().eval(), torch.randn(192, 3, 8, 8)
    recipe = Recipe(scheme="group-net:k=2", convert=("*.shortcut",))
    trained = convert(model, recipe=recipe, data=images.split(24))
    with torch.no_grad():
        for _, group in branch_groups(trained):
            group.scale.mul_(0.5)  # the closed form leaves little to gain in the few steps of a test
    before = copy.deepcopy(trained.state_dict())

    fits = reconstruct(trained, model, [(part,) for part in images.split(24)], 0, silent)

    assert list(fits) == ["block1", "block2", WHOLE]
    assert all(fits[name].after < fits[name].before for name in ("block1", "block2"))
    moved = {key for key, value in trained.state_dict().items() if not torch.equal(value, before[key])}
    assert {"block1.scale", "block2.scale", "block2.gate.theta"} <= moved
    assert {f"block2.bodies.{branch}.conv1.weight" for branch in (0, 1)} <= moved


def test_images_are_mirrored_and_moved_alike_for_both_networks():
    images = torch.arange(4 * 3 * 16 * 16.0).reshape(4, 3, 16, 16)
    pair = ((images,),) * 2

    (x,), (y,) = module._varied(pair, torch.Generator().manual_seed(0))

    assert x is y
    assert x.shape == images.shape
    assert not torch.equal(x, images)
    assert set(x.flatten().tolist()) <= {0.0, *images.flatten().tolist()}


def test_arguments_that_are_no_images_are_left_alone():
    pair = ((torch.randn(4, 8),), (torch.randn(4, 8),))

    assert module._varied(pair, torch.Generator()) is pair
