"""A small trained network, its conversion, and data to fine-tune on: all quick."""

import copy
import functools

import torch
from models import Residual
from torch import nn

import binarize
from binarize.data import Images
from binarize.training.objectives import soft_cross_entropy

IMAGES = 96
CLASSES = 5


@functools.cache
def _pixels():
    """Return images of five patterns under noise, and which pattern each holds."""
    generator = torch.Generator().manual_seed(2)
    patterns = torch.randn(CLASSES, 3, 8, 8, generator=generator)
    labels = torch.arange(IMAGES) % CLASSES
    return patterns[labels] + torch.randn(IMAGES, 3, 8, 8, generator=generator), labels


@functools.cache
def _teacher():
    torch.manual_seed(1)
    model, (images, labels) = Residual(CLASSES), _pixels()
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(40):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()
    return model.eval()


def teacher():
    return copy.deepcopy(_teacher())


def data(batch_size=32, shuffle=True, augment=None):
    images, labels = _pixels()
    return Images(lambda i, _: images[list(i)], labels, range(IMAGES), batch_size, shuffle, augment=augment)


@functools.cache
def _converted(scheme):
    return binarize.convert(_teacher(), scheme=scheme, data=data(shuffle=False))


def converted(scheme="encoding:w=2,a=2"):
    return copy.deepcopy(_converted(scheme))


def gap(net):
    """Return the divergence from the teacher's decisions over all images, in evaluation mode."""
    images, _ = _pixels()
    with torch.no_grad():
        return float(soft_cross_entropy(net(images), _teacher()(images), 1.0))


def same(one, other):
    """Whether two networks hold equal values, bit for bit."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def plain():
    """Return a converted network without normalisation, whose batches are independent of each other."""
    torch.manual_seed(3)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)).eval()
    return binarize.convert(model, scheme="encoding:w=2,a=2", data=data(shuffle=False)), model
