"""Take every scheme through every family of networks: convert, pack, save, load, export, run in ONNX Runtime, compare.

    python benchmarks/schemes_sweep.py results.jsonl              # goes on where it stopped
    python benchmarks/schemes_sweep.py results.jsonl --table docs/schemes_sweep.md
    python benchmarks/schemes_sweep.py results.jsonl --only resnet18 --scheme pa-net:m=4,n=5

Random weights, 64 x 64 images, one process per row so that memory is given back. Needs no network and no weights.
"""

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from rows import read, run_row
from torchvision_sweep import build, layer_by_layer

NETWORKS = (
    *("resnet18", "densenet121", "mobilenet_v2", "googlenet", "regnet_y_400mf"),
    *("convnext_tiny", "efficientnet_b0", "shufflenet_v2_x1_0", "vgg11_bn"),
)
SCHEMES = (
    *("xnor-net", "abc-net:m=3,n=3", "pa-net:m=4,n=5", "encoding:w=4,a=4", "residual:m=2,a=4"),
    *("group-net:k=2", "group-net:k=2,unit=layer"),
)
KEEP = {"vgg11_bn": ("classifier.*",)}  # 119 million weights that a small sweep has no memory for
IMAGES, SIZE = 4, 64


def check(name: str, scheme: str) -> dict[str, Any]:
    import onnxruntime
    import torch

    import binarize

    torch.manual_seed(1)
    model, x, begun = build(name), torch.randn(IMAGES, 3, SIZE, SIZE), time.perf_counter()
    net = binarize.convert(model, x, recipe=binarize.Recipe(scheme=scheme, keep=KEEP.get(name, ())))
    alone = layer_by_layer(torch, net, (x,))
    packed = binarize.pack(net)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        binarize.save(packed, Path(folder) / "net.safetensors")
        loaded = binarize.load(Path(folder) / "net.safetensors")
        path = binarize.export_onnx(loaded, Path(folder) / "net.onnx", example_inputs=x)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (seen,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        trained, fast, again = net(x), packed(x), loaded(x)
        size = (Path(folder) / "net.safetensors").stat().st_size
    return {
        "network": name, "scheme": scheme, "layers": sum(1 for _ in layers(net)), "layer": alone,
        "packed": far(fast, trained), "file": bool(torch.equal(again, fast)), "onnx": far(torch.from_numpy(seen), fast),
        "size": size, "smaller": 4 * sum(p.numel() for p in model.parameters()) / size,
        "seconds": round(time.perf_counter() - begun, 1),
    }  # fmt: skip


def layers(net: Any) -> Any:
    from binarize.layers.binary import binary_layers

    return binary_layers(net)


def far(seen: Any, wanted: Any) -> float:
    """Return the median over images of the relative difference."""
    wrong = (seen - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)
    return float(wrong.median())


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "# Every scheme on every family",
        "",
        "Networks of torchvision with random weights, converted, packed, saved, loaded, exported and run in ONNX",
        "Runtime. `layer` is the largest relative difference of any packed layer to its training form on the same",
        "input, `packed` that of the packed network's output to the training form's, `onnx` that of ONNX",
        "Runtime's to the packed form's, medians over images. `file` tells whether the loaded network gives the",
        "same bits. A rounding in the last bit can move an activation by one code, and a deep network of random",
        "weights carries that to its outputs. `smaller` is the bytes of the float parameters over the size of the",
        "file; VGG keeps its classifier here. Made by `python benchmarks/schemes_sweep.py`.",
        "",
    ]
    for name in NETWORKS:
        found = {row["scheme"]: row for row in results if row["network"] == name}
        rows = [found[scheme] for scheme in SCHEMES if scheme in found]
        missing = [f"`{scheme}`" for scheme in SCHEMES if scheme not in found]
        if rows:
            lines += [f"## {name}", "", "| scheme | layers | layer | packed | file | onnx | smaller |"]
            lines += ["|---|---|---|---|---|---|---|", *map(line, rows), ""]
            lines += [f"Not run yet: {', '.join(missing)}.", ""] if missing else []
    return "\n".join(lines).rstrip() + "\n"


def line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"| `{row['scheme']}` | failed: {row['error']} | | | | | |"
    figures = (f"{row[key]:.1e}" for key in ("layer", "packed", "onnx"))
    layer, packed, onnx = figures
    file = "same" if row["file"] else "differs"
    return f"| `{row['scheme']}` | {row['layers']} | {layer} | {packed} | {file} | {onnx} | {row['smaller']:.1f} |"


def run(arguments: argparse.Namespace) -> None:
    done = {(row["network"], row["scheme"]) for row in read(arguments.results)}
    for name in arguments.only or NETWORKS:
        for scheme in arguments.scheme or SCHEMES:
            if (name, scheme) in done:
                continue
            run_row(__file__, arguments.results, [name, scheme], {"network": name, "scheme": scheme})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", help="JSON lines, one per network and scheme; what is in it is not run again")
    parser.add_argument("--only", action="append", help="network; repeatable")
    parser.add_argument("--scheme", action="append", help="scheme; repeatable")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--table", help="write the table of the results to this file and stop")
    arguments = parser.parse_args()
    if arguments.one:
        warnings.simplefilter("ignore")
        print(json.dumps(check(*arguments.one)))
    elif arguments.table:
        Path(arguments.table).write_text(table(read(arguments.results)), encoding="utf-8")
    else:
        run(arguments)


if __name__ == "__main__":
    main()
