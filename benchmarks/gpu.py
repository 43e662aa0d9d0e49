"""On a GPU: check every kernel against the reference, then time products, layers and whole networks beside torch.

Usage: python benchmarks/gpu.py [--minutes 8] [--out benchmarks/results/gpu.json]

Needs torch, torchvision and cuda-core; runs from a checkout, installed or not, without a network. Results are written
as JSON after each section, and as tables. ``--tiny --device cpu`` goes the same way in seconds, on the CPU's kernels.
"""

import argparse
import contextlib
import dataclasses
import importlib
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from gpu_contenders import (  # noqa: E402
    Calls,
    build,
    compare,
    each_kernel,
    gemm_calls,
    held_memory,
    layer_calls,
    network_calls,
    peak_memory,
    verify,
)

GEMM = (4096, 8192, 16384)
LAYERS = (  # channels in, out, kernel, size
    (64, 64, 3, 56),
    (128, 128, 3, 28),
    (256, 256, 3, 14),
    (512, 512, 3, 7),
    (64, 256, 1, 56),
    (512, 128, 1, 28),
    (256, 1024, 1, 14),
    (2048, 512, 1, 7),
)
BATCHES = (256, 1, 32)
NETWORKS = ("resnet18", "resnet50", "resnet34")
SCHEMES = ("xnor-net", "group-net:k=4", "encoding:w=2,a=2", "encoding:w=4,a=4")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a run covers."""

    gemm: Sequence[int] = GEMM
    layers: Sequence[tuple[int, int, int, int]] = LAYERS
    batches: Sequence[int] = BATCHES
    networks: Sequence[str] = NETWORKS
    schemes: Sequence[str] = SCHEMES
    image: int = 224
    rounds: int = 15
    compiled: bool = True


TINY = Sizes((64,), ((16, 32, 3, 5), (16, 32, 1, 5)), (1,), ("resnet18",), ("xnor-net",), 32, 1, compiled=False)


def reach_package() -> None:
    """Make `binarize` importable from the checkout where it is not installed; its CPU kernels are then torch's."""
    if importlib.util.find_spec("binarize") is None:
        sys.path.insert(0, str(ROOT))
    package = importlib.import_module("binarize")
    if importlib.util.find_spec("binarize.kernels") is None:
        package.__path__.append(str(ROOT))  # the folders kernels/ and passes/ beside it are its own


class Clock:
    """Times calls on one device; contenders take turns."""

    def __init__(self, device: torch.device, rounds: int) -> None:
        self.device, self.rounds = device, rounds

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def graphed(self, call: Callable[[], object], repeats: int) -> Callable[[], object]:
        """Return a call that replays ``repeats`` calls captured in a CUDA graph; on a CPU one that repeats them."""
        if self.device.type != "cuda":
            return lambda: [call() for _ in range(repeats)]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(repeats):
                call()
        return graph.replay

    def times(self, calls: Calls, repeats: int = 1, graphs: bool = True) -> dict[str, dict[str, float]]:
        """Return median and p10 of each contender's time for one call, in microseconds."""
        ready = {name: self.graphed(call, repeats) if graphs else call for name, call in calls.items()}
        per_call = repeats if graphs else 1
        taken: dict[str, list[float]] = {name: [] for name in ready}
        for _ in range(self.rounds):
            for name, call in ready.items():
                call()
                taken[name].append(self._once(call) / per_call)
        rows = {name: sorted(each) for name, each in taken.items()}
        return {
            name: {"median_us": round(median(each), 2), "p10_us": round(each[len(each) // 10], 2)}
            for name, each in rows.items()
        }

    def _once(self, call: Callable[[], object]) -> float:
        self.wait()
        if self.device.type != "cuda":
            start = time.perf_counter_ns()
            call()
            return (time.perf_counter_ns() - start) / 1e3
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e3


class Run:
    """One run: its sections, in order of what they tell, until the time is over."""

    def __init__(self, options: argparse.Namespace, sizes: Sizes) -> None:
        self.sizes, self.out = sizes, Path(options.out)
        self.device = torch.device(options.device)
        self.clock = Clock(self.device, sizes.rounds)
        self.end = time.monotonic() + 60 * options.minutes
        self.results: dict[str, Any] = {"machine": machine(self.device), "skipped": []}

    def sections(self) -> None:
        """Run every section; one that fails is written down and the others go on."""
        if self.device.type == "cuda":
            from binarize.kernels.cuda.rates import gpu_rates

            self.results["products_per_nanosecond"] = dataclasses.asdict(gpu_rates(self.device))
        parts = {"checks": self.checks, "gemm": self.gemm, "layers": self.layers, "networks": self.networks}
        for name, section in parts.items():
            self.results[name] = []
            try:
                section(self.results[name])
            except Exception as error:
                if name == "checks":
                    raise
                self.skip(name, f"{type(error).__name__}: {error}")
            self.keep()

    def late(self, what: str) -> bool:
        """Whether no time is left; what is left out is written down."""
        if time.monotonic() < self.end:
            return False
        self.skip(what, "no time left")
        return True

    def skip(self, what: str, why: str) -> None:
        """Write down what was left out, and why."""
        self.results["skipped"].append({"what": what, "why": why.splitlines()[0][:300]})
        print(f"left out {what}: {why.splitlines()[0]}", flush=True)

    def keep(self) -> None:
        """Write what there is so far."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        draft = self.out.with_suffix(".draft")
        draft.write_text(json.dumps(self.results, indent=1))
        draft.replace(self.out)
        self.out.with_suffix(".md").write_text(tables(self.results))

    def checks(self, rows: list[dict[str, Any]]) -> None:
        """Compare every epilogue of every kind of tile, in both forms, with the reference on the CPU: bit for bit."""
        from binarize.kernels.problem import Conv2dProblem

        channels = 64 if self.device.type == "cuda" else 16
        for codes in (False, True):
            for terms, stride, groups in ((((1,), (1,)), 1, 1), (((2,), (3,)), 2, 2), (((1, 0), (1, 2)), 1, 1)):
                window = (3, 3), (stride, stride), (1, 1), (1, 1)
                problem = Conv2dProblem(2 * channels, 72, *window, groups, *terms, codes)
                for kernels, name in each_kernel(self.device, problem):
                    rows.append({"problem": str(problem), "kernel": name, "equal": self.equals(problem, kernels, name)})
        print(f"checked: {sum(row['equal'] for row in rows)} of {len(rows)} kernels equal the reference", flush=True)

    def equals(self, problem: Any, kernels: Any, name: str) -> bool:
        """Whether a kernel is right. A wrong one ends the run, unless tuning looks before it takes it."""
        try:
            compare(problem, kernels, self.device)
        except AssertionError as error:
            if "together=True" not in name:
                raise
            self.skip(name, str(error))
            return False
        return True

    def gemm(self, rows: list[dict[str, Any]]) -> None:
        """Time square products of packed operands beside torch's."""
        for size in self.sizes.gemm:
            if self.late(f"gemm {size}"):
                continue
            with tuning():
                calls = gemm_calls(size, self.device)
                self.compile_ahead(calls)
                times = self.clock.times(calls, 1 if size > 8192 else 3)
            for row in times.values():
                row["tops"] = round(2 * size**3 / row["median_us"] / 1e6, 1)
            self.row(rows, {"size": size}, times, "torch bf16")

    def layers(self, rows: list[dict[str, Any]]) -> None:
        """Time single convolutions beside those of torch, batch by batch."""
        for batch in self.sizes.batches:
            for layer in self.sizes.layers:
                if self.late(f"layer {layer} at batch {batch}"):
                    continue
                with tuning():
                    calls = layer_calls(layer, batch, self.device)
                    self.compile_ahead(calls)
                    times = self.clock.times(calls, 10)
                self.row(rows, {"layer": list(layer), "batch": batch}, times, "torch bf16")

    def networks(self, rows: list[dict[str, Any]]) -> None:
        """Time whole networks beside the original, with CUDA graphs and without."""
        for name in self.sizes.networks:
            if self.late(name):
                continue
            model, ours = build(name, self.sizes.schemes, self.device)
            for batch in self.sizes.batches:
                if self.late(f"{name} at batch {batch}"):
                    continue
                x = torch.randn(batch, 3, self.sizes.image, self.sizes.image, device=self.device)
                x = x.contiguous(memory_format=torch.channels_last)
                calls = network_calls(model, ours, x, self.sizes.compiled and name != "resnet34")
                self.compile_ahead(calls)
                verify(calls, batch)
                head = {"network": name, "batch": batch}
                memory = {key: (held_memory(call), peak_memory(call, self.device)) for key, call in calls.items()}
                for graphs in (True, False):
                    times = self.clock.times(calls, graphs=graphs)
                    for key, row in times.items():
                        row["weights_mb"], row["activations_mb"] = memory[key]
                    self.row(rows, head | {"graphs": graphs}, times, "torch bf16 compiled")
                    self.keep()

    def row(
        self, rows: list[dict[str, Any]], head: dict[str, Any], times: dict[str, dict[str, float]], peer: str
    ) -> None:
        """Add one row with the ratios to the peer, or to the last contender where it is not there."""
        against = peer if peer in times else [*times][-1]
        for each in times.values():
            each["ratio"] = round(times[against]["median_us"] / each["median_us"], 2)
        rows.append({**head, "against": against, "contenders": times})
        print(json.dumps(rows[-1]), flush=True)

    def compile_ahead(self, calls: Calls) -> None:
        """Compile all kernels that the calls need side by side, before any is timed."""
        if self.device.type != "cuda":
            return
        from binarize.kernels.cuda.compile import architecture, compile_all
        from binarize.kernels.cuda.devices import cuda_kernels

        launcher = cuda_kernels(self.device, None).launcher
        needed: dict[Any, None] = {}
        for name, call in calls.items():
            if not name.startswith("torch"):
                needed.update(dict.fromkeys(launcher.collect(call)))
        compile_all(needed, architecture(launcher.gpu.capability))


@contextlib.contextmanager
def tuning() -> Iterator[None]:
    """Let the tiles of what runs inside be timed."""
    os.environ["BINARIZE_TUNE"] = "1"
    try:
        yield
    finally:
        del os.environ["BINARIZE_TUNE"]


def machine(device: torch.device) -> dict[str, Any]:
    """Say what was measured on."""
    found: dict[str, Any] = {"device": device.type, "python": platform.python_version(), "torch": torch.__version__}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        capability = f"{properties.major}.{properties.minor}"
        found |= {"gpu": properties.name, "capability": capability, "cuda": torch.version.cuda}
    return found


def tables(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    where = results["machine"]
    lines = ["# GPU benchmark", "", ", ".join(f"{key} {value}" for key, value in where.items()), ""]
    for section in ("gemm", "layers", "networks"):
        rows = results.get(section) or []
        lines += [f"## {section}", ""] if rows else []
        for row in rows:
            head = ", ".join(f"{key} {value}" for key, value in row.items() if key not in ("contenders", "against"))
            columns = list(next(iter(row["contenders"].values())))
            lines += [f"{head}; ratios to {row['against']}", "", f"| contender | {' | '.join(columns)} |"]
            lines.append("|---" * (len(columns) + 1) + "|")
            for name, figures in row["contenders"].items():
                lines.append(f"| {name} | {' | '.join(str(figures[column]) for column in columns)} |")
            lines.append("")
    if results["skipped"]:
        lines += ["## Left out", "", *(f"* {part['what']}: {part['why']}" for part in results["skipped"])]
    return "\n".join(lines) + "\n"


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results" / "gpu.json"))
    parser.add_argument("--minutes", type=float, default=7.5, help="begin no further part after this time")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes: the way, not the figures")
    options = parser.parse_args(words)
    reach_package()
    if options.device.startswith("cuda"):
        from binarize.kernels.cuda.devices import cuda_why_not

        why = cuda_why_not()
        if why is not None:
            raise SystemExit(f"cannot time a GPU: {why}")
    torch.manual_seed(0)
    with torch.inference_mode():
        Run(options, TINY if options.tiny else Sizes()).sections()


if __name__ == "__main__":
    main()
