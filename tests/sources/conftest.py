"""A small trained network, its input and an exported program, made once."""

import pytest
import torch
import torchvision
from torch import nn


@pytest.fixture(scope="session")
def model():
    torch.manual_seed(0)
    return torchvision.models.mnasnet0_5(weights=None).eval()


@pytest.fixture(scope="session")
def x():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    """A small exported program with a dynamic batch, and the network it came from."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    path = tmp_path_factory.mktemp("program") / "small.pt2"
    dynamic = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(network, (torch.randn(2, 3, 8, 8),), dynamic_shapes=dynamic), path)
    return path, network
