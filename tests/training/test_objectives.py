import copy

import pytest
import torch
from torch import nn

from binarize.training.objectives import ClassifierObjective, soft_cross_entropy
from binarize.training.settings import Losses


@pytest.mark.parametrize("given", [None, 2.0])
@pytest.mark.parametrize(
    ("net", "usual"),
    [(nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), 4.0), (nn.Conv2d(3, 5, 1), 1.0)],
    ids=["images", "maps"],
)
def test_outputs_of_images_are_softened_and_those_of_pixels_are_not(net, usual, given):
    teacher, images = copy.deepcopy(net), torch.randn(6, 3, 4, 4)
    nn.init.normal_(next(teacher.parameters()))
    objective = ClassifierObjective(Losses(temperature=given).resolved(True), teacher, net)

    cost = objective(net, images)

    expected = soft_cross_entropy(net(images), teacher(images), given or usual)
    assert torch.equal(cost.terms["logits"], expected)
