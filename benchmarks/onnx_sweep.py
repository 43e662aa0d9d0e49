"""Export every float model of torchvision, run it in ONNX Runtime with our library and without, and compare.

    python benchmarks/onnx_sweep.py results.jsonl                 # goes on where it stopped
    python benchmarks/onnx_sweep.py results.jsonl --scheme xnor-net
    python benchmarks/onnx_sweep.py results.jsonl --only resnet18 --scheme pa-net:m=4,n=5 --scheme group-net:k=2
    python benchmarks/onnx_sweep.py results.jsonl --table docs/onnx_sweep.md

    SWEEP_GIB=64 python benchmarks/onnx_sweep.py results.jsonl --only regnet_y_128gf  # address space of a row, else 14
    SWEEP_BODIES=off python benchmarks/onnx_sweep.py results.jsonl --only vit_h_14  # with our library alone

Random weights, small inputs, one process per row so that memory is given back. By default the schemes are those of
`torchvision_sweep.py`. A model that was captured by parts is exported part by part, each on what it received. With our
library the file is opened without its bodies, so that an operation that the library lacks would be an error.
"""

import argparse
import json
import os
import resource
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forced import worst_layer
from rows import read, run_row
from torchvision_sweep import FAMILIES, LARGE, LARGEST, SMALL, build, example, family_of, tensors

IMAGES = 4
# A row that needs more address space fails, where it would take the machine down with it.
MOST_BYTES = int(os.environ.get("SWEEP_GIB", "14")) * 2**30
ENLARGED = 1e-3  # above this a difference is followed layer by layer
BY_SIZE = f"{SMALL}, or {LARGE} above {LARGEST // 10**6} million weights"


def check(name: str, scheme: str) -> dict[str, Any]:
    import torch

    from binarize.convert import convert
    from binarize.errors import NothingConvertedError
    from binarize.passes.fuse import packed_layers
    from binarize.passes.pack import pack

    begun, model, args = time.perf_counter(), awake(build(name)), inputs(name)
    weights = sum(parameter.numel() for parameter in model.parameters())
    scheme = scheme if scheme != BY_SIZE else SMALL if weights <= LARGEST else LARGE
    try:
        net = convert(model, args, scheme)
    except NothingConvertedError:
        return {"name": name, "scheme": scheme, "layers": 0}
    del model
    packed = pack(net)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        files = [compare(part, given, Path(folder)) for part, given in parts(net, packed, args)]
    return {
        "name": name,
        "scheme": scheme,
        "layers": len(packed_layers(packed)),
        "graphs": len(files),
        "nodes": sum(file["nodes"] for file in files),
        "bytes": sum(file["bytes"] for file in files),
        **{key: max(file[key] for file in files) for key in ("library", "bodies") if key in files[0]},
        **{key: min(file[key] for file in files) for key in ("library_same", "bodies_same") if key in files[0]},
        **{key: max(file.get(key, 0.0) for file in files) for key in ("library_layer", "bodies_layer")},
        "seconds": round(time.perf_counter() - begun, 1),
    }


def awake(model: Any) -> Any:
    """Give a last layer that starts at zero, as that of a ViT, random weights: all outputs would be alike."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and not module.weight.any():
            torch.nn.init.normal_(module.weight, std=0.02)
    return model


def inputs(name: str) -> tuple[Any, ...]:
    """Return the arguments of `torchvision_sweep.py`, more images of them where a batch is free."""
    import torch

    args = example(name)
    if family_of(name) in ("detection", "flow", "video"):
        return args
    return (torch.randn(IMAGES, *args[0].shape[1:]),)


def parts(net: Any, packed: Any, args: tuple[Any, ...]) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Yield every graph of a packed network with the arguments that it received first in the training form."""
    from binarize.passes.fuse import packed_layers
    from binarize.passes.pack import graphs_of

    found = [(path, module) for path, module in graphs_of(packed) if packed_layers(module)]
    if any(path == "" for path, _ in found):
        yield packed, args
        return
    received: dict[str, tuple[Any, ...]] = {}
    handles = [
        net.get_submodule(path).register_forward_pre_hook(
            lambda _, given, path=path: received.setdefault(path, given) and None
        )
        for path, _ in found
    ]
    net(*args)
    for handle in handles:
        handle.remove()
    for path, module in found:
        if path in received:
            yield module, received[path]


def compare(net: Any, args: tuple[Any, ...], folder: Path) -> dict[str, Any]:
    """Export one graph and return how far both ways of running it are from the packed form."""
    import onnx
    import torch

    import binarize
    from binarize.export.functions import WITHOUT_KERNELS

    path = binarize.export_onnx(net, folder / "net.onnx", example_inputs=args, check=False)  # it is run below
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    rest = [made for made in model.functions if made.name in WITHOUT_KERNELS]
    del model.functions[:]
    model.functions.extend(rest)
    (folder / "bare.onnx").write_bytes(model.SerializeToString())
    wanted = tensors(torch, net(*args))
    found: dict[str, Any] = {
        "bytes": path.stat().st_size,
        "nodes": sum(node.op_type.startswith("Packed") for node in model.graph.node),
    }
    ways = {"bodies": (path, None), "library": (folder / "bare.onnx", binarize.onnxruntime_library())}
    if os.environ.get("SWEEP_BODIES") == "off":
        del ways["bodies"]
    for way, (file, library) in ways.items():
        got = run(file, args, library)
        found[way] = max(far(torch.from_numpy(a), b) for a, b in zip(got, wanted, strict=True))
        same = torch.from_numpy(got[0]).argmax(1) == wanted[0].argmax(1)
        found[f"{way}_same"] = float(same.float().mean())
        if found[way] > ENLARGED or found[f"{way}_same"] < 1.0:
            found[f"{way}_layer"] = worst_layer(net, args, onnx.load(file), library)
    return found


def run(path: Path, args: tuple[Any, ...], library: str | None) -> list[Any]:
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, torch.get_num_threads()
    if library is not None:
        options.register_custom_ops_library(library)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    fed = zip(session.get_inputs(), tensors(torch, args), strict=True)
    return list(session.run(None, {slot.name: x.contiguous().numpy() for slot, x in fed}))


def far(seen: Any, wanted: Any) -> float:
    """Return the median over images of the difference, relative to how far the outputs spread about their mean."""
    flat = wanted.flatten(1)
    wrong = (seen - wanted).flatten(1).norm(dim=1) / ((flat - flat.mean()).norm(dim=1) + 1e-12)
    return float(wrong.median())


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "# torchvision in ONNX Runtime",
        "",
        "Every float model of `torchvision.models.list_models()`, random weights, exported, checked by `onnx.checker`,",
        "run in ONNX Runtime: with our library, from the file without its bodies, and by the bodies. `nodes` are the",
        "packed layers in the file. The two middle columns are the differences from the packed form, relative to how",
        "far the outputs spread about their mean, medians over the images, the worst output; the last two the share of",
        "decisions that are the same. Rounding in the last bit can move an activation by one code, which a deep",
        "network of random weights carries to its outputs and enlarges on the way. Where a difference is",
        f"above {ENLARGED}, or a decision another, the figure in brackets is the largest of any packed layer or output",
        "when each layer is given what the file computed before it. A model that is captured by parts is exported part",
        "by part. The bodies of vit_h_14, 632 million weights, were not run: a machine of 24 GB killed the process.",
        "Made by `python benchmarks/onnx_sweep.py`.",
        "",
    ]
    for family in [*(family for family, _ in FAMILIES), "other"]:
        rows = [row for row in results if family_of(row["name"]) == family]
        if rows:
            columns = ("model", "scheme", "graphs", "nodes", "MB", "library", "bodies", "alike", "bodies alike")
            lines += [f"## {family}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
            lines += [*map(line, rows), ""]
    missing = [name for name in names() if name not in {row["name"] for row in results}]
    lines += [f"Not run yet: {', '.join(missing)}."] if missing else []
    return "\n".join(lines).rstrip() + "\n"


def line(row: dict[str, Any]) -> str:
    start = f"| {row['name']} | `{row['scheme']}` |"
    if "error" in row:
        return f"{start} failed: {row['error']} | | | | | | |"
    if row["layers"] == 0:
        return f"{start} nothing to convert | | | | | | |"
    shares = " | ".join(f"{row[f'{key}_same']:.0%}" if f"{key}_same" in row else "" for key in ("library", "bodies"))
    figures = f"{difference(row, 'library')} | {difference(row, 'bodies')} | {shares}"
    return f"{start} {row['graphs']} | {row['nodes']} | {row['bytes'] / 1e6:.1f} | {figures} |"


def difference(row: dict[str, Any], way: str) -> str:
    if way not in row:
        return "not run"
    layer = row.get(f"{way}_layer", 0.0)
    return f"{row[way]:.1e}" + (f" ({layer:.1e})" if layer else "")


def names() -> list[str]:
    """Return every float model, small ones first."""
    from torchvision import models

    found = [name for name in models.list_models() if not name.startswith("quantized_")]
    return sorted(found, key=lambda name: models.get_model_weights(name).DEFAULT.meta["num_params"])


def run_all(arguments: argparse.Namespace) -> None:
    done = {(row["name"], row["asked"]) for row in read(arguments.results)}
    for name in (name for name in names() if not arguments.only or name in arguments.only):
        for scheme in arguments.scheme or [BY_SIZE]:
            if (name, scheme) in done:
                continue
            known = {"asked": scheme, "name": name, "scheme": scheme}
            run_row(__file__, arguments.results, [name, scheme], known)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", help="JSON lines, one per model and scheme; what is in it is not run again")
    parser.add_argument("--only", action="append", help="model; repeatable")
    parser.add_argument("--scheme", action="append", help=f"repeatable; by default {BY_SIZE}")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--table", help="write the table of the results to this file and stop")
    arguments = parser.parse_args()
    if arguments.one:
        warnings.simplefilter("ignore")
        resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
        print(json.dumps(check(*arguments.one)))
    elif arguments.table:
        Path(arguments.table).write_text(table(read(arguments.results)), encoding="utf-8")
    else:
        run_all(arguments)


if __name__ == "__main__":
    main()
