"""Time forward and backward of training forms beside the full-precision network, taking turns in one process.

Usage: python benchmarks/training_form.py resnet18 --size 64 --batch 8 --scheme encoding:w=4,a=4 --scheme group-net:k=3
"""

import argparse
import json
import statistics
import time
import warnings

import torch
from torch import nn
from torchvision import models

import binarize

SCHEMES = ("encoding:w=4,a=4", "residual:m=2,a=4", "xnor-net", "group-net:k=3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", nargs="?", default="resnet18", help="network of torchvision.models")
    parser.add_argument("--scheme", action="append", help="repeatable")
    parser.add_argument("--size", type=int, default=64, help="side of the image")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16 where that is safe, channels last")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    images = torch.randn(options.batch, 3, options.size, options.size)
    model = models.get_model(options.name, weights=None).eval()
    nets = {"fp": model}
    for scheme in options.scheme or SCHEMES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of calibration on noise, which does not change the time
            nets[scheme] = binarize.convert(model, images, scheme)
    layout = torch.channels_last if options.bf16 else torch.contiguous_format
    for net in nets.values():
        net.to(device, memory_format=layout).train()
    with torch.autocast(device.type, torch.bfloat16, enabled=options.bf16):
        taken = measure(nets, images.to(device, memory_format=layout), options.rounds)
    for scheme, seconds in taken.items():
        ratio = statistics.median(seconds) / statistics.median(taken["fp"])
        row = {"network": options.name, "scheme": scheme, "median_ms": round(1e3 * statistics.median(seconds), 2)}
        print(
            json.dumps({**row, "p10_ms": round(1e3 * sorted(seconds)[len(seconds) // 10], 2), "ratio": round(ratio, 2)})
        )


def measure(nets: dict[str, nn.Module], images: torch.Tensor, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each step of each network, in turns; the first two rounds warm up."""
    taken: dict[str, list[float]] = {name: [] for name in nets}
    for turn in range(rounds + 2):
        for name, net in nets.items():
            start = time.perf_counter()
            net(images).square().mean().backward()
            if images.is_cuda:
                torch.cuda.synchronize()
            if turn >= 2:
                taken[name].append(time.perf_counter() - start)
            net.zero_grad()
    return taken


if __name__ == "__main__":
    main()
