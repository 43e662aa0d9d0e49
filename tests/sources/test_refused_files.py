"""Files that could run code, and damaged ones: refused, and nothing in them is ever run."""

import importlib
import io
import json
import os
import pickle
import sys
import zipfile

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from source_files import ARCH, WRITERS, Runs, refused, rewritten
from torch import nn

from binarize.cli import COMMANDS
from binarize.sources import open_model
from binarize.sources.files import LEGACY_MAGIC

# Files that could run code


def test_a_trusted_module_may_lie_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "mycnn.py").write_text("from torch import nn\n\n\nclass Net(nn.Conv2d):\n    pass\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    with monkeypatch.context() as there:
        there.syspath_prepend(tmp_path)
        torch.save(importlib.import_module("mycnn").Net(3, 4, 1), "net.pt")
    del sys.modules["mycnn"]

    assert type(open_model("net.pt", trust_packages=("mycnn",)).model).__name__ == "Net"
    assert sys.path == before
    assert "mycnn" not in sys.modules


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
    line = refused(tmp_path / "net.safetensors", "already a converted network")
    takers = line.partition("; ")[2].partition(" take it")[0].replace(" and ", ", ").split(", ")
    assert set(takers) <= {command.name for command in COMMANDS}


def test_what_is_no_file_is_refused(tmp_path):
    refused(tmp_path, "it is a directory")
    refused(tmp_path / "absent.pt", "there is no such file")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_refused(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"x")
    (tmp_path / "a.pt").chmod(0)
    refused(tmp_path / "a.pt", "Permission denied")
