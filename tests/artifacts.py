"""What the tests of saving and loading share."""

import copy
import json

import pytest
import torch

import binarize
from binarize.artifact import files, load
from binarize.errors import ArtifactError
from binarize.passes.capture import capture
from binarize.record import Record, attach_record

EVERYTHING = binarize.Recipe(keep_first=False, keep_last=False, smallest=1)
IMAGES = torch.linspace(-2, 2, 2 * 3 * 12 * 12).sin().reshape(2, 3, 12, 12) * 2


def converted(model, scheme="encoding:w=3,a=2", recipe=EVERYTHING):
    return binarize.convert(model.eval(), IMAGES, scheme, recipe=recipe)


def captured(model, **source):
    net = capture(copy.deepcopy(model).eval())
    attach_record(net.root, Record(recipe=binarize.Recipe(), layers=(), parts=tuple(net.graphs), source=source))
    return net.root


def plain(record):
    return json.loads(json.dumps(record.to_dict()))


def assert_same(net, back, *inputs):
    a, b = net.state_dict(), back.state_dict()
    assert list(a) == list(b)
    assert all(torch.equal(a[key], b[key]) and a[key].stride() == b[key].stride() for key in a)
    assert [name for name, _ in net.named_modules()] == [name for name, _ in back.named_modules()]
    with torch.no_grad():
        torch.testing.assert_close(back(*inputs), net(*inputs), rtol=0, atol=0)


def loaded(path):
    """The network, or the error; any other error fails the test."""
    try:
        return load(path)
    except ArtifactError as error:
        return error


def one_line(error):
    return isinstance(error, ArtifactError) and "\n" not in str(error)


def refused(path, match=None):
    with pytest.raises(ArtifactError, match=match) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def forged(packed, tmp_path, change):
    """Write the file again with its description or tensors changed and a checksum that is right."""
    description, tensors = files.read(packed[1])
    change(description, tensors)
    files.write(tmp_path / "forged", description, tensors)
    return tmp_path / "forged"


def module(description, path):
    return next(entry for entry in description["modules"] if entry["path"] == path)
