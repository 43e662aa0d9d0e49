"""Opening models: every kind of file, what is refused, and that nothing in a file is ever run."""

import io
import json
import os
import pickle
import sys
import zipfile
from collections import OrderedDict

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from binarize.errors import ModelError, SourceError
from binarize.sources import open_model, require_finite
from binarize.sources.builders import find_builder
from binarize.sources.files import LEGACY_MAGIC

ARCH = "mnasnet0_5"


class Runs:
    """A pickle of this makes a folder when somebody unpickles it."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


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


# Every good kind


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


@pytest.mark.parametrize("writer", WRITERS)
def test_what_was_saved_is_opened(writer, model, x, tmp_path):
    write, kind = WRITERS[writer]
    path = tmp_path / "net.pth"
    write(model, path)

    opened = open_model(str(path), arch=None if kind == "module" else ARCH)

    assert (opened.kind, opened.origin, opened.name) == (kind, "file", "net")
    assert opened.arch == (None if kind == "module" else f"torchvision:{ARCH}")
    assert len(opened.sha256) == 64
    assert not opened.model.training
    assert {p.dtype for p in opened.model.parameters()} == {torch.float32}
    with torch.inference_mode():
        assert torch.equal(opened.model(x), model(x))


@pytest.mark.parametrize("name", ["raft_small", "ssdlite320_mobilenet_v3_large", "swin_t"])
def test_whole_modules_with_functions_and_plain_classes_inside_are_opened(name, tmp_path):
    built = find_builder(name).build()
    torch.save(built, tmp_path / "whole.pt")
    opened = open_model(str(tmp_path / "whole.pt")).model
    assert str(opened) == str(built)
    torch.testing.assert_close(opened.state_dict(), built.state_dict(), rtol=0, atol=0)


def test_half_precision_is_widened(model, tmp_path):
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}, tmp_path / "h.pt")
    opened = open_model(str(tmp_path / "h.pt"), arch=ARCH)
    for ours, theirs in zip(opened.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs.half().float())


def test_a_checkpoint_says_where_the_weights_were(model, tmp_path):
    torch.save({"state_dict": model.state_dict(), "optimizer": {}, "epoch": 1}, tmp_path / "c.pt")
    assert open_model(str(tmp_path / "c.pt"), arch=ARCH).notes == (
        "weights are the checkpoint's 'state_dict'; not used: optimizer, epoch",
    )


def test_the_number_of_classes_follows_the_weights(tmp_path):
    small = torchvision.models.mnasnet0_5(weights=None, num_classes=7)
    torch.save(small.state_dict(), tmp_path / "seven.pt")
    opened = open_model(str(tmp_path / "seven.pt"), arch=ARCH)
    assert opened.model.classifier[1].out_features == 7
    assert opened.notes == ("built with num_classes=7, as the weights ask",)


def test_auxiliary_heads_follow_the_weights(tmp_path):
    net = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5)
    torch.save(net.state_dict(), tmp_path / "l.pt")
    assert "num_classes=5" in open_model(str(tmp_path / "l.pt"), arch="lraspp_mobilenet_v3_large").notes[0]

    net = torchvision.models.googlenet(weights=None, aux_logits=False, init_weights=False, num_classes=4)
    torch.save(net.state_dict(), tmp_path / "g.pt")
    opened = open_model(str(tmp_path / "g.pt"), arch="googlenet")
    assert opened.notes == ("built with aux_logits=False, num_classes=4, as the weights ask",)


def test_a_program_is_opened_as_layers(program):
    path, network = program
    opened = open_model(str(path))
    assert (opened.kind, opened.input_shape, opened.notes) == ("exported program", (3, 8, 8), ())
    assert isinstance(opened.model.get_submodule("0"), nn.Conv2d)
    batch = torch.randn(5, 3, 8, 8)
    assert torch.equal(opened.model(batch), network(batch))


def test_a_program_of_one_batch_size_says_so(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    torch.export.save(torch.export.export(net.train(), (torch.randn(2, 3, 8, 8),)), tmp_path / "fixed.pt2")
    notes = open_model(str(tmp_path / "fixed.pt2"), arch=ARCH).notes
    assert [note.split(":")[0] for note in notes] == [
        "the program was exported for batches of 2 only; export it with a dynamic batch to lift that",
        "the program was exported in train mode",
        f"--arch {ARCH} was not used",
    ]


# Names and factories


def test_a_torchvision_name_gives_random_weights_and_says_so():
    opened = open_model(f"torchvision:{ARCH}")
    assert (opened.kind, opened.origin, opened.input_shape, opened.sha256) == (
        "torchvision",
        "torchvision",
        (3, 224, 224),
        None,
    )
    assert "the weights are random" in opened.notes[0]
    assert find_builder("inception_v3").input_shape == (3, 299, 299)
    assert find_builder("fcn_resnet50").input_shape is None


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("torchvision:rsnet18", "did you mean 'resnet18'"),
        ("torchvision:quantized_resnet18", "give torchvision:resnet18"),
        ("torchvision:resnet18@BEST", "IMAGENET1K_V1, DEFAULT|IMAGENET1K_V1"),
        ("no_such_package.models:net", "No module named 'no_such_package'"),
        ("absent/nets.py:net", "cannot find the file 'absent/nets.py'"),
    ],
)
def test_a_name_that_nothing_has_is_refused(spec, match):
    refused(spec, match)


def test_published_weights_belong_to_torchvision_names(tmp_path):
    refused(tmp_path / "a.pt", "only torchvision:NAME", weights="DEFAULT")


FACTORIES = """
from dataclasses import dataclass
from blocks import width
from torch import nn

@dataclass
class Config:
    channels: "int" = width

def net(num_classes=3):
    from blocks import late
    return nn.Sequential(nn.Conv2d(3, Config().channels, 3), nn.Flatten(), nn.LazyLinear(num_classes) if late else
                         nn.Linear(Config().channels, num_classes))

ready = nn.Conv2d(3, 2, 1)
Net = type("Net", (nn.Identity,), {})

def needs(depth): ...
def wrong(): return 3
def fails(): raise ValueError("no such depth")
number = 4
"""


@pytest.fixture
def nets(tmp_path):
    for folder, width in (("a", 4), ("b", 6)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "nets.py").write_text(FACTORIES)
        (tmp_path / folder / "blocks.py").write_text(f"width = {width}\nlate = False\n")
    return tmp_path


def test_a_factory_in_a_file_finds_its_own_neighbours_and_leaves_no_trace(nets):
    path, modules = list(sys.path), set(sys.modules)
    widths = [open_model(f"{nets / folder}/nets.py:net").model[0].out_channels for folder in "ab"]
    assert widths == [4, 6]
    assert sys.path == path
    assert set(sys.modules) - modules <= {"_binarize_source_nets"}


def test_a_factory_may_be_a_class_or_a_module(nets):
    assert isinstance(open_model(f"{nets}/a/nets.py:Net").model, nn.Identity)
    assert open_model(f"{nets}/a/nets.py:ready").model.out_channels == 2
    assert open_model("torchvision.models:mnasnet0_5").origin == "factory"


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("nett", "did you mean 'net'"),
        ("needs", "missing a required argument: 'depth'"),
        ("wrong", "returned a int"),
        ("number", "it is a int"),
        ("fails", "raised ValueError: no such depth"),
    ],
)
def test_a_factory_that_does_not_build_is_refused(nets, name, match):
    refused(f"{nets}/a/nets.py:{name}", match)


def test_a_file_that_does_not_run_is_refused(tmp_path):
    (tmp_path / "broken.py").write_text("def net(:\n")
    refused(f"{tmp_path}/broken.py:net", "SyntaxError")


def test_weights_are_loaded_into_what_a_factory_built(nets):
    state = open_model(f"{nets}/a/nets.py:net").model.state_dict()
    state = {**state, "2.weight": torch.ones(9, 4), "2.bias": torch.zeros(9)}
    torch.save(state, nets / "w.pt")
    opened = open_model(str(nets / "w.pt"), arch=f"{nets}/a/nets.py:net")
    assert torch.equal(opened.model[2].weight, torch.ones(9, 4))
    assert opened.input_shape is None


# State_dicts that do not fit


def test_weights_alone_ask_for_an_architecture(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "w.pt")
    refused(tmp_path / "w.pt", "--arch")
    assert "did you mean 'mnasnet0_5'" in refused(tmp_path / "w.pt", "architecture 'mnasnet05'", arch="mnasnet05")


def test_keys_that_do_not_fit_are_named_and_counted(model, tmp_path):
    state = {**model.state_dict(), "extra.weight": torch.ones(1)}
    state["layers.0.weight"] = torch.ones(16, 3, 5, 5)
    for index in (1, 4, 7):
        for key in [key for key in state if key.startswith(f"layers.{index}.")]:
            del state[key]
    torch.save(state, tmp_path / "w.pt")
    text = refused(tmp_path / "w.pt", "1 keys unexpected: extra.weight", arch=ARCH)
    assert "keys missing: layers.1.weight, layers.1.bias, layers.1.running_mean and 9 more" in text
    assert "layers.0.weight (16x3x5x5, the model has 16x3x3x3)" in text


@pytest.mark.parametrize(
    ("held", "match"),
    [
        (torch.ones(2, 3), "a single tensor of shape 2x3"),
        ({}, "keys: none"),
        ({"epoch": 3, "loss": 0.5}, "keys: epoch, loss"),
        ([1, 2], "holds a list"),
    ],
)
def test_a_file_without_weights_is_refused(held, match, tmp_path):
    torch.save(held, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", match, arch=ARCH)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(value, model, tmp_path):
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state["layers.8.0.layers.0.weight"][0, 0, 0, 0] = value
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"layer 'layers\.8\.0\.layers\.0' .* its weight: 1 of "):
        open_model(str(tmp_path / "w.pt"), arch=ARCH)


def test_large_finite_weights_are_finite():
    layer = nn.Linear(4, 4)
    nn.init.constant_(layer.weight, torch.finfo(torch.float32).max)
    require_finite(layer)


# Files that could run code


@pytest.mark.parametrize("legacy", [False, True])
def test_a_foreign_global_never_runs(legacy, tmp_path):
    marker = tmp_path / "ran"
    held = {"state_dict": {"weight": torch.ones(1)}, "extra": Runs(marker)}
    torch.save(held, tmp_path / "evil.pt", _use_new_zipfile_serialization=not legacy)
    refused(tmp_path / "evil.pt", r"(posix|nt)\.mkdir", arch=ARCH, trust_packages=("torch",))
    assert not marker.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_bare_pickle_never_runs(protocol, tmp_path):
    marker = tmp_path / "ran"
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Runs(marker), protocol))
    refused(tmp_path / "evil.pt", "pickle|no format known")
    assert not marker.exists()


def test_a_pickle_of_protocol_4_within_a_checkpoint_never_runs(tmp_path):
    marker = tmp_path / "ran"
    torch.save({"a": Runs(marker)}, tmp_path / "evil.pt", pickle_protocol=4)
    refused(tmp_path / "evil.pt", "cannot open")
    assert not marker.exists()


def test_functions_of_torchvision_are_not_layers(tmp_path):
    class Calls:
        def __reduce__(self):
            return torchvision.models.get_model, ("alexnet",)

    torch.save(Calls(), tmp_path / "evil.pt")
    refused(tmp_path / "evil.pt", r"torchvision\.models\._api\.get_model")


def test_a_module_that_holds_source_is_refused(tmp_path):
    torch.save(torch.fx.symbolic_trace(nn.Sequential(nn.ReLU())), tmp_path / "fx.pt")
    refused(tmp_path / "fx.pt", r"its pickle names torch\.fx\.")


def test_a_class_of_a_package_is_taken_only_if_the_user_trusts_it(tmp_path, monkeypatch):
    (tmp_path / "othernets").mkdir()
    (tmp_path / "othernets" / "__init__.py").write_text("from torch import nn\nclass Net(nn.Identity): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import othernets

    torch.save(othernets.Net(), tmp_path / "net.pt")
    refused(tmp_path / "net.pt", "--trust othernets")
    assert type(open_model(str(tmp_path / "net.pt"), trust_packages=["othernets"]).model) is othernets.Net

    monkeypatch.delattr(othernets, "Net")
    refused(tmp_path / "net.pt", r"othernets\.Net, which is not installed", trust_packages=["othernets"])


def test_a_module_of_before_torch_1_6_asks_to_be_saved_again(tmp_path):
    torch.save(nn.Sequential(nn.ReLU()), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    refused(tmp_path / "old.pt", "before torch 1.6")


@pytest.mark.parametrize("entries", [["m/data.pkl", "m/constants.pkl"], ["m/code/__torch__.py", "m/data.pkl"]])
def test_torchscript_is_refused_with_the_remedy(entries, tmp_path):
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        for entry in entries:
            archive.writestr(entry, b"x")
    refused(tmp_path / "script.pt", r"it is TorchScript, .* --arch, or use torch.export.save")


# Programs that could run code


def nested(payload):
    stream = io.BytesIO()
    torch.save(payload, stream)
    return stream.getvalue()


@pytest.mark.parametrize("form", ["zip", "legacy", "bare"])
def test_a_pickle_within_a_program_never_runs(form, program, tmp_path):
    marker = tmp_path / "ran"
    stream = io.BytesIO()
    torch.save(Runs(marker), stream, _use_new_zipfile_serialization=form == "zip")
    payload = pickle.dumps(Runs(marker)) if form == "bare" else stream.getvalue()
    change = lambda name, data: payload if "sample_inputs" in name else data  # noqa: E731
    path = rewritten(program[0], tmp_path / "evil.pt2", change)
    refused(path, "sample_inputs/model.pt")
    assert not marker.exists()


@pytest.mark.parametrize(("folder", "entry"), [("weights", "weight_0"), ("constants", "opaque_obj_0")])
def test_a_payload_that_asks_for_unpickling_never_runs(folder, entry, program, tmp_path):
    marker = tmp_path / "ran"
    item = {"path_name": entry, "is_param": True, "use_pickle": True, "tensor_meta": None}

    def change(name, data):
        if name.endswith(f"data/{folder}/model_{folder}_config.json"):
            return json.dumps({"config": {"0.weight": item}})
        return nested(Runs(marker)) if name.endswith(f"data/{folder}/{entry}") else data

    path = rewritten(program[0], tmp_path / "evil.pt2", change)
    if folder == "constants":
        with zipfile.ZipFile(path, "a") as archive:
            root = archive.namelist()[0].partition("/")[0]
            archive.writestr(f"{root}/data/constants/{entry}", pickle.dumps(Runs(marker)))
    refused(path, entry)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('"torch.ops.aten.relu.default"', '"torch.hub.load"', r"calls 'torch\.hub\.load'"),
        ('"torch.ops.aten.relu.default"', '"torch.ops.load_library"', "load_library"),
        ('"torch.ops.aten.relu.default"', '"torch.ops.aten.from_file.default"', "from_file"),
        ('"torch.ops.aten.relu.default"', '"_operator.methodcaller"', "methodcaller"),
        ('"expr_str": "', '"expr_str": "exec(chr(49)) + ', "the expression .exec"),
        ('"expr_str": "', '"expr_str": "s0.func + ', r"the expression .s0\.func"),
        ('"in_spec": "', '"in_spec": "{\\"__enum__\\": true}', "names Python objects to import"),
    ],
)
def test_text_in_a_program_that_would_be_evaluated_is_refused(old, new, match, program, tmp_path):
    def change(name, data):
        if "/models/" not in name:
            return data
        assert old in data.decode()
        return data.decode().replace(old, new, 1)

    refused(rewritten(program[0], tmp_path / "evil.pt2", change), match)


@pytest.mark.parametrize("entry", ["data/aotinductor/model/m.so", "serialized_state_dict.pt", "other.pkl"])
def test_entries_that_no_plain_program_has_are_refused(entry, program, tmp_path):
    path = rewritten(program[0], tmp_path / "evil.pt2", lambda name, data: data)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{archive.namelist()[0].partition('/')[0]}/{entry}", b"x")
    refused(path, entry.replace(".", r"\."))


# Damaged and foreign files


@pytest.mark.parametrize("kind", ["pt", "legacy", "safetensors", "module"])
def test_a_file_cut_short_is_refused_at_any_length(kind, tmp_path):
    small = nn.Sequential(nn.Conv2d(3, 2, 3))
    path = tmp_path / "net.pth"
    WRITERS[kind][0](small, path)
    data = path.read_bytes()
    for length in sorted({0, 1, 2, 7, 8, 9, 20, *range(40, len(data), max(1, len(data) // 12)), len(data) - 1}):
        path.write_bytes(data[:length])
        refused(path, r"net\.pth", arch=ARCH)


def test_a_program_cut_short_is_refused(program, tmp_path):
    data = program[0].read_bytes()
    for length in (10, len(data) // 3, len(data) - 1):
        (tmp_path / "cut.pt2").write_bytes(data[:length])
        refused(tmp_path / "cut.pt2", "damaged or cut short")


def test_a_program_with_an_entry_missing_is_refused(program, tmp_path):
    for part in ("models/", "archive_version", "data/weights/weight_0"):
        change = lambda name, data, part=part: None if part in name else data  # noqa: E731
        refused(rewritten(program[0], tmp_path / "cut.pt2", change), r"cut\.pt2")


def test_a_flipped_byte_in_the_weights_is_noticed(tmp_path):
    torch.save({"weight": torch.ones(4096)}, tmp_path / "w.pt")
    data = bytearray((tmp_path / "w.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "w.pt").write_bytes(data)
    refused(tmp_path / "w.pt", "checksum|CRC", arch=ARCH)


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(
        [b"", b"PK\x03\x04", LEGACY_MAGIC, LEGACY_MAGIC + b".\x80\x02", b"\x10\0\0\0\0\0\0\0{", b"\x80\x02"]
    ),
    st.binary(max_size=300),
)
def test_garbage_is_always_a_source_error(tmp_path_factory, head, garbage):
    path = tmp_path_factory.getbasetemp() / "garbage.pt"
    path.write_bytes(head + garbage)
    refused(path, "garbage.pt")


@settings(deadline=None, max_examples=60)
@given(place=st.integers(0, 10**6), value=st.integers(0, 255))
def test_a_damaged_legacy_file_is_always_a_source_error(tmp_path_factory, place, value):
    stream = io.BytesIO()
    torch.save({"weight": torch.ones(3)}, stream, _use_new_zipfile_serialization=False)
    content = bytearray(stream.getvalue())
    content[len(LEGACY_MAGIC) + place % (len(content) - len(LEGACY_MAGIC))] = value
    path = tmp_path_factory.getbasetemp() / "damaged.pt"
    path.write_bytes(content)
    refused(path, "damaged.pt")  # left whole, it asks for --arch


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "the file is empty"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x1f\x8b\x08\x00rest", "gzip"),
    ],
)
def test_files_of_other_kinds_are_named(content, match, tmp_path):
    (tmp_path / "net.pt").write_bytes(content)
    refused(tmp_path / "net.pt", match)


def test_a_zip_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(tmp_path / "a.pt", "a zip archive of 1 entries")


def test_a_converted_network_is_not_a_model(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "net.safetensors", metadata={"binarize": "{}"})
    refused(tmp_path / "net.safetensors", "already a converted network")


def test_what_is_no_file_is_refused(tmp_path):
    refused(tmp_path, "it is a directory")
    refused(tmp_path / "absent.pt", "there is no such file")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_refused(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"x")
    (tmp_path / "a.pt").chmod(0)
    refused(tmp_path / "a.pt", "Permission denied")
