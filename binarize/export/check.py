"""Does an exported file decide as the packed network does? Both are run on the same images."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from binarize.errors import DataError, ExportError, one_line
from binarize.export.library import onnxruntime_library

__all__ = ["Agreement", "compare"]

CLOSE = 1e-3  # of the largest output
Runner = Callable[[Tensor], Tensor]


@final
@dataclasses.dataclass(frozen=True)
class Agreement:
    """How one runtime's outputs compare with the packed network's.

    Attributes:
        runtime: what ran the file.
        samples: images compared.
        agreed: share of decisions that are the same; a decision is the largest output along axis 1, for each image and,
            in segmentation, each pixel.
        close: share of images whose every output is within a thousandth of ``scale``. One activation next to the border
            of two codes, moved by the last bit of a sum before it, takes an image out of them and is no error.
        largest: largest difference of an output.
        scale: largest magnitude of an output of the packed network.
    """

    runtime: str
    samples: int
    agreed: float
    close: float
    largest: float
    scale: float


def compare(
    net: nn.Module, path: str | os.PathLike[str], batches: Iterable[Any], *, form: str = "functions"
) -> list[Agreement]:
    """Run a packed network and the file made of it on the same images.

    Args:
        net: the packed network.
        path: what `export_onnx` or `export_openvino` wrote.
        batches: yields images ``(n, c, h, w)``, or pairs of them and labels.
        form: of the file: "functions", "plain" (written with ``portable``) or "openvino".

    Returns:
        One `Agreement` for each runtime of that form: of "functions", with our library and with the bodies.

    Raises:
        DataError: there are no images, or the network does not take them.
        ExportError: the runtime does not run the file.
    """
    runtimes = {name: open_file(path) for name, open_file in _RUNTIMES[form].items()}
    sums = {name: _Sum() for name in runtimes}
    with torch.inference_mode():
        for batch in batches:
            images = batch[0] if isinstance(batch, tuple | list) else batch
            wanted = _outputs(net, images)
            for name, run in runtimes.items():
                sums[name].add(wanted, run(images))
    if not any(total.samples for total in sums.values()):
        raise DataError("cannot check the exported file: the data has no samples; give at least one image")
    return [total.agreement(name) for name, total in sums.items()]


@final
@dataclasses.dataclass
class _Sum:
    samples: int = 0
    decisions: int = 0
    same: int = 0
    differences: list[Tensor] = dataclasses.field(default_factory=list)  # the largest of each image
    scale: float = 0.0

    def add(self, wanted: Tensor, got: Tensor) -> None:
        axis = 1 if wanted.dim() > 1 else 0
        same = wanted.argmax(axis) == got.argmax(axis)
        self.samples += len(wanted)
        self.decisions += same.numel()
        self.same += int(same.sum())
        self.differences.append((wanted - got).abs().flatten(1).amax(1))
        self.scale = max(self.scale, float(wanted.abs().max()))

    def agreement(self, name: str) -> Agreement:
        moved = torch.cat(self.differences)
        close = int((moved <= CLOSE * self.scale).sum()) / self.samples
        return Agreement(name, self.samples, self.same / self.decisions, close, float(moved.max()), self.scale)


def _onnxruntime(path: str | os.PathLike[str], *, library: bool) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if library:
        options.register_custom_ops_library(onnxruntime_library())
    session = _named(path, lambda: onnxruntime.InferenceSession(os.fspath(path), options, providers=_PROVIDERS))
    slot, *more = session.get_inputs()
    if more:
        raise ExportError(f"cannot check {path}: it has {len(more) + 1} inputs; compare its outputs yourself")
    return lambda images: _named(
        path, lambda: torch.from_numpy(session.run(None, {slot.name: images.contiguous().numpy()})[0])
    )


def _openvino(path: str | os.PathLike[str]) -> Runner:
    from binarize.export.openvino import open_openvino

    compiled = _named(path, lambda: open_openvino(path))
    first = compiled.inputs[0].partial_shape[0]
    at_a_time = first.get_length() if first.is_static else None

    def run(images: Tensor) -> Tensor:
        size = at_a_time or len(images)
        spare = images.new_zeros(-len(images) % size, *images.shape[1:])
        pieces = torch.cat([images, spare]).split(size)
        found = [torch.from_numpy(compiled([piece.contiguous().numpy()])[0].copy()) for piece in pieces]
        return torch.cat(found)[: len(images)]

    return lambda images: _named(path, lambda: run(images))


_PROVIDERS = ["CPUExecutionProvider"]
_RUNTIMES: Mapping[str, Mapping[str, Callable[[str | os.PathLike[str]], Runner]]] = {
    "functions": {
        "ONNX Runtime with our library": functools.partial(_onnxruntime, library=True),
        "ONNX Runtime, bodies": functools.partial(_onnxruntime, library=False),
    },
    "plain": {"ONNX Runtime, standard operations": functools.partial(_onnxruntime, library=False)},
    "openvino": {"OpenVINO": _openvino},
}


def _named(path: str | os.PathLike[str], run: Callable[[], Any]) -> Any:
    """Return what ``run`` gives; whatever the runtime raises becomes an `ExportError` that names the file."""
    try:
        return run()
    except ExportError:
        raise
    except Exception as cause:  # each runtime has classes of its own for each kind of fault
        remedy = "check on images of the shape that it was exported for, or export with --dynamic-size"
        raise ExportError(f"cannot check {path}: {one_line(cause)}; {remedy}") from cause


def _outputs(net: nn.Module, images: Tensor) -> Tensor:
    """Return the first output of the packed network."""
    try:
        return _first(net(images))
    except RuntimeError as cause:
        line = str(cause).strip().splitlines()[0]
        shape = tuple(images.shape[1:])
        raise DataError(
            f"cannot check the exported file on images of shape {shape}: the network does not take them: {line}; "
            "give images of the shape that it was made for"
        ) from cause


def _first(value: Any) -> Tensor:
    """Return the first tensor of an output: what the file gives first."""
    if isinstance(value, Tensor):
        return value
    items: Sequence[Any] = list(value.values()) if isinstance(value, dict) else list(value)
    return _first(items[0])
