"""One packed network and its file, for every test that only reads them."""

import models as zoo
import pytest
import torch
from artifacts import converted

import binarize
from binarize.artifact import save


@pytest.fixture(scope="session")
def packed(tmp_path_factory):
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("artifact") / "packed.safetensors"
    net = binarize.pack(converted(zoo.Residual()))
    save(net, path)
    return net, path
