"""Networks whose branches a router chooses, in training."""

import copy

import pytest
import torch
from training_desk import converted, data, same, teacher

import binarize
from binarize.errors import TrainingError
from binarize.finetune import finetune


def test_routers_are_kept_from_using_few_branches():
    history = finetune(converted("group-net:k=2,stored=3"), data(), teacher=teacher(), epochs=1)

    assert history.epochs[0].terms["balance"] > 0


def test_a_routed_network_says_where_images_are_not_finite():
    images, labels = next(iter(data()))
    with pytest.raises(TrainingError, match="is not finite; the first bad layer is"):
        finetune(converted("group-net:k=2,stored=4"), [(images * torch.nan, labels)], teacher=teacher(), epochs=1)


@pytest.mark.parametrize("packed", [False, True])
def test_a_routed_network_takes_no_image_at_all(packed):
    net = converted("group-net:k=2,stored=4")
    ready = binarize.pack(net) if packed else net.eval()

    assert ready(torch.zeros(0, 3, 8, 8)).shape == (0, 5)


def test_a_routed_network_can_be_copied_in_the_middle_of_training():
    net = converted("group-net:k=2,stored=3").train()
    net(next(iter(data()))[0]).sum().backward()

    assert same(copy.deepcopy(net), net)


def test_a_routed_network_can_be_copied_and_packed_after_training():
    net = converted("group-net:k=2,stored=3")

    finetune(net, data(), teacher=teacher(), epochs=1)

    assert same(copy.deepcopy(net), net)
    assert binarize.pack(net)(torch.randn(2, 3, 8, 8)).shape == (2, 5)
