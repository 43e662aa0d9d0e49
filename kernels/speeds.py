"""How fast this machine multiplies planes and codes: measured once, kept in the user's cache.

The constants of the cost model by which `binarize.passes.route` chooses a route. They are measured by the kernels
themselves, on one thread, in a few milliseconds.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import platform
import time
from pathlib import Path
from typing import Any, final

import torch

from binarize.errors import NoKernelError
from binarize.kernels import compiled, dispatch
from binarize.kernels.codes import depth
from binarize.kernels.format import WORD_BITS, words
from binarize.kernels.problem import Conv2dProblem

__all__ = ["Speeds", "measure", "speeds"]

_CHANNELS, _SIZE = 128, 14
_TURNS = 3
_MOST_KEPT = 16  # entries of the cache: a home may be shared by machines


@final
@dataclasses.dataclass(frozen=True)
class Speeds:
    """Products per nanosecond and core; 0.0 where no kernel multiplies that form.

    Attributes:
        planes: binary products of a digit plane and a weight plane.
        codes: products of a code and a folded weight.
    """

    planes: float
    codes: float

    def nanoseconds(self, problem: Conv2dProblem) -> float:
        """Return the time that one output pixel takes in the form of ``problem``; infinite where nothing runs it."""
        taps = problem.kernel[0] * problem.kernel[1] * problem.out_channels
        if problem.codes:
            products, rate = problem.products * depth(problem.channels_per_group), self.codes
        else:
            pairs = sum(problem.weight_terms) * sum(problem.activation_terms)
            products, rate = pairs * words(problem.channels_per_group) * WORD_BITS, self.planes
        return products * taps / rate if rate else float("inf")


def _problem(codes: bool) -> Conv2dProblem:
    window = (3, 3), (1, 1), (1, 1), (1, 1)
    return Conv2dProblem(_CHANNELS, _CHANNELS, *window, 1, (1,), (1,), codes)


def measure() -> Speeds:
    """Time one convolution in both forms, in turns, and return the rates of the quickest turns."""
    products = _SIZE**2 * 9 * _CHANNELS**2
    quickest = {False: float("inf"), True: float("inf")}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(_TURNS):
            for codes in quickest:
                quickest[codes] = min(quickest[codes], _time(_problem(codes)))
    finally:
        torch.set_num_threads(threads)
    return Speeds(products / quickest[False], products / quickest[True])


def _time(problem: Conv2dProblem) -> float:
    """Return the nanoseconds of the second of two calls, or infinity where nothing runs the problem."""
    try:
        kernels = dispatch.choose(problem)
    except NoKernelError:
        return float("inf")
    x = torch.ones((1, _SIZE, _SIZE, *problem.x_shape), dtype=torch.uint8 if problem.codes else torch.int32)
    weight = torch.zeros(problem.weight_shape, dtype=torch.int8 if problem.codes else torch.int32)
    start = 0
    for _ in range(2):
        start = time.perf_counter_ns()
        kernels.conv2d_integer(problem, x, weight)
    return float(time.perf_counter_ns() - start)


def speeds() -> Speeds:
    """Return the speeds of this machine, from the cache or measured now."""
    return _speeds(os.environ.get("BINARIZE_KERNEL") or "")


@functools.lru_cache(maxsize=64)
def _speeds(forced: str) -> Speeds:
    path, key = _cache(), _machine(forced)
    known = _read(path)
    with contextlib.suppress(TypeError, KeyError, ValueError):
        return Speeds(float(known[key]["planes"]), float(known[key]["codes"]))
    found = measure()
    with contextlib.suppress(OSError):  # without a cache it is measured again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        kept = dict(list(known.items())[1 - _MOST_KEPT :])
        draft.write_text(json.dumps(kept | {key: dataclasses.asdict(found)}))
        draft.replace(path)
    return found


def _read(path: Path) -> dict[str, Any]:
    """Return what the cache holds: machines and kernels, the newest last; nothing where it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(path.read_text())
        if isinstance(known, dict):
            return known
    return {}


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(home) / "binarize" / "speeds.json"


def _machine(forced: str) -> str:
    """Return a text that changes with the processor and with the kernels."""
    parts = [forced, platform.machine(), platform.processor(), *map(str, compiled.compiled_levels())]
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
        parts += [line for line in first.splitlines() if line.startswith(("vendor", "cpu family", "model", "stepping"))]
    with contextlib.suppress(OSError, AttributeError, TypeError):
        file = Path(compiled.native.__file__).stat()
        parts.append(f"{file.st_size} {file.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
