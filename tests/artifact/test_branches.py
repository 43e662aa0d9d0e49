"""Networks of branches in files: back bit for bit, and what does not fit together is refused."""

import subprocess
import sys

import group_nets
import pytest
from artifacts import assert_same, forged, module, refused
from group_nets import FORMS, IMAGES

import binarize
from binarize.artifact import load, save


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["training", "packed"])
def test_branches_come_back_bit_for_bit(form, kind, tmp_path):
    net = group_nets.net(**FORMS[form])
    net = binarize.pack(net) if kind == "packed" else net
    save(net, tmp_path / "net.safetensors")
    back = load(tmp_path / "net.safetensors")

    assert_same(net, back, IMAGES)
    for one, other in ((net.first, back.first), (net.second, back.second)):
        assert (one.origin, one.hands_on, one.sparse) == (other.origin, other.hands_on, other.sparse)
        assert one.extra_repr() == other.extra_repr()
    save(back, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "net.safetensors").read_bytes()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("branches") / "net.safetensors"
    save(binarize.pack(group_nets.net(3, executed=2, gates=3)), path)
    return None, path


def test_routed_branches_load_and_run_without_the_compiler(file):
    run = f"net = binarize.load({str(file[1])!r}); net(torch.zeros({tuple(IMAGES.shape)}))"
    code = f"import sys, torch, binarize; {run}; print('torch._dynamo' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"


def edit(path, **arguments):
    return lambda description, _: module(description, path)["arguments"].update(arguments)


def without(prefix):
    def change(description, tensors):
        description["modules"] = [e for e in description["modules"] if not f"{e['path']}.".startswith(prefix)]
        for key in [key for key in tensors if key.startswith(prefix)]:
            del tensors[key]

    return change


def swapped(path):
    """Put a plain layer where a gate, a router or a body stands."""

    def change(description, tensors):
        without(f"{path}.")(description, tensors)
        description["modules"].append({"path": path, "class": "torch.nn.ReLU"})

    return change


CHANGES = {
    "another count": edit("first", count=4),
    "no branches": edit("first", count=0),
    "a body less": without("first.bodies.2."),
    "a body that is a layer": swapped("first.bodies.1"),
    "no bodies": without("first.bodies."),
    "a router that is a layer": swapped("first.router"),
    "a gate that is a layer": swapped("second.gate"),
    "a gate of another count": edit("second.gate", count=2),
    "a scale for other branches": lambda _, tensors: tensors.update({"first.scale": tensors["first.scale"][:2]}),
    "no scale": edit("first", scaled=False),
    "more executed than stored": edit("first.router", executed=4),
    "none executed": edit("first.router", executed=0),
    "a router for others": edit("first.router", stored=5),
    "absurd channels": edit("first.router", channels=10**15),
    "fractions": edit("first.router", executed=1.5),
    "a word for a flag": edit("first", sparse="yes"),
    "sparse without a router": without("first.router."),
    "shared without a router": lambda *given: [
        change(*given) for change in (without("first.router."), edit("first", sparse=False, shared=True))
    ],
    "an origin that is no path": edit("first", origin={"conv1": "__import__('os')"}),
    "an origin of no path": edit("first", origin={"a b": "conv1"}),
    "no origin": edit("first", origin=["conv1"]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_branches_that_do_not_fit_together_are_refused(file, tmp_path, name):
    refused(forged(file, tmp_path, CHANGES[name]))


def test_the_file_that_the_forgeries_start_from_is_good(file):
    assert load(file[1])(IMAGES).shape == (4, 5)


@pytest.mark.parametrize("choice", [None, "any K of the N"])
def test_a_router_that_chose_otherwise_is_refused(file, tmp_path, choice):
    def change(description, _):
        arguments = module(description, "first.router")["arguments"]
        del arguments["chooses"]
        arguments.update({} if choice is None else {"chooses": choice})

    refused(forged(file, tmp_path, change), "an earlier version, which chose otherwise; convert the model again")
