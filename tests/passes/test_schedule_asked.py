"""Whether a network runs by schedules at all: it has to be packed, and the environment may say no."""

import pytest
import torch
from torch import nn

import binarize
from binarize.errors import ModelError
from binarize.kernels.schedule import why_not_compiled
from binarize.passes.schedule import coverage, schedule

pytestmark = pytest.mark.skipif(why_not_compiled() is not None, reason="no kernels are compiled")

IMAGES = torch.randn(2, 16, 9, 9, generator=torch.Generator().manual_seed(1))
RECIPE = binarize.Recipe("xnor-net", convert=("*",), smallest=0)


def converted():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 20, 3, padding=1), nn.ReLU(), nn.Conv2d(20, 12, 3, groups=2)).eval()
    return binarize.convert(model, IMAGES, recipe=RECIPE)


def test_a_training_form_is_left_alone():
    net = converted()
    before = type(net)

    schedule(net)

    assert type(net) is before
    assert "not packed" in str(coverage(net).reason)


def test_another_word_than_on_or_off_is_refused(monkeypatch):
    net = binarize.pack(converted())
    monkeypatch.setenv("BINARIZE_SCHEDULE", "of")

    with pytest.raises(ModelError, match="BINARIZE_SCHEDULE is 'of'; set it to on or off"):
        net(IMAGES)
