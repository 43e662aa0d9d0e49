"""Nothing is half-written and nothing half-loaded."""

import json
import os

import pytest
import torch
from artifacts import IMAGES, assert_same, captured, loaded, one_line
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import fx, nn

from binarize.artifact import files, is_artifact, load, replacing, save
from binarize.errors import ArtifactError, ModelError, OutputError


def test_a_network_that_was_not_converted_is_refused():
    with pytest.raises(ModelError, match="was not made by convert or load"):
        save(nn.Linear(2, 2), "nowhere.safetensors")


def _shout(x):
    return x * 2


fx.wrap("_shout")


class Shouting(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return _shout(self.conv(x))


def test_a_function_of_the_user_is_named_in_the_refusal(tmp_path):
    with pytest.raises(ArtifactError, match=r"node '_shout' calls \S*\._shout, which no file holds"):
        save(captured(Shouting()), tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "seen"), [("missing/net.safetensors", "there is no folder"), ("folder", "it is a folder")]
)
def test_an_unwritable_output_is_one_line(packed, tmp_path, name, seen):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=seen) as caught:
        save(packed[0], tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="no device files here")  # noqa: PTH110  style of os.devnull
def test_a_device_is_not_replaced(packed):
    with pytest.raises(OutputError, match="no regular file"):
        save(packed[0], os.devnull)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), RuntimeError("other")])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(packed, tmp_path, monkeypatch, error):
    path = tmp_path / "net.safetensors"
    path.write_bytes(b"old")

    def half(tensors, name, metadata):
        name.write_bytes(b"half a file")
        raise error

    monkeypatch.setattr(files, "save_file", half)
    with pytest.raises((KeyboardInterrupt, OutputError, RuntimeError)) as caught:
        save(packed[0], path)
    if isinstance(error, OSError):
        assert str(caught.value) == f"cannot write {str(path)!r}: No space left on device; choose another place"
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["net.safetensors"]  # noqa: PTH208  hidden files too


def test_a_full_disk_is_told_as_such(packed, tmp_path):
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    path = tmp_path / "net.safetensors"
    path.write_bytes(b"old")
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
    try:
        with pytest.raises(OutputError, match="cannot write"):
            save(packed[0], path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["net.safetensors"]  # noqa: PTH208  hidden files too


def test_a_replaced_file_keeps_its_mode_and_a_link_its_target(packed, tmp_path):
    path, link = tmp_path / "net.safetensors", tmp_path / "link.safetensors"
    path.write_bytes(b"old")
    path.chmod(0o640)
    link.symlink_to(path)
    save(packed[0], link)
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    assert is_artifact(path)


def test_replacing_serves_other_writers(tmp_path):
    with replacing(tmp_path / "report.html") as draft:
        draft.write_text("done")
        assert not (tmp_path / "report.html").exists()
    assert (tmp_path / "report.html").read_text() == "done"
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "report.html") as draft:
        draft.write_text(str(1 / 0))
    assert (tmp_path / "report.html").read_text() == "done"


def refused(path, match=None):
    with pytest.raises(ArtifactError, match=match) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_files_that_are_none_are_told_apart(packed, tmp_path):
    refused(tmp_path / "missing", "there is no such file")
    (tmp_path / "garbage").write_bytes(b"\x80\x02garbage" * 99)
    refused(tmp_path / "garbage", "damaged or cut short")
    (tmp_path / "empty").write_bytes(b"")
    refused(tmp_path / "empty", "damaged or cut short")
    save_file({"a": torch.zeros(2)}, tmp_path / "weights")
    refused(tmp_path / "weights", "without a network in it")
    assert is_artifact(packed[1])
    assert not any(is_artifact(tmp_path / name) for name in ("missing", "garbage", "empty", "weights"))


@pytest.mark.parametrize("length", [100, -1])
def test_an_artifact_cut_short_is_still_known_as_one(length, packed, tmp_path):
    (tmp_path / "cut").write_bytes(packed[1].read_bytes()[:length])

    assert is_artifact(tmp_path / "cut")


def test_a_newer_format_is_refused_before_anything_else_is_read(packed, tmp_path):
    save_file({}, tmp_path / "new", metadata={"binarize": json.dumps({"format": 2, "future": True})})
    refused(tmp_path / "new", "its format is 2, this version reads up to 1; install a newer binarize")


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_and_cut_bytes_are_found(packed, tmp_path, data):
    net, path = packed
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    place = data.draw(st.integers(0, 15) | st.integers(0, header - 1) | st.integers(0, len(content) - 1))
    if data.draw(st.integers(0, 4)) == 0:
        content = content[:place]
    else:
        content[place] ^= data.draw(st.integers(1, 255))
    (tmp_path / "damaged").write_bytes(content)
    back = loaded(tmp_path / "damaged")
    if not one_line(back):
        assert_same(net, back, IMAGES)
