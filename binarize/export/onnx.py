"""`export_onnx`: a packed network as one ONNX file that any runtime can run."""

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from binarize.artifact.files import replacing
from binarize.errors import ExportError, ModelError
from binarize.export.clean import clean
from binarize.export.functions import DOMAIN, VERSION, function_protos
from binarize.export.hints import add_hints
from binarize.export.plain import to_plain
from binarize.export.spaces import part_families
from binarize.export.stand_ins import with_stand_ins
from binarize.layers.binary import binary_layers
from binarize.passes.fuse import packed_layers
from binarize.passes.pack import graphs_of
from binarize.record import Record, record_of

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["LEAST_OPSET", "export_onnx"]

LEAST_OPSET = 18  # the first with ReduceSum, ReduceProd and Slice as the bodies use them


@torch.no_grad()
def export_onnx(
    net: nn.Module,
    path: str | os.PathLike[str],
    *,
    example_inputs: Any = None,
    opset: int = LEAST_OPSET,
    dynamic_batch: bool = True,
    dynamic_size: bool = False,
    portable: bool = False,
    check: bool = True,
) -> Path:
    """Write a packed network as one ONNX file: operations of the domain `binarize`, each with a body in standard ones.

    The weights stay packed in the file. ONNX Runtime with `onnxruntime_library()` runs the operations by our kernels;
    a runtime without kernels for the domain unpacks the weights when it loads the file.

    Args:
        net: packed network, as `pack` or `load` return it; left as it is.
        path: file to write; an old one is replaced only when the new one is complete.
        example_inputs: a batch ``(n, c, h, w)``, or the tuple of arguments of ``forward``; by default noise of the
            shape that the network was calibrated on.
        opset: version of the standard operations, at least 18.
        dynamic_batch: leave the first axis of every input open.
        dynamic_size: leave height and width of every image open too; for networks that take any.
        portable: write standard operations only, for runtimes that know neither functions nor our library.
        check: let the ONNX checker read the model and ONNX Runtime run it once before it is written.

    Returns:
        The path written.

    Raises:
        ExportError: the network is not packed, was captured by parts, or holds what ONNX cannot express.
        OutputError: the file cannot be written.
    """
    record = _record(net)
    _require_exportable(net, record, opset)
    inputs = _inputs(example_inputs, record, dynamic_batch)
    named = _named_outputs(_run(net, inputs))
    model = _export(net, inputs, list(named), opset, _open_axes(inputs, dynamic_batch, dynamic_size))
    _describe(model, net, record)
    if portable:
        model = to_plain(model)
    if check:
        _check(model, inputs, named)
    return _write(model, Path(path))


def _record(net: nn.Module) -> Record | None:
    try:
        return record_of(net)
    except ModelError:
        return None


def _require_exportable(net: nn.Module, record: Record | None, opset: int) -> None:
    name = type(net).__name__
    if opset < LEAST_OPSET:
        raise ExportError(
            f"cannot export {name} to ONNX opset {opset}: the operations' bodies need {LEAST_OPSET} or later"
        )
    if any(True for _ in binary_layers(net)):
        raise ExportError(f"cannot export {name} to ONNX: it is in training form; pack it first: binarize.pack(net)")
    if not packed_layers(net):
        raise ExportError(f"cannot export {name} to ONNX: it has no packed layers; run convert and pack first")
    narrow = {layer.dtype for _, layer in packed_layers(net)} - {torch.float32}
    if narrow:
        raise ExportError(f"cannot export {name} to ONNX: it gives {narrow.pop()}; export the network it was made from")
    parts = [path for path, _ in graphs_of(net)]
    if record is not None and "" not in record.parts:
        why = next(iter(record.uncaptured.values()), "it could not be traced")
        raise ExportError(
            f"cannot export {name} to ONNX as one graph: {why}; export its parts, each on inputs of its own, with "
            f"export_onnx(net.get_submodule(part), path, example_inputs=...): {', '.join(parts) or 'it has none'}"
        )


def _inputs(example: Any, record: Record | None, dynamic_batch: bool) -> tuple[Any, ...]:
    """Return the arguments to export with; a batch of one is doubled, or it would be taken for a constant."""
    if example is None:
        if record is None or record.input_shape is None:
            raise ExportError("cannot export to ONNX without knowing the input's shape; give example_inputs")
        example = torch.randn(2, *record.input_shape, generator=torch.Generator().manual_seed(0))
    given = example if isinstance(example, tuple) else (example,)
    if not dynamic_batch:
        return given
    return tuple(torch.cat([x, x]) if isinstance(x, Tensor) and x.dim() and len(x) == 1 else x for x in given)


def _run(net: nn.Module, inputs: tuple[Any, ...]) -> Any:
    shapes = ", ".join(str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in inputs)
    try:
        return net(*inputs)
    except Exception as cause:  # whatever the network raises on inputs that do not fit
        raise ExportError(
            f"cannot run {type(net).__name__} on example inputs of shape {shapes}: {_first_line(cause)}; give "
            "example_inputs of the shape it was made for"
        ) from cause


def _named_outputs(value: Any, name: str = "") -> dict[str, Tensor]:
    """Name each tensor of an output: ``output``, the keys of a dict, numbers in a list."""
    if isinstance(value, Tensor):
        return {name or "output": value}
    named: dict[str, Tensor] = {}
    for key, item in _items(value):
        named.update(_named_outputs(item, f"{name}_{key}" if name else key))
    return named


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return ((str(key), item) for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ((f"output_{index}", item) for index, item in enumerate(value))
    return iter(())


def _open_axes(inputs: tuple[Any, ...], batch: bool, size: bool) -> tuple[Any, ...] | None:
    """Return which axes of each input stay open, by name; None where all are fixed."""
    if not batch and not size:
        return None
    first = {0: torch.export.Dim("batch")} if batch else {}
    both = {2: torch.export.Dim("height"), 3: torch.export.Dim("width")} if size else {}
    return tuple((first | (both if x.dim() == 4 else {})) if isinstance(x, Tensor) else None for x in inputs)


def _export(
    net: nn.Module, inputs: tuple[Any, ...], output_names: Sequence[str], opset: int, axes: tuple[Any, ...] | None
) -> "ModelProto":
    import onnx_ir

    stand_ins = with_stand_ins(net).eval()
    try:
        with warnings.catch_warnings():
            # torch.onnx says so for each further input whose batch is, as it must be, the batch of the first
            warnings.filterwarnings("ignore", "# The axis name: .* will not be used", UserWarning)
            program = torch.onnx.export(
                stand_ins, inputs, dynamo=True, opset_version=opset, optimize=False, verbose=False,
                dynamic_shapes=axes,
            )  # fmt: skip
    except Exception as cause:  # torch.onnx raises whatever stopped it
        hint = "; try fewer open axes: dynamic_batch=False or dynamic_size=False" if axes else ""
        raise ExportError(f"cannot export {type(net).__name__} to ONNX: {_root_cause(cause)}{hint}") from cause
    assert program is not None
    clean(program.model, output_names)
    model: ModelProto = onnx_ir.to_proto(program.model)
    _drop_twice_told(model)
    part_families(model)
    add_hints(model)
    used = {node.op_type for node in model.graph.node if node.domain == DOMAIN}
    model.functions.extend(function_protos(used, opset))
    return model


def _drop_twice_told(model: "ModelProto") -> None:
    """Drop the types of initializers: they carry their own."""
    stored = {tensor.name for tensor in model.graph.initializer}
    kept = [info for info in model.graph.value_info if info.name not in stored]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)


def _describe(model: "ModelProto", net: nn.Module, record: Record | None) -> None:
    """Say who made the file, in the oldest format that holds it, and how the network was converted."""
    import onnx
    import onnx.helper

    from binarize import __version__

    standard = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    del model.opset_import[:]
    model.opset_import.extend([onnx.helper.make_opsetid("", standard), onnx.helper.make_opsetid(DOMAIN, VERSION)])
    model.ir_version = max(8, onnx.helper.find_min_ir_version_for([model.opset_import[0]]))  # 8: functions
    model.producer_name, model.producer_version = "binarize", __version__
    model.graph.name = type(net).__name__
    if record is not None:
        notes = {"binarize.scheme": record.recipe.scheme, "binarize.recipe": json.dumps(record.recipe.to_dict())}
        if record.source.get("sha256"):
            notes["binarize.source_sha256"] = str(record.source["sha256"])
        notes["binarize.provenance"] = json.dumps(_provenance(record))
        onnx.helper.set_model_props(model, notes)


def _provenance(record: Record) -> dict[str, Any]:
    """Return what made the network, without anything that tells where files lay."""
    told = {key: record.source[key] for key in ("kind", "arch", "versions") if record.source.get(key) is not None}
    numbers = {key: value for key, value in record.metrics.items() if isinstance(value, int | float) and value == value}
    return told | {"input_shape": record.input_shape, "metrics": numbers}


def _check(model: "ModelProto", inputs: tuple[Any, ...], named: dict[str, Tensor]) -> None:
    import onnx.checker
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        onnx.checker.check_model(model, full_check=True)
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        feed = {slot.name: x.numpy() for slot, x in zip(session.get_inputs(), _tensors(inputs), strict=True)}
        outputs = session.run(list(named), feed)
    except Exception as cause:  # the checker and the runtime have classes of their own for each fault
        raise ExportError(f"cannot run the exported model in ONNX Runtime: {_first_line(cause)}") from cause
    for (name, wanted), got in zip(named.items(), outputs, strict=True):
        if tuple(wanted.shape) != got.shape:
            raise ExportError(
                f"cannot trust the exported model: output {name!r} has shape {got.shape} in ONNX Runtime and "
                f"{tuple(wanted.shape)} here"
            )


def _tensors(inputs: tuple[Any, ...]) -> list[Tensor]:
    return [x.contiguous() for x in inputs if isinstance(x, Tensor)]


def _write(model: "ModelProto", path: Path) -> Path:
    try:
        content = model.SerializeToString()
    except Exception as cause:
        raise ExportError(f"cannot export to {path}: {_first_line(cause)}; a file holds at most 2 GiB") from cause
    with replacing(path) as draft:
        draft.write_bytes(content)
    return path


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
