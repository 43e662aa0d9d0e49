"""Time one packed 3x3 convolution on every kernel and both routes, beside torch fp32; verified equal before timed.

Usage: python benchmarks/kernels.py --planes 4 --threads 1
"""

import argparse
import functools
import json
from collections.abc import Callable

import torch
from rows import summary

from binarize.benchmark import interleave
from binarize.kernels import fold_weight, pack_codes, pack_digits, pack_signs, prepare_weight
from binarize.kernels.dispatch import LEVELS
from binarize.kernels.problem import Conv2dProblem

SHAPES = ((64, 56), (128, 28), (256, 14), (512, 7))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--planes", type=int, default=4, help="of weights and of activations, 1 to 8")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    for channels, size in SHAPES:
        calls = contenders(channels, size, options.planes)
        times = interleave(calls, options.rounds, 60.0)
        sizes = {"channels": channels, "size": size, "planes": options.planes}
        print(json.dumps({**sizes, **summary(times)}), flush=True)


def contenders(channels: int, size: int, planes: int) -> dict[str, Callable[[], object]]:
    """Return every kernel that runs here on the same operands, each of which gave the same integers, and torch fp32."""
    window = (3, 3), (1, 1), (1, 1), (1, 1)
    sizes = {"out_channels": channels, "channels_per_group": channels, "kernel": (3, 3)}
    bits = pack_signs(torch.randint(0, 2, (planes, channels, channels, 3, 3)) * 2 - 1)
    values = torch.randint(0, 2**planes, (1, channels, size, size))
    operands = {
        "planes": (pack_digits(values, planes), prepare_weight(bits, **sizes)),
        "codes": (pack_codes(values[None]), fold_weight(bits, (planes,), **sizes, narrow=True)),
    }
    epilogue = torch.rand(1, channels), torch.zeros(1, channels), None, None, None
    calls: dict[str, Callable[[], object]] = {}
    wanted: torch.Tensor | None = None
    for level in LEVELS[:-1]:
        for form in level.forms:
            problem = Conv2dProblem(channels, channels, *window, 1, (planes,), (planes,), form == "codes")
            if level.why_not(problem) is not None:
                continue
            call = functools.partial(level.kernels.conv2d, problem, *operands[form], *epilogue, 0.0, float("inf"))
            y = call()
            wanted = y if wanted is None else wanted
            assert torch.equal(y, wanted), (level.name, form)
            calls[f"{level.name} {form}"] = call
    x = torch.rand(1, channels, size, size).contiguous(memory_format=torch.channels_last)
    weight = torch.rand(channels, channels, 3, 3).contiguous(memory_format=torch.channels_last)
    calls["torch fp32"] = lambda: torch.nn.functional.conv2d(x, weight, padding=1)
    return calls


if __name__ == "__main__":
    main()
