"""Time branches that a router chooses: some executed against all executed, the same packed network otherwise.

    python benchmarks/dynamic.py                                   # ResNet-18, 8 stored, 4 executed, 224 pixels
    python benchmarks/dynamic.py --scheme group-net:k=2,stored=8 --pixels 112 --batch 1 4

Random weights and images: speed does not depend on them. The two take turns, and each turn gives one ratio; a busy
machine slows both. Before that, running the chosen branches is compared with the masked dense computation.
"""

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor, nn

import binarize
from binarize.layers.branches import branch_groups
from binarize.schemes.presets import build_scheme


def packed(arch: str, scheme: str) -> nn.Module:
    """Return a packed network of random weights, fitted to small images of noise."""
    model = torchvision.models.get_model(arch, weights=None).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # says that noise is not data, and it is not
        return binarize.pack(binarize.convert(model, torch.randn(2, 3, 64, 64), scheme))


def changed(net: nn.Module, *, executed: int | None = None, sparse: bool = True) -> nn.Module:
    """Return a copy that executes another number of branches, or all of them with shares of 0."""
    made = copy.deepcopy(net)
    for _, group in branch_groups(made):
        assert group.router is not None
        group.router.executed = executed or group.router.executed
        group.sparse = sparse
    return made


def seconds(net: nn.Module, images: Tensor) -> float:
    start = time.perf_counter()
    net(images)
    return time.perf_counter() - start


@torch.inference_mode()
def measure(some: nn.Module, everything: nn.Module, images: Tensor, turns: int) -> tuple[float, float, float]:
    """Return the median ratio of neighbouring turns, and the best time of each in seconds."""
    for net in (some, everything):
        net(images)
    times = [(seconds(some, images), seconds(everything, images)) for _ in range(turns)]
    best = [min(column) for column in zip(*times, strict=True)]
    return statistics.median(slow / fast for fast, slow in times), best[0], best[1]


def main(argv: Sequence[str] | None = None) -> None:
    """Print one row per batch size and number of threads; the last column is the largest difference of an output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--scheme", default="group-net:k=4,stored=8")
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--turns", type=int, default=15)
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    stored = build_scheme(options.scheme).structure.stored
    some = packed(options.arch, options.scheme)
    everything, masked = changed(some, executed=stored), changed(some, sparse=False)
    titles = ("scheme", "pixels", "batch", "threads", "chosen, ms", "all, ms", "all / chosen", "from masked dense")
    print("|", " | ".join(titles), "|")
    print("|---|---|---|---|---|---|---|---|")
    for batch in options.batch:
        images = torch.randn(batch, 3, options.pixels, options.pixels)
        with torch.inference_mode():
            difference = float((some(images) - masked(images)).abs().max())
        for threads in options.threads:
            torch.set_num_threads(threads)
            ratio, fast, slow = measure(some, everything, images, options.turns)
            row = (options.scheme, options.pixels, batch, threads, f"{fast * 1e3:.1f}", f"{slow * 1e3:.1f}")
            print("|", *(f"{cell} |" for cell in (*row, f"{ratio:.2f}", difference)), flush=True)


if __name__ == "__main__":
    main()
