"""One packed network and its file, for every test that only reads them."""

import dataclasses

import models as zoo
import pytest
import torch
from artifacts import EVERYTHING, converted

import binarize
from binarize.artifact import save


@pytest.fixture(scope="session")
def packed(tmp_path_factory):
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("artifact") / "packed.safetensors"
    recipe = dataclasses.replace(EVERYTHING, keep_first=True)  # so that a float layer is left
    net = binarize.pack(converted(zoo.Residual(), recipe=recipe))
    save(net, path)
    return net, path
