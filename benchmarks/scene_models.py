"""Untrained networks for scenes, as ``--model benchmarks/scene_models.py:NAME`` of ``gpu_train.py``."""

import torchvision
from torch import nn

CAMVID, BCCD = 11, 4  # classes; of boxes the background is one


def _segmentation(name: str) -> nn.Module:
    return torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=CAMVID)


def _detection(name: str, **options: int) -> nn.Module:
    return torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=BCCD, **options)


def camvid_fcn() -> nn.Module:
    """Build FCN with a dilated ResNet-50."""
    return _segmentation("fcn_resnet50")


def camvid_deeplabv3() -> nn.Module:
    """Build DeepLabV3 with a dilated ResNet-50."""
    return _segmentation("deeplabv3_resnet50")


def camvid_lraspp() -> nn.Module:
    """Build LRASPP with a MobileNetV3."""
    return _segmentation("lraspp_mobilenet_v3_large")


def bccd_retinanet() -> nn.Module:
    """Build RetinaNet with a ResNet-50, pictures as large as they are."""
    return _detection("retinanet_resnet50_fpn", min_size=480, max_size=640)


def bccd_fasterrcnn() -> nn.Module:
    """Build Faster R-CNN with a ResNet-50, pictures as large as they are."""
    return _detection("fasterrcnn_resnet50_fpn", min_size=480, max_size=640)


def bccd_ssdlite() -> nn.Module:
    """Build SSDlite with a MobileNetV3."""
    return _detection("ssdlite320_mobilenet_v3_large")
