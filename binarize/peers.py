"""The peers of a packed network: the same float network in ONNX Runtime or OpenVINO, as fp32 and as int8."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from binarize.errors import ExportError, ModelError, SourceError, one_line
from binarize.export.openvino import openvino_core

__all__ = ["OnnxModel", "OpenVinoModel", "write_fp32", "write_int8", "write_nncf_int8"]

OPSET = 18


@final
class OnnxModel(nn.Module):
    """A network in an ONNX file, run by ONNX Runtime on the CPU; one input, one output.

    A file of fixed batch size takes any batch all the same: it is run in pieces, the last one filled up with zeros.

    Args:
        path: the file.
        threads: that ONNX Runtime may use; its own default where None.
        library: of operations, registered first; see `binarize.onnxruntime_library`.

    Raises:
        SourceError: ONNX Runtime cannot load the file.
    """

    def __init__(self, path: Path | str, threads: int | None = None, library: str | None = None) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        if threads is not None:
            options.intra_op_num_threads = threads
        if library is not None:
            options.register_custom_ops_library(library)
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as cause:  # its exception classes are not exported
            what = str(cause).strip().partition("\n")[0]
            raise SourceError(f"cannot load {path} in ONNX Runtime: {what}; export it again") from cause
        first = self.session.get_inputs()[0]
        self.input, self.batch = first.name, first.shape[0] if isinstance(first.shape[0], int) else None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, c, h, w)`` to the first output, ``(n, ...)``."""
        if self.batch is None or len(x) == self.batch:
            return self._run(x)
        pieces = x.split(self.batch)
        filled = [torch.cat([piece, piece.new_zeros(self.batch - len(piece), *x.shape[1:])]) for piece in pieces]
        return torch.cat([self._run(piece) for piece in filled])[: len(x)]

    def _run(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise ModelError("cannot run an ONNX file on a list of images: give data that has batches of one size")
        try:
            found: Tensor = torch.from_numpy(self.session.run(None, {self.input: x.contiguous().numpy()})[0])
        except Exception as cause:  # its exception classes are not exported
            shape = "x".join(map(str, x.shape[1:]))
            remedy = "give images of the shape that it was exported for, or export with --dynamic-size"
            raise ModelError(f"cannot run the ONNX file on images of {shape}: {one_line(cause)}; {remedy}") from cause
        return found


@final
class OpenVinoModel(nn.Module):
    """A network in an ONNX file or an OpenVINO model, run by OpenVINO on the CPU; one input of one size, one output.

    Args:
        path: the file.
        threads: that OpenVINO may use; its own default where None.
        exact: compute in float32 what is not quantised; by default OpenVINO takes bfloat16 where the CPU has it.

    Raises:
        SourceError: OpenVINO is missing or cannot load the file.
    """

    def __init__(self, path: Path | str, threads: int | None = None, exact: bool = False) -> None:
        super().__init__()
        try:
            core = openvino_core()
        except ExportError as cause:
            raise SourceError(f"cannot load {path} in OpenVINO: it is not installed; pip install openvino") from cause
        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        options |= {} if threads is None else {"INFERENCE_NUM_THREADS": threads}
        options |= {"INFERENCE_PRECISION_HINT": "f32"} if exact else {}
        try:
            self.model = core.compile_model(str(path), "CPU", options)
        except RuntimeError as cause:
            what = str(cause).strip().partition("\n")[0]
            raise SourceError(f"cannot load {path} in OpenVINO: {what}; export it again") from cause
        self.request = self.model.create_infer_request()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, c, h, w)`` of the size that the file takes to its first output, ``(n, ...)``."""
        self.request.infer([x.numpy()], share_inputs=True)
        found: Tensor = torch.from_numpy(self.request.get_output_tensor(0).data.copy())
        return found


def write_fp32(model: nn.Module, images: Tensor, path: Path) -> None:
    """Export a float network with the batch size of ``images`` ``(n, c, h, w)``, by torch's own exporter.

    Raises:
        ExportError: torch cannot export it.
    """
    try:
        with _quiet():
            torch.onnx.export(
                model, (images,), path, opset_version=OPSET, dynamo=True, external_data=False, verbose=False
            )  # fmt: skip
    except Exception as cause:  # whatever tracing a user's model raises
        what = str(cause).strip().partition("\n")[0]
        raise ExportError(
            f"cannot export {type(model).__name__} as fp32 ONNX: {what}; time it without this row"
        ) from cause


def write_int8(source: Path, images: Tensor, path: Path) -> None:
    """Quantise an fp32 ONNX file: static, QDQ, weights int8 per channel, activations uint8, ranges from ``images``.

    Raises:
        ExportError: ONNX Runtime cannot quantise it.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    simplified = path.with_suffix(".simplified.onnx")
    batch = OnnxModel(source).batch or len(images)
    try:
        with _quiet():
            quant_pre_process(source, simplified)
            quantization.quantize_static(
                simplified, path, _Images(simplified, images, batch),
                quant_format=quantization.QuantFormat.QDQ, per_channel=True,
                activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
            )  # fmt: skip
    except Exception as cause:
        what = str(cause).strip().partition("\n")[0]
        raise ExportError(f"cannot make the int8 peer: ONNX Runtime says {what}; time without this row") from cause


def write_nncf_int8(source: Path, images: Tensor, path: Path) -> int:
    """Quantise an fp32 ONNX file as OpenVINO's users do, by NNCF with its preset for residual networks.

    Args:
        source: the fp32 file, of one batch size.
        images: ``(n, c, h, w)`` to find ranges with.
        path: the OpenVINO model to write, ``.xml``.

    Returns:
        Bytes of the model and its weights.

    Raises:
        ExportError: NNCF is missing or cannot quantise it.
    """
    try:
        import openvino
        from nncf import Dataset, QuantizationPreset, quantize  # an empty namespace of this name may be left behind
    except ImportError as cause:
        raise ExportError("cannot quantise for OpenVINO: there is no NNCF; pip install 'binarize[peers]'") from cause
    batch = OnnxModel(source).batch or len(images)
    pieces = [piece.numpy() for piece in images.split(batch) if len(piece) == batch]
    with _quiet():
        made = quantize(openvino_core().read_model(str(source)), Dataset(pieces), preset=QuantizationPreset.MIXED)
        openvino.save_model(made, str(path), compress_to_fp16=False)
    return path.stat().st_size + path.with_suffix(".bin").stat().st_size


@final
class _Images:
    """What `quantize_static` reads its samples from: batches of the size that the file takes, whole ones only."""

    def __init__(self, path: Path, images: Tensor, batch: int) -> None:
        name = OnnxModel(path).input
        whole = images[: max(len(images) // batch, 1) * batch]
        self.feeds = iter([{name: piece.numpy()} for piece in whole.split(batch)])

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch, or None after the last."""
        return next(self.feeds, None)

    def __iter__(self) -> "_Images":
        return self

    def __next__(self) -> dict[str, Any]:
        return next(self.feeds)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what the exporters print and log: it is about them, not about the user's network."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
