"""Convert every model of torchvision and check that the packed form does what the training form does.

    python benchmarks/torchvision_sweep.py results.jsonl              # goes on where it stopped
    python benchmarks/torchvision_sweep.py results.jsonl --table docs/torchvision.md   # whole families only
    python benchmarks/torchvision_sweep.py results.jsonl --only resnet18,fasterrcnn_resnet50_fpn

Random weights, small inputs, one process per model so that memory is given back. The scheme is ``encoding:w=4,a=4``;
models of more than 50 million weights take ``xnor-net``, which is fitted in a fraction of the time. The two forms are
compared part by part: whatever a graph, or a layer that Python code calls, received in the training form is given to
its packed counterpart, and the outputs are compared. Needs no network and no weights.
"""

import argparse
import copy
import json
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from rows import read, run_row

FAMILIES = (
    ("quantisable", ("quantized_",)),  # float models, written so that torch's int8 tools can prepare them
    ("detection", ("rcnn", "retinanet", "fcos", "ssd")),
    ("flow", ("raft",)),
    ("segmentation", ("deeplab", "fcn", "lraspp")),
    ("video", ("r3d", "mc3", "r2plus1d", "s3d", "mvit", "swin3d")),
    ("transformer", ("vit_", "swin", "maxvit")),
    ("alexnet, vgg", ("alexnet", "vgg")),
    ("resnet, resnext, wide", ("resnet", "resnext")),
    ("regnet", ("regnet",)),
    ("densenet", ("densenet",)),
    ("inception", ("googlenet", "inception")),
    ("squeezenet", ("squeezenet",)),
    ("shufflenet", ("shufflenet",)),
    ("mobilenet, mnasnet", ("mobilenet", "mnasnet")),
    ("efficientnet", ("efficientnet",)),
    ("convnext", ("convnext",)),
)


SMALL, LARGE, LARGEST = "encoding:w=4,a=4", "xnor-net", 50_000_000


def family_of(name: str) -> str:
    for family, words in FAMILIES:
        if any(word in name for word in words):
            return family
    return "other"


def example(name: str) -> tuple[Any, ...]:
    """Return small arguments that the model's forward accepts."""
    import torch

    torch.manual_seed(1)
    family = family_of(name)
    if family == "detection":
        return ([torch.rand(3, 96, 112)],)
    if family == "flow":
        return torch.randn(1, 3, 128, 136), torch.randn(1, 3, 128, 136)
    if family == "video":
        side = 224 if "mvit" in name or name == "s3d" else 112
        return (torch.randn(1, 3, 16, side, side),)
    fixed = {"inception_v3": 96, "quantized_inception_v3": 96, "maxvit_t": 224}
    side = 518 if name == "vit_h_14" else fixed.get(name, 224 if name.startswith("vit") else 64)
    return (torch.randn(2, 3, 224 if name == "vit_h_14" else side, 224 if name == "vit_h_14" else side),)


def build(name: str) -> Any:
    import torchvision

    options: dict[str, Any] = {"weights": None}
    if family_of(name) in ("detection", "segmentation"):
        options["weights_backbone"] = None
    if name.endswith(("_fpn", "_fpn_v2")):
        options |= {"min_size": 128, "max_size": 192}  # or a detector enlarges its images to 800 pixels
    if "rcnn" in name:
        options |= {"rpn_post_nms_top_n_test": 64, "box_detections_per_img": 8}  # random weights propose everywhere
    if name.endswith(("googlenet", "inception_v3")):
        options["init_weights"] = False
    return spread(torchvision.models.get_model(name, **options).eval())


def spread(model: Any) -> Any:
    """Give normalisation layers statistics as training would, so that folding them is a real test."""
    import torch

    torch.manual_seed(2)
    for module in model.modules():
        if isinstance(getattr(module, "running_mean", None), torch.Tensor):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def check(name: str) -> dict[str, Any]:
    import torch

    from binarize.convert import convert
    from binarize.errors import NothingConvertedError
    from binarize.passes.fuse import packed_layers
    from binarize.passes.pack import pack
    from binarize.record import record_of

    model, args, begun = build(name), example(name), time.perf_counter()
    weights = sum(parameter.numel() for parameter in model.parameters())
    scheme = SMALL if weights <= LARGEST else LARGE
    try:
        net = convert(model, args, scheme)
    except NothingConvertedError as error:
        return {"name": name, "scheme": scheme, "converted": 0, "kept": len(error.reasons), "reasons": error.reasons}
    record = record_of(net)
    alone = layer_by_layer(torch, net, args)
    packed = pack(net)
    return {
        "name": name,
        "scheme": scheme,
        "converted": len(record.converted),
        "kept": len(record.kept),
        "reasons": {layer.name: layer.reason for layer in record.kept},
        "packed": len(packed_layers(packed)),
        "parts": len(record.parts),
        "layers": alone,
        **agreement(torch, net, packed, args),
        "seconds": round(time.perf_counter() - begun, 1),
    }


def layer_by_layer(torch: Any, net: Any, args: tuple[Any, ...]) -> float:
    """Return the largest relative difference of any layer, each packed on its own and given what it received."""
    from binarize.layers.binary import binary_layers
    from binarize.passes.pack import pack_layer

    worst = [0.0]

    def compare(layer: Any, given: tuple[Any, ...], wanted: Any) -> None:
        got = pack_layer(layer)(given[0])
        worst[0] = max(worst[0], float((wanted - got).norm() / (wanted.norm() + 1e-12)))

    handles = [layer.register_forward_hook(compare) for _, layer in binary_layers(net)]
    with torch.no_grad():
        net(*args)
    for handle in handles:
        handle.remove()
    return worst[0]


def agreement(torch: Any, net: Any, packed: Any, args: tuple[Any, ...]) -> dict[str, Any]:
    """Compare the two forms part by part on what each part received in the training form."""
    from torch import fx

    from binarize.layers.binary import BinaryLayer

    worst, outputs = 0.0, 0
    seen: list[tuple[str, Any, Any, Any]] = []
    inside = {id(m) for g in net.modules() if isinstance(g, fx.GraphModule) for m in g.modules() if m is not g}
    handles = []
    for path, module in net.named_modules():
        part = isinstance(module, fx.GraphModule) and id(module) not in inside
        if part or (isinstance(module, BinaryLayer) and id(module) not in inside):
            keep = lambda m, a, k, y, path=path: seen.append((path, *copy.deepcopy((a, k, y))))  # noqa: E731
            handles.append(module.register_forward_hook(keep, with_kwargs=True))
    with torch.no_grad():
        net(*args)
        for handle in handles:
            handle.remove()
        for path, given, options, wanted in seen:
            got = packed.get_submodule(path)(*given, **options)
            for a, b in zip(tensors(torch, wanted), tensors(torch, got), strict=True):
                scale = float((a - a.mean()).norm()) + 1e-12
                worst, outputs = max(worst, float((a - b).norm()) / scale), outputs + 1
    return {"difference": worst, "outputs": outputs}


def tensors(torch: Any, value: Any) -> list[Any]:
    """Return the floating-point tensors inside a nested output, in order."""
    if isinstance(value, torch.Tensor):
        return [value.float()] if value.is_floating_point() else []
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in items for tensor in tensors(torch, item)]


def table(results: list[dict[str, Any]], old: str = "") -> str:
    """Return the page; sections of families that the results do not hold whole are taken from an old one."""
    import torchvision

    counts = Counter(family_of(name) for name in torchvision.models.list_models())
    known = dict(part.split("\n", 1) for part in old.split("\n## ")[1:])
    lines = [
        "# torchvision, model by model",
        "",
        "Every model of `torchvision.models.list_models()`, random weights: how many of its weighted layers were",
        "converted, how many stayed in full precision, and how far the packed form is from the training form: the",
        "largest relative difference of any layer on its own, and of any output. Rounding in the last bit can move an",
        "activation by one code, which a deep network of random weights carries to its outputs; trained networks are",
        f"compared by their decisions. Scheme `{SMALL}`; models of more than {LARGEST // 10**6} million weights took",
        f"`{LARGE}` (marked \\*). Made by `python benchmarks/torchvision_sweep.py`. Where forms were not compared, the",
        "counts are those of `binarize.convert.plan`.",
        "",
    ]
    for family in [*(family for family, _ in FAMILIES[1:]), "other", FAMILIES[0][0]]:
        rows = [row for row in results if family_of(row["name"]) == family]
        if rows and (len(rows) == counts[family] or family not in known):
            lines += [f"## {family}", *section(rows), ""]
        elif family in known:
            lines += [f"## {family}", "", *known[family].strip("\n").split("\n"), ""]
    return "\n".join(lines).rstrip() + "\n"


def section(rows: list[dict[str, Any]]) -> list[str]:
    """Return what stands under the heading of a family."""
    head = ["", "| model | converted | kept | graphs | layer | output |", "|---|---|---|---|---|---|"]
    return [*head, *map(line, rows), "", "Kept, and why:", "", *reasons(rows)]


def line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"| {row['name']} | failed | | | | {row['error']} |"
    missing = "not compared |" if row["converted"] else "nothing to convert |"
    far = f"{row['layers']:.1e} | {row['difference']:.1e}" if "difference" in row else missing
    name = row["name"] + (" \\*" if row["scheme"] == LARGE else "")
    return f"| {name} | {row['converted']} | {row['kept']} | {row.get('parts', '')} | {far} |"


def reasons(rows: list[dict[str, Any]]) -> list[str]:
    """Return one line per distinct reason with the number of layers, numbers in it left out."""
    import re

    counts: dict[str, int] = {}
    for row in rows:
        for why in row.get("reasons", {}).values():
            general = re.sub(r"'[^']*'", "...", re.sub(r"\b\d+\b", "N", str(why)))
            counts[general] = counts.get(general, 0) + 1
    return [f"- {count} x {why}" for why, count in sorted(counts.items(), key=lambda item: -item[1])]


def run(arguments: argparse.Namespace) -> None:
    import torchvision

    names = torchvision.models.list_models()
    names = [name for name in names if not arguments.only or name in arguments.only.split(",")]
    done = {row["name"] for row in read(arguments.results)}
    for name in names:
        if name in done:
            continue
        run_row(__file__, arguments.results, [name], {"name": name}, hidden=("reasons",))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", help="JSON lines, one per model; models that are in it are not run again")
    parser.add_argument("--only", help="names, separated by commas")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--table", help="write the table of the results to this file and stop")
    arguments = parser.parse_args()
    if arguments.one:
        warnings.simplefilter("ignore")
        print(json.dumps(check(arguments.one)))
    elif arguments.table:
        page = Path(arguments.table)
        old = page.read_text(encoding="utf-8") if page.exists() else ""
        page.write_text(table(read(arguments.results), old), encoding="utf-8")
    else:
        run(arguments)


if __name__ == "__main__":
    main()
