"""Files that somebody made up, with a checksum that is right: no code runs, and every one is refused in one line."""

import json

import pytest
import torch
from artifacts import forged, loaded, module, one_line, refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn


def nodes(description):
    return module(description, "")["graph"]["nodes"]


FORBIDDEN = [
    "os.system", "builtins.eval", "builtins.exec", "builtins.open", "builtins.__import__", "builtins.setattr",
    "torch.load", "torch.save", "torch.compile", "torch.jit.load", "torch.hub.load", "torch.from_file",
    "torch.ops.load_library", "torch.ops.aten.from_file.default", "torch.ops.aten.add.__class__",
    "torch.utils.cpp_extension.load", "operator.attrgetter", "operator.methodcaller", "operator.call",
    "torch.nn.functional.torch.load", "math.__loader__", "torchvision.io.read_file", "torchvision.models.resnet18",
    "subprocess.run", "torch.distributed.rpc.rpc_sync", "",
]  # fmt: skip


@pytest.mark.parametrize("target", FORBIDDEN)
def test_a_function_outside_the_list_is_refused(packed, tmp_path, target):
    call = ["evil", "call_function", target, ["true"]]
    refused(forged(packed, tmp_path, lambda d, _: nodes(d).insert(1, call)), "not on the list of operations")


@pytest.mark.parametrize(
    "target", ["__reduce_ex__", "apply_", "register_hook", "__getattribute__", "numpy", "format", "set_"]
)
def test_a_method_outside_the_list_is_refused(packed, tmp_path, target):
    call = ["evil", "call_method", target, [{"node": "x"}]]
    refused(forged(packed, tmp_path, lambda d, _: nodes(d).insert(1, call)), "calls the method")


@pytest.mark.parametrize(
    "arguments",
    [["__globals__"], ["__class__"], ["grad_fn"], ["shape", 1], [{"node": "x"}], [["shape"]], []],
    ids=str,
)
def test_an_attribute_outside_the_list_is_refused(packed, tmp_path, arguments):
    call = ["evil", "call_function", "builtins.getattr", [{"node": "x"}, *arguments]]
    refused(forged(packed, tmp_path, lambda d, _: nodes(d).insert(1, call)))


CODE = "__import__('os').system('touch EVIL')"


@pytest.mark.parametrize(
    "node",
    [
        [f"a = {CODE}", "call_function", "torch.relu", [{"node": "x"}]],
        ["a", "placeholder", f"a={CODE}", []],
        ["a", "placeholder", "***a", []],
        ["a", "call_function", "torch.relu", [], {f"input={CODE}, x": {"node": "x"}}],
        ["a", "call_function", "torch.relu", [{"node": "x"}], {"class": 1}],
        ["a", "call_module", f'stem.0") or {CODE} or ("', [{"node": "x"}]],
        ["a", "call_module", "stem.0.forward", [{"node": "x"}]],
        ["a", "call_module", "missing", [{"node": "x"}]],
        ["a", "get_attr", "stem.0.__class__", []],
        ["a", "get_attr", "__init__.__globals__", []],
        ["a", "get_attr", f'stem.0.weight" + {CODE} + "', []],
        ["a", CODE, "torch.relu", []],
        ["a", "output", CODE, []],
        ["a", "call_function", "torch.relu", [{"node": "later"}]],
        ["a", "call_function", "torch.relu", [{"eval": CODE}]],
        ["a", "call_function", "torch.relu", [{"dtype": "load"}]],
        ["x", "call_function", "torch.relu", [{"node": "x"}]],
    ],
    ids=str,
)
def test_nothing_in_a_graph_becomes_code(packed, tmp_path, node, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(forged(packed, tmp_path, lambda d, _: nodes(d).insert(1, node)))
    assert not (tmp_path / "EVIL").exists()


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "torch.nn.Module.__class__",
        "torch.nn.modules.module.Module",
        "torch.nn.DataParallel",
        "models.Block",
    ],
)
def test_a_class_outside_the_list_is_refused(packed, tmp_path, name):
    def change(description, _):
        module(description, "stem.2")["class"] = name

    refused(forged(packed, tmp_path, change), "not on the list of layers")


@pytest.mark.parametrize("key", ["forward", "__class__", "_forward_hooks", "training", "a b", "register_buffer"])
def test_only_plain_attributes_are_set(packed, tmp_path, key):
    def change(description, _):
        module(description, "stem.2")["attributes"] = {key: 1}

    refused(forged(packed, tmp_path, change), "no plain attribute")


def _edit(path, **arguments):
    def change(description, _):
        module(description, path)["arguments"].update(arguments)

    return change


def _geometry(**sizes):
    return lambda description, _: module(description, "block1.conv1")["arguments"]["geometry"].update(sizes)


CHANGES = {
    "a tensor less": lambda _, tensors: tensors.pop("block1.conv1.bits"),
    "a tensor more": lambda _, tensors: tensors.update(extra=torch.zeros(1)),
    "another shape": lambda _, tensors: tensors.update({"fc.bias": torch.zeros(6)}),
    "another type": lambda _, tensors: tensors.update({"block1.conv1.bits": tensors["block1.conv1.bits"].int()}),
    "a module less": lambda d, _: d["modules"].remove(module(d, "block1.conv1")),
    "a module more": lambda d, _: d["modules"].append({"path": "nowhere.at.all", "class": "torch.nn.ReLU"}),
    "no modules": lambda d, _: d.update(modules=[]),
    "a module like itself": lambda d, _: module(d, "stem.2").update(same_as="block1.relu"),
    "no record": lambda d, _: d.pop("record"),
    "another record": lambda d, _: d["record"].update(source=3),
    "an unknown recipe": lambda d, _: d["record"]["recipe"].update(nonsense=1),
    "strides beyond the memory": lambda d, _: d["strides"].update({"block1.conv1.scale": [1 << 40, 1]}),
    "overlapping strides": lambda d, _: d["strides"].update({"block1.conv1.scale": [0, 0]}),
    "stride zero": _geometry(stride=[0, 0]),
    "no channels": _geometry(channels=0),
    "absurd channels": _geometry(channels=10**15, out_channels=10**15),
    "negative padding": _geometry(padding=[-1, 0]),
    "fractions": _geometry(dilation=[1.5, 1]),
    "other planes": _geometry(activation_terms=[7]),
    "uneven groups": _geometry(groups=3),
    "absurd crop": _edit("block1.conv1", crop=[-1, 0]),
    "absurd float layer": _edit("stem.2", inplace=3, nonsense=4),
    "no output": lambda d, _: nodes(d).pop(),
    "deep nesting": lambda d, _: nodes(d)[0].__setitem__(3, json.loads("[" * 900 + "]" * 900)),
    "tensor instead of module": lambda d, _: module(d, "stem").update(buffers=["forward"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_description_that_does_not_fit_is_refused(packed, tmp_path, name):
    refused(forged(packed, tmp_path, CHANGES[name]))


def _places(value, path=()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from _places(inner, (*path, key))


ODD = st.sampled_from(
    [None, -1, 0, 3, 10**13, 0.5, "", "x", "conv1", "torch.nn.Conv2d", "a\nb", [], {}, [1, 2], {"tuple": [1]}]
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_description_makes_loading_fail_in_another_way(packed, tmp_path, data):
    def change(description, _):
        path = data.draw(st.sampled_from([*_places(description)]))
        home = description
        for key in path[:-1]:
            home = home[key]
        home[path[-1]] = data.draw(ODD)

    back = loaded(forged(packed, tmp_path, change))
    assert isinstance(back, nn.Module) or one_line(back)
