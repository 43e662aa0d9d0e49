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

_DEEP, _SHALLOW, _OUTPUTS, _SIZE = 256, 64, 128, 14
_TURNS = 3
_MOST_KEPT = 16  # entries of the cache: a home may be shared by machines


@final
@dataclasses.dataclass(frozen=True)
class Speeds:
    """Products, and outputs, per nanosecond and core; 0.0 where no kernel multiplies that form.

    Attributes:
        planes: binary products of a digit plane and a weight plane.
        codes: products of a code and a folded weight.
        plane_outputs: accumulators of planes that are finished and stored; infinite where that is not known.
        code_outputs: the same of codes.
    """

    planes: float
    codes: float
    plane_outputs: float = float("inf")
    code_outputs: float = float("inf")

    def nanoseconds(self, problem: Conv2dProblem) -> float:
        """Return the time that one output pixel takes in the form of ``problem``; infinite where nothing runs it."""
        if problem.codes:
            terms, rate, outputs = problem.products * depth(problem.channels_per_group), self.codes, self.code_outputs
        else:
            pairs = sum(problem.weight_terms) * sum(problem.activation_terms)
            terms = pairs * words(problem.channels_per_group) * WORD_BITS
            rate, outputs = self.planes, self.plane_outputs
        if not rate:
            return float("inf")
        products = terms * problem.kernel[0] * problem.kernel[1] / rate
        # Accumulators before the last are not stored: about half the work of one that is.
        return problem.out_channels * (products + (1 + problem.products) / 2 / outputs)


def _problem(codes: bool, channels: int) -> Conv2dProblem:
    return Conv2dProblem(channels, _OUTPUTS, (3, 3), (1, 1), (1, 1), (1, 1), 1, (1,), (1,), codes)


def measure() -> Speeds:
    """Time a deep and a shallow convolution in both forms, in turns, and return the rates of the quickest turns.

    The two have as many outputs, so that their difference is products alone.
    """
    cases = [(codes, channels) for codes in (False, True) for channels in (_DEEP, _SHALLOW)]
    quickest = dict.fromkeys(cases, float("inf"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(_TURNS):
            for codes, channels in cases:
                quickest[codes, channels] = min(quickest[codes, channels], _time(_problem(codes, channels)))
    finally:
        torch.set_num_threads(threads)
    rates = [_rates(quickest[codes, _DEEP], quickest[codes, _SHALLOW]) for codes in (False, True)]
    return Speeds(rates[0][0], rates[1][0], rates[0][1], rates[1][1])


def _rates(deep: float, shallow: float) -> tuple[float, float]:
    """Return products and outputs per nanosecond from the times of the two convolutions."""
    outputs = _SIZE**2 * _OUTPUTS
    if not deep < float("inf"):
        return 0.0, float("inf")
    if shallow >= deep:  # the clock was disturbed: everything is put down to products
        return outputs * 9 * _DEEP / deep, float("inf")
    rate = outputs * 9 * (_DEEP - _SHALLOW) / (deep - shallow)
    left = shallow - outputs * 9 * _SHALLOW / rate
    return rate, outputs / left if left > 0 else float("inf")


def _time(problem: Conv2dProblem) -> float:
    """Return the nanoseconds of the quicker of two calls, or infinity where nothing runs the problem."""
    try:
        kernels = dispatch.choose(problem)
    except NoKernelError:
        return float("inf")
    x = torch.ones((1, _SIZE, _SIZE, *problem.x_shape), dtype=torch.uint8 if problem.codes else torch.int32)
    weight = torch.zeros(problem.weight_shape, dtype=torch.int8 if problem.codes else torch.int32)
    table = torch.ones(1, problem.out_channels)
    spent = []
    for _ in range(2):
        start = time.perf_counter_ns()
        kernels.conv2d(problem, x, weight, table, table, None, None, None, 0.0, 1.0)
        spent.append(time.perf_counter_ns() - start)
    return float(min(spent))


def speeds() -> Speeds:
    """Return the speeds of this machine, from the cache or measured now."""
    return _speeds(os.environ.get("BINARIZE_KERNEL") or "")


@functools.lru_cache(maxsize=64)
def _speeds(forced: str) -> Speeds:
    path, key = _cache(), _machine(forced)
    known = _read(path)
    with contextlib.suppress(TypeError, KeyError, ValueError):
        return Speeds(**{field.name: float(known[key][field.name]) for field in dataclasses.fields(Speeds)})
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
    """Return a text that changes with the processor, with the kernels, and with what is measured."""
    measured = f"{_DEEP} {_SHALLOW} {_OUTPUTS} {_SIZE}"
    parts = [measured, forced, platform.machine(), platform.processor(), *map(str, compiled.compiled_levels())]
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
        parts += [line for line in first.splitlines() if line.startswith(("vendor", "cpu family", "model", "stepping"))]
    with contextlib.suppress(OSError, AttributeError, TypeError):
        file = Path(compiled.native.__file__).stat()
        parts.append(f"{file.st_size} {file.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
