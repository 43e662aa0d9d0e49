import importlib.util
from pathlib import Path
from typing import final

import pytest
import torch
from models import conv_norm_relu
from torch import fx, nn

from binarize.errors import ModelError
from binarize.passes.base import Pass, PassError, PassResult
from binarize.passes.graph import bypass, calls


@final
class DropReLU(Pass):
    def run(self, gm):
        found = calls(gm, nn.ReLU)
        for call in found:
            bypass(gm, call)
        return PassResult(tuple(call.name for call in found))


@final
class Failing(Pass):
    def __init__(self, stage, error):
        self.stage, self.error = stage, error

    def fail(self, stage):
        if stage == self.stage:
            raise self.error

    def requires(self, gm):
        self.fail("requires")

    def run(self, gm):
        self.fail("run")
        if self.stage == "lint":
            gm.graph.create_node("call_module", "nowhere")
        return PassResult()

    def ensures(self, gm):
        self.fail("ensures")


def test_a_pass_rewrites_in_place_and_regenerates_the_code():
    gm, x = fx.symbolic_trace(conv_norm_relu().eval()), torch.randn(1, 3, 8, 8)

    assert DropReLU()(gm) == PassResult(changed=("2",), skipped={})
    assert (gm(x) < 0).any()
    assert DropReLU()(gm) == PassResult()


@pytest.mark.parametrize("stage", ["requires", "run", "lint", "ensures"])
def test_a_failing_pass_is_named_with_its_stage_and_cause(stage):
    error = ZeroDivisionError("by zero")
    with pytest.raises(PassError, match=f"^pass Failing failed in {stage}: ") as caught:
        Failing(stage, error)(fx.symbolic_trace(conv_norm_relu()))
    assert stage == "lint" or caught.value.__cause__ is error


def test_an_error_that_speaks_to_the_user_goes_through_unchanged():
    error = ModelError("layer 'conv1' has NaN weights")
    with pytest.raises(ModelError) as caught:
        Failing("run", error)(fx.symbolic_trace(conv_norm_relu()))
    assert caught.value is error


def test_a_pass_must_say_what_it_does():
    with pytest.raises(TypeError, match="abstract"):
        Pass()


def test_the_folder_is_no_package_of_its_own():
    folder = Path(__file__).parents[2] / "passes" / "__init__.py"
    spec = importlib.util.spec_from_file_location("passes", folder)
    with pytest.raises(ImportError, match=r"installs as binarize\.passes"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
