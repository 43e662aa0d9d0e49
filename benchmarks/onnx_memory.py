"""Resident memory of exported networks in ONNX Runtime, with our library and without; and under load.

    python benchmarks/onnx_memory.py net.onnx fp32.onnx           # a fresh process for each file and way
    python benchmarks/onnx_memory.py net.onnx --load 8 10000      # so many threads on two sessions, so many runs each

The base is that of a process in which a session of a one-layer model has run. Inputs are noise, batch 1.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

import binarize


def resident(of: str = "VmRSS") -> int:
    """Return the bytes of this process in memory, or with VmHWM the most that they were."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(of))


def session_of(model: "str | bytes", library: bool, threads: int = 1) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    if library:
        options.register_custom_ops_library(binarize.onnxruntime_library())
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def feed(session: onnxruntime.InferenceSession) -> dict[str, np.ndarray]:
    slot = session.get_inputs()[0]
    sizes = [size if isinstance(size, int) else 224 for size in slot.shape[1:]]
    return {slot.name: np.random.default_rng(0).standard_normal((1, *sizes), dtype=np.float32)}


def smallest() -> bytes:
    """Return a model of one convolution, so that what any session takes does not count."""
    import onnx.helper as make
    from onnx import TensorProto, numpy_helper

    weight = numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), "w")
    slots = [make.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    graph = make.make_graph([make.make_node("Conv", ["x", "w"], ["y"])], "one", slots[:1], slots[1:], [weight])
    model: bytes = make.make_model(
        graph, opset_imports=[make.make_opsetid("", 18)], ir_version=8
    ).SerializeToString()  # fmt: skip
    return model


def measure(path: str, library: bool) -> dict[str, Any]:
    session_of(smallest(), library).run(None, {"x": np.ones((1, 3, 8, 8), np.float32)})
    base, begun = resident(), time.perf_counter()
    session = session_of(path, library)
    loaded, taken, peak = resident(), time.perf_counter() - begun, resident("VmHWM")
    fed = feed(session)
    before = resident()
    for _ in range(5):
        session.run(None, fed)
    runs = resident() - before
    figures = {"file": Path(path).stat().st_size, "session": loaded - base, "runs": runs, "loading": peak - base}
    row = {"net": Path(path).name, "library": library, "load_ms": round(1e3 * taken)}
    return row | {f"{name}_mb": round(size / 1e6, 1) for name, size in figures.items()}


def load(path: str, count: int, runs: int) -> None:
    """Run ``count`` threads on two sessions and print what is resident after each tenth of the runs."""
    sessions = [session_of(path, True, threads) for threads in (1, 2)]
    fed = feed(sessions[0])
    wanted = sessions[0].run(None, fed)[0]
    wrong, begun = [0] * count, time.perf_counter()

    def work(number: int) -> None:
        for _ in range(runs // 10):
            wrong[number] += not np.array_equal(sessions[number % 2].run(None, fed)[0], wanted)

    for tenth in range(1, 11):
        threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        row = {"runs": tenth * (runs // 10) * count, "resident_mb": round(resident() / 1e6, 1), "wrong": sum(wrong)}
        print(json.dumps(row | {"seconds": round(time.perf_counter() - begun, 1)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="+", help="ONNX files")
    parser.add_argument("--load", nargs=2, type=int, metavar=("THREADS", "RUNS"))
    parser.add_argument("--one", choices=("library", "bodies"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for net in arguments.nets:
        if arguments.load:
            load(net, *arguments.load)
        elif arguments.one:
            print(json.dumps(measure(net, arguments.one == "library")), flush=True)
        else:
            for way in ("library", "bodies"):
                subprocess.run([sys.executable, __file__, net, "--one", way], check=True)


if __name__ == "__main__":
    main()
