"""OpenVINO's form: BinaryConvolution only where it computes the very sums, standard operations elsewhere."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from binarize.convert import convert
from binarize.errors import ExportError
from binarize.export.check import compare
from binarize.passes.pack import pack
from binarize.recipe import Recipe

pytest.importorskip("openvino", reason="OpenVINO is an extra")

from binarize.export.openvino import export_openvino, open_openvino


def packed(scheme, *layers):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 1), nn.ReLU(), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, 5)
    )
    return pack(convert(model.eval(), torch.randn(8, 3, 15, 14), recipe=Recipe(scheme=scheme, smallest=1)))


def kinds(path):
    return re.findall(r'name="([^"]*)"\s+type="(\w*Convolution)"', path.read_text())


LAYERS = {
    "3x3": nn.Conv2d(32, 40, 3, padding=1),
    "strided": nn.Conv2d(32, 40, 3, 2, 1),
    "dilated": nn.Conv2d(32, 40, 3, padding=2, dilation=2),
    "5x5 unpadded": nn.Conv2d(32, 40, 5),
    "1x1": nn.Conv2d(32, 40, 1, 2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_one_plane_by_one_plane_is_a_binary_convolution_with_the_same_outputs(name, tmp_path):
    net = packed("xnor-net", LAYERS[name])
    path = export_openvino(net, tmp_path / "net.xml", batch=2)
    compiled = open_openvino(path)

    assert ("2/WithoutBiases", "BinaryConvolution") in kinds(path)
    differences = []
    for _ in range(8):
        x = torch.randn(2, 3, 15, 14)
        wanted = net(x).numpy()
        differences.append(np.abs(compiled([x.numpy()])[0] - wanted).max() / np.abs(wanted).max())
    assert np.median(differences) < 1e-5  # a sign may flip where the stem's sums come in another order


def test_what_is_not_exact_stays_standard_and_right(tmp_path):
    several = packed("encoding:w=4,a=4", nn.Conv2d(32, 40, 3, padding=1))
    grouped = packed("xnor-net", nn.Conv2d(32, 40, 3, padding=1, groups=4))
    odd = packed("xnor-net", nn.Conv2d(32, 20, 3), nn.ReLU(), nn.Conv2d(20, 40, 3))

    for number, (net, binary) in enumerate([(several, 0), (grouped, 0), (odd, 1)]):
        path = export_openvino(net, tmp_path / f"{number}.xml")
        assert [kind for _, kind in kinds(path)].count("BinaryConvolution") == binary
        (found,) = compare(net, path, [torch.randn(size, 3, 15, 14) for size in (1, 5, 6)], form="openvino")
        assert found.runtime == "OpenVINO"
        assert found.agreed >= 0.9


def test_an_open_batch_has_no_binary_convolution_and_files_tell_no_paths(tmp_path):
    net = packed("xnor-net", nn.Conv2d(32, 40, 3, padding=1))
    path = export_openvino(net, tmp_path / "net.xml", batch=None)

    assert "BinaryConvolution" not in path.read_text()
    assert open_openvino(path)([np.zeros((3, 3, 15, 14), np.float32)])[0].shape == (3, 5)
    assert str(tmp_path) not in path.read_text()
    assert path.with_suffix(".bin").stat().st_size < 40 * 32 * 9 / 8 + 4 * (3 * 32 + 40 * 5) + 8000


def test_a_name_that_does_not_end_in_xml_is_refused(tmp_path):
    with pytest.raises(ExportError, match=r"end it in .xml"):
        export_openvino(packed("xnor-net", LAYERS["1x1"]), tmp_path / "net.onnx")


OVERLAPPING = """
import gc, os, signal, sys
from binarize.export.openvino import open_openvino
first, second = open_openvino(sys.argv[1]), open_openvino(sys.argv[1])
del first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGINT, lambda number, frame: print("handled"))
os.kill(os.getpid(), signal.SIGINT)
"""


def test_a_signal_is_handled_after_files_were_closed_in_the_order_they_were_opened(tmp_path):
    path = export_openvino(packed("xnor-net", LAYERS["1x1"]), tmp_path / "net.xml")

    # faulthandler gives the main thread a stack for signals: the plugin would put its own there, and free that
    found = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", OVERLAPPING, path], capture_output=True, text=True
    )

    assert (found.returncode, found.stdout) == (0, "handled\n"), found.stderr
