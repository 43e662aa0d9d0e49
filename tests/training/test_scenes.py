"""Losses of segmentation and detection: what they are, where they are 0, and what they refuse."""

import copy

import detectors
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from binarize.convert import convert, plan
from binarize.errors import TrainingError
from binarize.finetune import Losses, Settings, finetune
from binarize.recipe import Recipe
from binarize.scenes import VOID
from binarize.training.scenes import detection_loss, segmentation_loss


class Segmenter(nn.Module):
    """Dilated, up-sampled again, its scores in a dict."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.wide = nn.Sequential(nn.Conv2d(16, 16, 3, padding=5, dilation=5), nn.BatchNorm2d(16), nn.ReLU())
        self.up = nn.ConvTranspose2d(16, 16, 2, 2)
        self.score = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        return {"out": self.score(torch.relu(self.up(self.wide(self.stem(x)))))}


def segmenter():
    torch.manual_seed(0)
    return detectors.spread(Segmenter())


def scenes(count=8):
    torch.manual_seed(1)
    masks = torch.randint(4, (count, 8, 12))
    masks[:, 0] = VOID
    return [(torch.randn(2, 3, 8, 12), masks[at : at + 2]) for at in range(0, count, 2)]


def test_masks_cost_their_cross_entropy_without_void():
    net, (images, masks) = segmenter(), scenes()[0]

    terms = segmentation_loss(None, labels=2.0)(net, (images, masks))

    scores = net(images)["out"].permute(0, 2, 3, 1)[masks != VOID]
    torch.testing.assert_close(terms["labels"], 2 * F.cross_entropy(scores, masks[masks != VOID]))


def test_pixels_cost_nothing_where_the_teacher_says_the_same():
    net, other, (images, _) = segmenter(), segmenter(), scenes()[0]
    nn.init.normal_(other.score.weight)

    # log-probabilities of the same numbers differ by nothing
    assert segmentation_loss(net)(net, images)["pixels"] == 0.0
    assert segmentation_loss(other)(net, images)["pixels"] > 0.01


def test_a_network_of_masks_comes_closer_to_its_teacher():
    model, data = segmenter(), scenes()
    net = convert(model, scheme="encoding:w=2,a=2", data=data)

    history = finetune(
        net, data, loss_fn=segmentation_loss(model), val=data, settings=Settings(epochs=10, lr=0.08, freeze_norm=True)
    )

    assert history.epochs[-1].loss < 0.9 * history.epochs[0].loss
    assert set(history.epochs[-1].val) == {"miou", "pixel_accuracy"}


def test_the_plain_way_compares_pixels_too():
    model, data = segmenter(), scenes()
    net = convert(model, scheme="encoding:w=2,a=2", data=data)

    history = finetune(net, data, teacher=model, settings=Settings(epochs=2, losses=Losses(labels=1.0, logits=1.0)))

    assert set(history.epochs[0].terms) == {"labels", "logits"}
    assert history.epochs[-1].loss < history.epochs[0].loss
    assert history.epochs[0].top1 is None


@pytest.mark.parametrize("build", [detectors.one_stage, detectors.two_stage])
def test_a_detector_is_no_distance_from_itself(build):
    model = build()
    torch.manual_seed(0)

    net = copy.deepcopy(model).train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # or training would normalise otherwise than the teacher
    terms = detection_loss(model)(net, detectors.batch())

    assert float(terms["features"].detach()) == 0.0
    assert float(terms["heads"].detach()) == 0.0
    assert sum(name.startswith(("loss", "classification", "bbox")) for name in terms) >= 2


@pytest.mark.parametrize("build", [detectors.one_stage, detectors.two_stage])
def test_a_detector_comes_closer_to_its_teacher_inside(build):
    model, data = build(), [detectors.batch(seed=seed) for seed in range(3)]
    net = convert(model, scheme="encoding:w=2,a=2", data=data)

    history = finetune(
        net, data, loss_fn=detection_loss(model, boxes=0.0), settings=Settings(epochs=10, lr=0.01, freeze_norm=True)
    )  # fmt: skip

    assert set(history.epochs[0].terms) == {"features", "heads"}
    # the features are at their least squares before; what the heads make of them is not
    assert history.epochs[-1].terms["heads"] < 0.9 * history.epochs[0].terms["heads"]


def test_nothing_to_minimise_is_refused():
    with pytest.raises(TrainingError, match="neither masks nor a teacher"):
        segmentation_loss(None)
    with pytest.raises(TrainingError, match="neither boxes nor a teacher"):
        detection_loss(None, boxes=0.0)
    with pytest.raises(TrainingError, match="the data has none"):
        segmentation_loss(None, labels=1.0)(segmenter(), scenes()[0][0])
    with pytest.raises(TrainingError, match="the output is a Tensor"):
        segmentation_loss(None, labels=1.0)(nn.Flatten(), scenes()[0])


@pytest.mark.parametrize("build", [detectors.one_stage, detectors.two_stage])
def test_heads_that_levels_share_are_kept_unless_asked_for(build):
    model = build()
    layers = plan(model).layers
    shared = {layer.name for layer in layers if str(layer.reason).startswith("shared: maps of 2 sizes")}

    asked = {layer.name for layer in plan(model, Recipe(keep_shared=False)).layers if layer.scheme}

    assert shared
    assert all(name.startswith(("head.", "rpn.head.")) for name in shared)
    assert shared <= asked
    assert {layer.name for layer in layers if layer.scheme} >= {"backbone.low.0", "backbone.high.0"}
    net = convert(model, scheme="xnor-net", data=[detectors.batch()])
    kept = {name for name, _ in net.named_modules()} & shared
    assert all(type(net.get_submodule(name)) is nn.Conv2d for name in kept)
    assert len(kept) == len(shared)
