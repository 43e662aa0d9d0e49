"""Time K convolutions of one shape as K calls and as one: what running all branches of a group at once would give.

    python benchmarks/branches.py                      # 5 branches, the 3x3 convolutions of ResNet-18 at 224 pixels
    python benchmarks/branches.py --branches 8 --batch 1 4 --threads 2

One-plane layers of random weights. *First* is a convolution on the input that the branches share: packed by each
branch, packed once, and as one convolution with K times the outputs. *Later* is one that reads each branch's own
tensor and adds a residual: K calls, and one call with K channel groups on tensors laid side by side beforehand.
"""

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from binarize.layers.binary import BinaryActivation, BinaryConv2d
from binarize.layers.packed import PackedLayer
from binarize.passes.pack import pack_layer
from binarize.schemes.presets import build_scheme

SHAPES = ((64, 56), (128, 28), (256, 14), (512, 7))


def layer(channels: int, outputs: int, groups: int = 1) -> PackedLayer:
    scheme = build_scheme("xnor-net")
    conv = nn.Conv2d(channels, outputs, 3, padding=1, groups=groups, bias=False)
    return pack_layer(BinaryConv2d.from_float(conv, scheme, BinaryActivation(scheme.activation)))


def images(batch: int, channels: int, size: int) -> Tensor:
    return torch.randn(batch, size, size, channels).permute(0, 3, 1, 2)


def best(runs: Sequence[Callable[[], object]], turns: int) -> list[float]:
    """Return the best time of each in milliseconds; they take turns."""
    found = [float("inf")] * len(runs)
    for _ in range(turns):
        for place, run in enumerate(runs):
            start = time.perf_counter()
            run()
            found[place] = min(found[place], 1e3 * (time.perf_counter() - start))
    return found


@torch.inference_mode()
def measure(branches: int, batch: int, channels: int, size: int, turns: int) -> list[float]:
    """Return the times of: packed by each, packed once, one wide call; calls on own tensors, one grouped call."""
    layers = [layer(channels, channels) for _ in range(branches)]
    wide, grouped = layer(channels, channels * branches), layer(channels * branches, channels * branches, branches)
    pack, shared = layers[0].activation, images(batch, channels, size)
    own = [images(batch, channels, size) for _ in layers]
    planes = [pack(x) for x in own]
    beside = images(batch, channels * branches, size)
    together = grouped.activation(beside)

    def once(conv: Sequence[nn.Module]) -> list[Tensor]:
        packed = pack(shared)
        return [each(packed) for each in conv]

    return best(
        [
            lambda: [each(shared) for each in layers],
            lambda: once(layers),
            lambda: once([wide]),
            lambda: [each(x, y) for each, x, y in zip(layers, planes, own, strict=True)],
            lambda: grouped(together, beside),
        ],
        turns,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Print one row per shape, batch size and number of threads; times in milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--branches", type=int, default=5)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--turns", type=int, default=40)
    options = parser.parse_args(argv)
    titles = ("threads", "batch", "channels, size", "first: own packs", "one pack", "wide", "later: calls", "grouped")
    print("|", " | ".join(titles), "|")
    print("|---" * len(titles) + "|")
    for threads in options.threads:
        torch.set_num_threads(threads)
        for batch in options.batch:
            for channels, size in SHAPES:
                times = measure(options.branches, batch, channels, size, options.turns)
                cells = (str(threads), str(batch), f"{channels}, {size}", *(f"{t:.2f}" for t in times))
                print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
