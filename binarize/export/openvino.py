"""`export_openvino`: a packed network as OpenVINO's intermediate representation, an .xml and a .bin.

It is made of the plain ONNX form. Convolutions of one plane by one plane become `BinaryConvolution` where that computes
the very same sums in OpenVINO's CPU plugin, found by trial and tested: images of fixed shape, one group, a multiple of
32 channels. The plugin leaves padded taps out where the pad value is 0, which is what zero padding means here. All else
stays standard operations on weights that are bits in the file.
"""

import functools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from binarize.artifact.files import replacing
from binarize.errors import ExportError
from binarize.export.onnx import export_onnx
from binarize.layers.packed import PackedConv2d, PackedLayer
from binarize.passes.fuse import packed_layers

__all__ = ["export_openvino", "open_openvino", "openvino_core", "why_not_binary"]

_LANES = 32  # channels that the plugin's kernel takes together; with others it computes something else


def export_openvino(
    net: nn.Module,
    path: str | os.PathLike[str],
    *,
    example_inputs: Any = None,
    batch: int | None = 1,
    dynamic_size: bool = False,
) -> Path:
    """Write a packed network as OpenVINO IR: ``path``, which ends in .xml, and the weights beside it in a .bin.

    Args:
        net: packed network, as `pack` or `load` return it; left as it is.
        path: file to write.
        example_inputs: as for `export_onnx`.
        batch: images of a batch, fixed; None leaves it open. The plugin has no `BinaryConvolution` of open shapes, so
            that with None, or with ``dynamic_size``, every operation is a standard one.
        dynamic_size: leave height and width open.

    Returns:
        The path written.

    Raises:
        ExportError: OpenVINO is not installed, ``path`` does not end in .xml, or the network cannot be exported.
        OutputError: a file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".xml":
        raise ExportError(
            f"cannot write OpenVINO IR to {path}: its weights go into a .bin beside an .xml; end it in .xml"
        )
    openvino = _openvino()
    with tempfile.TemporaryDirectory() as folder:
        plain = export_onnx(
            net, Path(folder) / "plain.onnx", example_inputs=example_inputs, dynamic_size=dynamic_size, portable=True
        )
        model = openvino_core().read_model(plain.read_bytes())
        if batch is not None:
            for slot in model.inputs:
                shape = slot.get_partial_shape()
                shape[0] = batch
                slot.get_node().set_partial_shape(shape)
            model.validate_nodes_and_infer_types()
            if not dynamic_size:
                _use_binary(openvino, model, dict(packed_layers(net)))
        draft = Path(folder) / "made.xml"
        openvino.serialize(model, draft, draft.with_suffix(".bin"))
        for made, final in ((draft.with_suffix(".bin"), path.with_suffix(".bin")), (draft, path)):
            with replacing(final) as written:
                written.write_bytes(made.read_bytes())
    return path


@functools.cache
def openvino_core() -> Any:
    """Return OpenVINO's core: one for the process, never freed.

    Its CPU plugin replaces the stack that signal handlers of the thread run on and, freed, puts the one before back. Of
    two plugins freed in the order they were made, or of one freed in another thread, a stack is left that is not there
    any more: the next signal, such as that of Ctrl-C, would end the process without a word.

    Raises:
        ExportError: OpenVINO is not installed.
    """
    return _openvino().Core()


def open_openvino(path: str | os.PathLike[str]) -> Any:
    """Return the file compiled for the CPU, in float32: by itself OpenVINO may round to bfloat16 before a sign."""
    core = openvino_core()
    return core.compile_model(core.read_model(os.fspath(path)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def why_not_binary(layer: PackedLayer) -> str | None:
    """Return why `BinaryConvolution` would not compute what ``layer`` does, or None."""
    geometry = layer.geometry
    if not isinstance(layer, PackedConv2d):
        return "it is no convolution"
    if (geometry.weight_terms, geometry.activation_terms) != ((1,), (1,)):
        return "its weight or its activation has several planes"
    if geometry.groups != 1 or geometry.channels % _LANES:
        return f"it has groups, or channels that are no multiple of {_LANES}"
    return None


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as cause:
        raise ExportError(
            "cannot write OpenVINO IR: openvino is not installed; pip install 'binarize[openvino]'"
        ) from cause
    return openvino


def _use_binary(openvino: Any, model: Any, layers: dict[str, PackedLayer]) -> None:
    """Put a `BinaryConvolution` in the place of every convolution that it computes exactly."""
    for convolution in list(_convolutions(model)):
        layer = layers.get(convolution.get_friendly_name().removesuffix("/WithoutBiases"))
        if layer is not None and why_not_binary(layer) is None:
            convolution.output(0).replace(_binary(openvino, convolution, layer).output(0))
    model.validate_nodes_and_infer_types()


def _convolutions(model: Any) -> Iterator[Any]:
    return (node for node in model.get_ordered_ops() if node.get_type_name() == "Convolution")


def _binary(openvino: Any, convolution: Any, layer: PackedLayer) -> Any:
    """Return the products of code + low / step, which the convolution reads, with scale times the sign.

    With s = 2 code - 1 they are scale (binary products of s / 2 + (low / step + 1 / 2) sum of signs). The sum goes over
    the taps inside the image: a small convolution of ones, which OpenVINO folds when it loads the file.
    """
    from openvino import opset13

    def constant(value: float) -> Any:
        return opset13.constant(np.full((1, 1, 1, 1), value, np.float32))

    geometry, offset = layer.geometry, layer.activation.low / layer.activation.step[0]
    middle, odd = constant(offset + 0.5), layer.odd()[0]
    digits = opset13.fake_quantize(convolution.input_value(0), middle, middle, constant(0.0), constant(1.0), 2)
    positive = np.packbits((odd > 0).numpy().reshape(-1), bitorder="little")
    bits = openvino.Tensor(openvino.Type.u1, openvino.Shape(list(odd.shape)))  # owns its memory, which a view would not
    bits.data[:] = positive
    filters = opset13.constant(bits)
    pads, strides, dilations = (list(pair) for pair in (geometry.padding, geometry.stride, geometry.dilation))
    products = opset13.binary_convolution(digits, filters, strides, pads, pads, dilations, "xnor-popcount", 0.0)
    products.set_friendly_name(convolution.get_friendly_name())
    height, width = list(convolution.input_value(0).get_shape())[2:]
    ones = opset13.broadcast(constant(1.0), opset13.constant(np.array([1, 1, height, width], np.int64)))
    sums = opset13.constant(odd.sum(1, keepdim=True).float().numpy())
    inside = opset13.convolution(ones, sums, strides, pads, pads, dilations)
    whole = opset13.add(opset13.multiply(products, constant(0.5)), opset13.multiply(inside, middle))
    return opset13.multiply(whole, opset13.constant(layer.scale.reshape(1, -1, 1, 1).numpy()))
