"""Small detectors of torchvision's own classes: a pyramid of two levels, one stage and two."""

from collections import OrderedDict

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

CLASSES = 3


class Pyramid(nn.Module):
    """Two maps of 32 channels, one half as large as the other."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 4, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.low = nn.Sequential(nn.Conv2d(16, 32, 3, 1, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.high = nn.Sequential(nn.Conv2d(32, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.out_channels = 32

    def forward(self, x):
        low = self.low(self.stem(x))
        return OrderedDict([("0", low), ("1", self.high(low))])


SIZES = {"min_size": 32, "max_size": 64, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}


def _anchors():
    return AnchorGenerator(((8,), (16,)), ((1.0,), (1.0,)))


def spread(model):
    """Give weights and statistics sizes as training would: what a head says then depends on what it sees."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def one_stage():
    torch.manual_seed(0)
    return spread(RetinaNet(Pyramid(), CLASSES, anchor_generator=_anchors(), score_thresh=0.005, **SIZES))


def two_stage():
    torch.manual_seed(0)
    pool = MultiScaleRoIAlign(["0", "1"], 3, 2)
    options = {"rpn_post_nms_top_n_test": 8, "rpn_post_nms_top_n_train": 8, "box_batch_size_per_image": 8}
    return spread(
        FasterRCNN(Pyramid(), CLASSES, rpn_anchor_generator=_anchors(), box_roi_pool=pool, **options, **SIZES)
    )


def batch(count=2, seed=0):
    """Return images of different sizes and one or two boxes in each."""
    generator = torch.Generator().manual_seed(seed)
    images = [torch.rand(3, 32 + 8 * index, 40, generator=generator) for index in range(count)]
    boxes = torch.tensor([[2.0, 3.0, 20.0, 24.0], [10.0, 4.0, 30.0, 18.0]])
    return images, [
        {"boxes": boxes[: 1 + index % 2], "labels": torch.ones(1 + index % 2).long()} for index in range(count)
    ]
