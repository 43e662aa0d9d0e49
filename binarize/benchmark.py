"""Side-by-side timing: a packed network, its fp32 original in torch and ONNX Runtime, and int8 in ONNX Runtime.

All contenders take turns in one process: each turn begins with a pause, so that the spinning threads of the one before
fall asleep, then two calls to warm up, then single timed calls. Ratios are of medians of the same run.
"""

import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, final

import torch
from torch import Tensor, nn

from binarize.artifact import save
from binarize.cost import example_arguments, tensor_bytes
from binarize.data import random_images
from binarize.errors import DataError, ExportError, ModelError, SourceError, one_line
from binarize.evaluate import Evaluation, evaluate
from binarize.layers.binary import binary_layers
from binarize.passes.pack import pack
from binarize.peers import OnnxModel, OpenVinoModel, write_fp32, write_int8, write_nncf_int8
from binarize.record import record_of

__all__ = ["Benchmark", "Row", "benchmark"]

OURS, TORCH, ORT_FP32, ORT_INT8 = "binarize", "torch fp32", "onnxruntime fp32", "onnxruntime int8"
OPENVINO_FP32, OPENVINO_INT8 = "openvino fp32", "openvino int8"
PAUSE_S = 0.002
WARM_UP_CALLS, TIMED_CALLS = 2, 5
LEAST_ROUNDS = 3
ALIKE = (0.95, 1.05)  # ratios of times between these are noise
BUSY = 1.5  # a median so far above the tenth percentile was disturbed
INT8_SAMPLES = 128


@final
@dataclasses.dataclass(frozen=True)
class Row:
    """One contender.

    Attributes:
        name: who.
        median_us: median time of a call, microseconds.
        p10_us: the tenth percentile: what a quieter machine would show.
        batch: images per call.
        threads: threads it may use.
        bytes: size of its file; for torch, of its tensors.
        agreement: fraction of images on which it decides as the fp32 original; None without
            an original or without images.
        top1: accuracy as a fraction; None without labelled data.
    """

    name: str
    median_us: float
    p10_us: float
    batch: int
    threads: int
    bytes: int
    agreement: float | None = None
    top1: float | None = None


@final
@dataclasses.dataclass(frozen=True)
class Benchmark:
    """All rows of one run, ours first, and what a reader must know about them."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return dataclasses.asdict(self)

    def verdict(self) -> list[str]:
        """Return two sentences per peer, and plain ones where a peer is the better choice, or times were disturbed."""
        ours, *peers = self.rows
        lines = [f"{OURS} is {_compare(peer.median_us / ours.median_us)} {peer.name}" for peer in peers]
        lines += [f"its file is {_smaller(peer.bytes / ours.bytes)} than that of {peer.name}" for peer in peers]
        quickest = min(peers, key=lambda peer: peer.median_us, default=ours)
        if quickest.median_us <= ALIKE[0] * ours.median_us:
            lines.append(f"where speed alone counts, {quickest.name} is the better choice here")
        worst = max(self.rows, key=lambda row: row.median_us / row.p10_us)
        if worst.median_us > BUSY * worst.p10_us:
            times = f"{worst.median_us / worst.p10_us:.1f} times its tenth percentile"
            lines.append(f"the machine was busy: the median of {worst.name} is {times}; measure again when it is idle")
        return lines


@torch.inference_mode()
def benchmark(
    net: nn.Module,
    *,
    against: nn.Module | None = None,
    images: Tensor | None = None,
    data: Iterable[Any] | None = None,
    batch: int = 1,
    threads: int | None = None,
    rounds: int = 20,
    seconds: float = 30.0,
    openvino: bool = False,
) -> Benchmark:
    """Time a converted network beside its original in torch, ONNX Runtime fp32 and ONNX Runtime int8.

    Args:
        net: from `convert`, `pack` or `load`.
        against: the original; without it there is only one row.
        images: ``(n, c, h, w)`` to time on and to find int8 ranges with; noise by default.
        data: labelled batches; every contender's accuracy is then measured too.
        batch: images per call.
        threads: for all contenders alike; by default as many as torch uses.
        rounds: turns of each contender, five timed calls each.
        seconds: stop after this time, at least three rounds done.
        openvino: time it in OpenVINO too, fp32 and int8; needs the packages openvino and nncf.

    Raises:
        ModelError: the network does not run on the images, gives values that are not finite, or holds no record; or
            the original gives outputs of another shape.
        DataError: there are fewer images than one batch.
        ExportError: the fp32 peer computes something else than the original.
    """
    packed = pack(net) if any(True for _ in binary_layers(net)) else net
    real = images is not None
    images = _images(packed, images, batch)
    before = torch.get_num_threads()
    threads = threads or before
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory() as folder:
            field = _Field(packed, against, images, batch, threads, Path(folder), openvino)
        field.verify()
        times = interleave(field.calls(), rounds, seconds)
        rows = tuple(field.row(name, times[name], data, compare=real) for name in field.models)
        return Benchmark(rows, tuple(field.notes))
    finally:
        torch.set_num_threads(before)


def _images(net: nn.Module, images: Tensor | None, batch: int) -> Tensor:
    if images is None:
        shape = record_of(net).input_shape
        if shape is None:
            raise ModelError("cannot make up inputs: the network's record has no input shape; pass images")
        return random_images(shape, max(batch, 8))
    if len(images) < batch:
        raise DataError(f"cannot time batches of {batch}: there are only {len(images)} images; give more")
    return images


@final
class _Field:
    """The contenders of one run, built and checked before any of them is timed."""

    def __init__(
        self, packed: nn.Module, against: nn.Module | None, images: Tensor, batch: int, threads: int, folder: Path,
        openvino: bool,
    ) -> None:  # fmt: skip
        self.images, self.batch, self.threads = images, batch, threads
        self.arguments = example_arguments(packed, images[:batch])
        self.models: dict[str, nn.Module] = {OURS: packed.eval()}
        self.bytes: dict[str, int] = {OURS: save(packed, folder / "ours.safetensors")}
        self.notes: list[str] = []
        if against is not None:
            self.models[TORCH], self.bytes[TORCH] = against.eval(), tensor_bytes(against)
            _require_alike(packed, against, self.arguments)
            self._add_onnx(against, folder)
            if openvino and ORT_FP32 in self.models:
                self._add_openvino(folder)

    def _add_onnx(self, against: nn.Module, folder: Path) -> None:
        if not isinstance(self.arguments[0], Tensor) or len(self.arguments) > 1:
            self.notes.append("no ONNX Runtime rows: the network does not map one batch of images to one output")
            return
        fp32, int8 = folder / "fp32.onnx", folder / "int8.onnx"
        try:
            write_fp32(against, self.images[: self.batch], fp32)
            self._add(ORT_FP32, fp32)
            write_int8(fp32, self.images[: max(INT8_SAMPLES, self.batch)], int8)
            self._add(ORT_INT8, int8)
        except ExportError as error:
            self.notes.append(str(error))

    def _add_openvino(self, folder: Path) -> None:
        fp32, int8 = folder / "fp32.onnx", folder / "openvino.xml"
        try:
            self.models[OPENVINO_FP32] = OpenVinoModel(fp32, self.threads, exact=True)
            self.bytes[OPENVINO_FP32] = fp32.stat().st_size
            self.bytes[OPENVINO_INT8] = write_nncf_int8(fp32, self.images[: max(INT8_SAMPLES, self.batch)], int8)
            self.models[OPENVINO_INT8] = OpenVinoModel(int8, self.threads)
        except (ExportError, SourceError) as error:
            self.notes.append(str(error))

    def _add(self, name: str, path: Path) -> None:
        self.models[name], self.bytes[name] = OnnxModel(path, self.threads), path.stat().st_size

    def calls(self) -> dict[str, Callable[[], object]]:
        """Return what is timed."""
        return {name: _bound(model, self.arguments) for name, model in self.models.items()}

    def verify(self) -> None:
        """Check that every contender answers, and that the two fp32 ones say the same."""
        found = {name: _first_tensor(model(*self.arguments)) for name, model in self.models.items()}
        if not bool(torch.isfinite(found[OURS]).all()):
            raise ModelError("cannot time the packed network: its output holds NaN or infinite values; convert again")
        if ORT_FP32 in found:
            scale = float(found[TORCH].abs().max())
            distance = float((found[ORT_FP32] - found[TORCH]).abs().max())
            # Sums of some thousand float32 products in another order differ by 1e-5 of the largest; 1e-2 is a bug.
            if not distance <= 1e-2 * max(scale, 1e-6):
                raise ExportError(
                    f"cannot time against ONNX Runtime: fp32 outputs differ by {distance:.2g} of {scale:.2g}"
                )

    def row(self, name: str, times: Sequence[float], data: Iterable[Any] | None, compare: bool) -> Row:
        """Return the row of one contender; decisions are compared on real images only, on noise they mean nothing."""
        model = self.models[name]
        found = None if data is None else evaluate(model, data)
        top1 = found.top1 if isinstance(found, Evaluation) else None
        ordered = sorted(times)
        return Row(
            name, median(ordered), ordered[len(ordered) // 10], self.batch, self.threads, self.bytes[name],
            self._agreement(model) if compare else None, top1,
        )  # fmt: skip

    def _agreement(self, model: nn.Module) -> float | None:
        original = self.models.get(TORCH)
        if original is None or not isinstance(self.arguments[0], Tensor) or len(self.arguments) > 1:
            return None
        pairs = [[_first_tensor(m(piece)) for m in (model, original)] for piece in self.images.split(self.batch)]
        same = torch.cat([(ours.argmax(1) == theirs.argmax(1)).flatten() for ours, theirs in pairs])
        return float(same.float().mean())


def _bound(model: nn.Module, arguments: tuple[Any, ...]) -> Callable[[], object]:
    return lambda: model(*arguments)


def _require_alike(packed: nn.Module, against: nn.Module, arguments: tuple[Any, ...]) -> None:
    """Raise `ModelError` if the outputs differ in shape: the two do not do the same work."""
    ours = tuple(_first_tensor(packed(*arguments)).shape)
    remedy = "give the model that the network was made from"
    try:
        theirs = tuple(_first_tensor(against(*arguments)).shape)
    except Exception as error:  # whatever a model raises on images it was not made for
        raise ModelError(
            f"cannot run the original on the network's images: {one_line(error, 160)}; {remedy}"
        ) from error
    # A detector finds any number of boxes, so the first dimension may differ.
    if ours[1:] != theirs[1:]:
        raise ModelError(f"cannot compare outputs of shape {ours} with the original's of shape {theirs}; {remedy}")


def _first_tensor(output: Any) -> Tensor:
    """Return the first tensor of whatever a network gives: a tensor, a dict (segmentation), a list (detection)."""
    while not isinstance(output, Tensor):
        output = next(iter(output.values() if isinstance(output, Mapping) else output))
    return output


def interleave(calls: Mapping[str, Callable[[], object]], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Return the times of single calls in microseconds, contenders taking turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    for done in range(rounds):
        if done >= LEAST_ROUNDS and time.perf_counter() > end:
            break
        for name, call in calls.items():
            time.sleep(PAUSE_S)
            for _ in range(WARM_UP_CALLS):
                call()
            times[name] += [_timed(call) for _ in range(TIMED_CALLS)]
    return times


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e3


def _smaller(times: float) -> str:
    return f"{times:.1f} times smaller" if times >= 1 else f"{1 / times:.1f} times larger"


def _compare(faster: float) -> str:
    if not math.isfinite(faster) or ALIKE[0] < faster < ALIKE[1]:
        return "as fast, within 5 %, as"
    return f"{faster:.1f} times faster than" if faster > 1 else f"{1 / faster:.1f} times slower than"
