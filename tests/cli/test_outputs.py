"""Output files that are input files too: refused before any work, every file as it was."""

import os
from pathlib import Path

import numpy as np
import pytest
from cli_desk import refused


@pytest.fixture
def files(desk, tmp_path):
    """Copies of what a user has, all of which must survive."""
    model, net, recipe, data = (tmp_path / name for name in ("net.pt", "net.safetensors", "recipe.html", "data.npz"))
    model.write_bytes(Path(desk.checkpoint).read_bytes())
    net.write_bytes(Path(desk.net).read_bytes())
    recipe.write_text('scheme = "xnor-net"\n')
    np.savez(data, images=np.zeros((4, 8, 8, 3), np.uint8))
    before = {path: path.read_bytes() for path in (model, net, recipe, data)}
    yield tmp_path
    assert {path: path.read_bytes() for path in before} == before


def converting(desk, files, *more):
    words = ("convert", files / "net.pt", "--arch", desk.factory, "--recipe", files / "recipe.html")
    return (*words, "--data", f"npz:{files / 'data.npz'}", *more)


@pytest.mark.parametrize("name", ["net.pt", "recipe.html", "data.npz", "../{folder}/net.pt"])
def test_convert_does_not_overwrite_what_it_reads(name, desk, files):
    output = files / name.format(folder=files.name)

    assert "would overwrite what is read" in refused(*converting(desk, files, "-o", output))


def test_convert_does_not_overwrite_the_file_behind_a_link(desk, files):
    os.link(files / "net.pt", files / "link.safetensors")

    assert "would overwrite" in refused(*converting(desk, files, "-o", files / "link.safetensors"))


def test_the_report_does_not_overwrite_the_recipe(desk, files):
    words = converting(desk, files, "-o", files / "out.safetensors", "--report", files / "recipe.html")

    assert "would overwrite" in refused(*words)
    assert not (files / "out.safetensors").exists()


def test_the_report_is_not_the_network(desk, files):
    line = refused(*converting(desk, files, "-o", files / "out.html", "--report", files / "out.html"))

    assert "another output" in line
    assert not (files / "out.html").exists()


def test_the_code_of_the_architecture_is_not_overwritten(desk, files):
    before = (desk.folder / "nets.py").read_bytes()

    assert "would overwrite" in refused(*converting(desk, files, "-o", desk.folder / "nets.py"))
    assert (desk.folder / "nets.py").read_bytes() == before


def test_export_does_not_overwrite_the_network(files):
    assert "would overwrite" in refused("export", files / "net.safetensors", "-o", files / "net.safetensors")


def test_the_page_of_inspect_does_not_overwrite_the_recipe(desk, files):
    words = ("inspect", files / "net.pt", "--arch", desk.factory, "--recipe", files / "recipe.html")

    assert "would overwrite" in refused(*words, "--report", files / "recipe.html")


def test_convert_points_to_export_for_onnx(desk, files):
    assert "`binarize export NET -o" in refused(*converting(desk, files, "-o", files / "net.onnx"))
    assert not (files / "net.onnx").exists()
