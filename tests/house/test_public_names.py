"""What a user imports: every name is there, quickly, and stays itself whatever was imported before."""

import importlib
import subprocess
import sys

import pytest

import binarize


@pytest.mark.parametrize("name", binarize.__all__)
def test_every_public_name_can_be_imported(name):
    assert getattr(binarize, name) is not None
    assert name in dir(binarize)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'banana'"):
        binarize.banana  # noqa: B018


@pytest.mark.parametrize("name", ["benchmark", "convert", "evaluate"])
def test_importing_a_module_does_not_hide_the_function_of_its_name(name):
    code = f"from binarize.{name} import {name} as inside; import binarize; assert binarize.{name} is inside"

    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", sorted(set(binarize.__all__) - {"__version__"}))
def test_every_public_name_says_what_it_is(name):
    assert getattr(binarize, name).__doc__


def test_importing_the_package_imports_nothing_heavy_beside_torch():
    heavy = ("torchvision", "onnx", "onnxruntime", "onnxscript", "scipy", "sklearn", "rich", "jinja2")
    code = f"import sys, binarize; print([name for name in {heavy} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("room", ["layers.packed", "convert", "artifact", "report", "benchmark", "export.onnx", "data"])
def test_a_room_says_what_is_public_in_it(room):
    module = importlib.import_module(f"binarize.{room}")

    assert module.__all__
    assert all(hasattr(module, name) for name in module.__all__)
