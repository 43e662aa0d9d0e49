"""Time ResNet-18 on both routes beside torch fp32, ONNX Runtime fp32 and int8, on one thread, by its CPU time.

CPU time of the calling thread leaves out what other processes take, so that a busy machine can be used.

Usage: python benchmarks/routes.py --scheme encoding:w=4,a=4
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from unittest import mock

import torch
from torch import nn
from torchvision import models

import binarize
from binarize.peers import OnnxModel, write_fp32, write_int8

EIGHT_BITS = {"conv1": "encoding:w=8,a=8", "fc": "encoding:w=8,a=8"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scheme", default="encoding:w=4,a=4")
    parser.add_argument("--size", type=int, default=224, help="side of the image")
    parser.add_argument("--rounds", type=int, default=25, help="turns of each contender, three timed calls each")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    images = torch.randn(8, 3, options.size, options.size)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        nets = contenders(options.scheme, images, Path(folder))
        wanted, found = nets["popcount"](images[:1]), nets["int8"](images[:1])
        assert torch.equal(wanted, found), "the routes differ"
        times = measure(nets, images[:1], options.rounds)
    for name, taken in times.items():
        row = {"median_ms": round(median(taken), 2), "p10_ms": round(sorted(taken)[len(taken) // 10], 2)}
        print(json.dumps({"contender": name, **row}), flush=True)


def contenders(scheme: str, images: torch.Tensor, folder: Path) -> dict[str, nn.Module]:
    """Return one network on both routes, the same with ends of eight bits instead of float, and the peers."""
    model = models.resnet18(weights=None).eval()
    net = binarize.convert(model, images[:2], scheme)
    ends = binarize.convert(model, images[:2], recipe=binarize.Recipe(scheme=scheme, layers=EIGHT_BITS))
    nets: dict[str, nn.Module] = {}
    for route in ("popcount", "int8"):
        with mock.patch.dict(os.environ, BINARIZE_ROUTE=route):
            nets[route] = binarize.pack(net)
    nets["quickest routes, ends of eight bits"] = binarize.pack(ends)
    write_fp32(model, images[:1], folder / "fp32.onnx")
    write_int8(folder / "fp32.onnx", images, folder / "int8.onnx")
    nets["torch fp32"] = model
    nets["onnxruntime fp32"], nets["onnxruntime int8"] = (OnnxModel(folder / f"{n}.onnx", 1) for n in ("fp32", "int8"))
    return nets


def measure(nets: dict[str, nn.Module], x: torch.Tensor, rounds: int) -> dict[str, list[float]]:
    """Return milliseconds of each contender's calls, the contenders in turns."""
    times: dict[str, list[float]] = {name: [] for name in nets}
    for _ in range(rounds):
        for name, net in nets.items():
            net(x)
            for _ in range(3):
                start = time.thread_time_ns()
                net(x)
                times[name].append((time.thread_time_ns() - start) / 1e6)
    return times


if __name__ == "__main__":
    main()
