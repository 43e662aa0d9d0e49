"""What the tests of opening share: payloads that would run, refusals in one line, archives rewritten."""

import os
import zipfile
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from binarize.errors import SourceError
from binarize.sources import open_model

ARCH = "mnasnet0_5"


class Runs:
    """A pickle of this makes a folder when somebody unpickles it."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def refused(spec, match, **options):
    """The error's text, after a check that it is one line for the user."""
    with pytest.raises(SourceError, match=match) as caught:
        open_model(str(spec), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewritten(source, target, change):
    """Copy a zip archive, each entry through ``change(name, data)``; None drops it, a dict adds entries."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return target


WRITERS = {
    "pt": (lambda m, path: torch.save(m.state_dict(), path), "state_dict"),
    "legacy": (lambda m, path: torch.save(m.state_dict(), path, _use_new_zipfile_serialization=False), "state_dict"),
    "safetensors": (lambda m, path: save_file(m.state_dict(), path), "safetensors"),
    "module": (lambda m, path: torch.save(m, path), "module"),
    "module in a checkpoint": (lambda m, path: torch.save({"epoch": 3, "model": m}, path), "module"),
    "parallel module": (lambda m, path: torch.save(nn.DataParallel(m), path), "module"),
    "checkpoint": (
        lambda m, path: torch.save(
            {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in m.state_dict().items()}}, path
        ),
        "state_dict",
    ),
    "compiled and lightning": (
        lambda m, path: torch.save({"model": {f"model._orig_mod.{k}": v for k, v in m.state_dict().items()}}, path),
        "state_dict",
    ),
    "float64": (lambda m, path: torch.save({k: v.double() for k, v in m.state_dict().items()}, path), "state_dict"),
    "before num_batches_tracked": (
        lambda m, path: torch.save(
            OrderedDict((k, v) for k, v in m.state_dict().items() if "num_batches" not in k), path
        ),
        "state_dict",
    ),
}
