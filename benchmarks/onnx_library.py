"""Time exported networks in ONNX Runtime, with our library and without, beside our torch path, fp32 and int8.

Usage: python benchmarks/onnx_library.py resnet18 resnet50 --scheme xnor-net --threads 1

Random weights and images. All contenders take turns in one process; before that the two forms of the exported network
are compared with the packed one.
"""

import argparse
import json
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
import torchvision
from torch import nn

import binarize
from binarize.benchmark import interleave
from binarize.peers import OnnxModel, write_fp32, write_int8


def contenders(
    name: str, recipe: binarize.Recipe, images: torch.Tensor, threads: int, folder: Path
) -> dict[str, nn.Module]:
    """Build all networks, ours checked against the packed form."""
    model = torchvision.models.get_model(name, weights=None).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # says that noise is no data, and it is none
        packed = binarize.pack(binarize.convert(model, images, recipe=recipe))
    ours, fp32, int8 = (folder / file for file in ("ours.onnx", "fp32.onnx", "int8.onnx"))
    binarize.export_onnx(packed, ours, example_inputs=images[:1])
    write_fp32(model, images[:1], fp32)
    write_int8(fp32, images, int8)
    begun = time.perf_counter()
    library = OnnxModel(ours, threads, binarize.onnxruntime_library())
    print(json.dumps({"network": name, "load_ms": round(1e3 * (time.perf_counter() - begun), 1)}), flush=True)
    found = {"library": library, "bodies": OnnxModel(ours, threads), "torch": packed}
    wanted = packed(images[:1])
    for key in ("library", "bodies"):
        # a sum that lies within rounding of a threshold moves outputs, so networks are compared as a whole
        far = float((found[key](images[:1]) - wanted).norm() / wanted.norm())
        assert far < 0.05, f"{key} is {far:.2g} away from the packed network"
    return {**found, "onnxruntime fp32": OnnxModel(fp32, threads), "onnxruntime int8": OnnxModel(int8, threads)}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="+", help="networks of torchvision.models")
    parser.add_argument("--scheme", action="append", help="repeatable; xnor-net and encoding:w=4,a=4 by default")
    parser.add_argument("--ends", default="fp", help="scheme of the first and last layers")
    parser.add_argument("--size", type=int, default=224, help="side of the image")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.names:
        for scheme in options.scheme or ["xnor-net", "encoding:w=4,a=4"]:
            torch.manual_seed(0)
            images = torch.randn(8, 3, options.size, options.size)
            with tempfile.TemporaryDirectory() as folder:
                nets = contenders(
                    name, binarize.Recipe(scheme, ends=options.ends), images, options.threads, Path(folder)
                )
                calls = {key: (lambda net=net, x=images[:1]: net(x)) for key, net in nets.items()}
                times = interleave(calls, options.rounds, 300.0)
            for key, taken in times.items():
                median, p10 = statistics.median(taken) / 1e3, sorted(taken)[len(taken) // 10] / 1e3
                row = {"network": name, "scheme": scheme, "ends": options.ends, "threads": options.threads, "runs": key}
                print(json.dumps({**row, "median_ms": round(median, 2), "p10_ms": round(p10, 2)}), flush=True)


if __name__ == "__main__":
    main()
