"""Time to load a packed network and what it keeps resident, beside the same network in its peers; random weights.

Usage: python benchmarks/loading.py resnet18 --scheme xnor-net --ends encoding:w=8,a=8 [--size 224]

Each runtime has a process of its own: it is imported and runs a network of two layers, then the file is loaded and run,
on one thread. `load_ms` is the first load of the file, `again_ms` the second; megabytes are of resident memory beyond
the small network, after five runs and after the allocator gave back what is free.
"""

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Load = Callable[[str], Callable[[np.ndarray[Any, Any]], object]]


def load_binarize(path: str) -> Callable[[np.ndarray[Any, Any]], object]:
    """Open a packed network."""
    import torch

    import binarize

    torch.set_num_threads(1)
    net = binarize.load(path)

    def run(image: np.ndarray[Any, Any]) -> object:
        with torch.inference_mode():
            return net(torch.from_numpy(image))

    return run


def load_onnxruntime(path: str) -> Callable[[np.ndarray[Any, Any]], object]:
    """Open an ONNX file in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda image: session.run(None, {name: image})


def load_openvino(path: str) -> Callable[[np.ndarray[Any, Any]], object]:
    """Open an ONNX file in OpenVINO."""
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": 1})
    return lambda image: compiled([image])


RUNTIMES: dict[str, Load] = {
    "binarize": load_binarize, "onnxruntime": load_onnxruntime, "openvino": load_openvino,
}  # fmt: skip


def resident() -> int:
    """Return the bytes of this process in memory, without what its allocator holds for later."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


def measure(runtime: str, path: str, small: str, size: int) -> dict[str, Any]:
    """Load and run one file in this process."""
    load, image = RUNTIMES[runtime], np.random.default_rng(0).standard_normal((1, 3, size, size), dtype=np.float32)
    kept = load(small)
    kept(image)
    base, begun = resident(), time.perf_counter()
    run = load(path)
    loaded = time.perf_counter()
    run(image)
    ran = time.perf_counter()
    for _ in range(5):
        run(image)
    megabytes = (resident() - base) / 1e6
    again = time.perf_counter()
    load(path)
    times = {"load_ms": loaded - begun, "first_run_ms": ran - loaded, "again_ms": time.perf_counter() - again}
    figures = {"file_mb": Path(path).stat().st_size / 1e6, "resident_mb": megabytes}
    return {name: round(value, 1) for name, value in ({k: 1e3 * v for k, v in times.items()} | figures).items()}


def write(name: str, scheme: str, ends: str, size: int, folder: Path) -> list[tuple[str, str, str]]:
    """Write one network for each runtime, beside a small one; return runtime, file, and small file of each."""
    import torch
    from torch import nn
    from torchvision import models

    import binarize
    from binarize.peers import write_fp32, write_int8

    torch.manual_seed(0)
    images = torch.randn(4, 3, size, size)
    made = {}
    small = nn.Sequential(nn.Conv2d(3, 64, 3, 4), nn.ReLU(), nn.Conv2d(64, 64, 3, 4))
    for label, model in {"small": small.eval(), name: models.get_model(name, weights=None).eval()}.items():
        recipe = binarize.Recipe(scheme, ends=ends) if label == name else binarize.Recipe(scheme, keep_last=False)
        packed = binarize.pack(binarize.convert(model, images, recipe=recipe))
        files = [folder / f"{label}.{ending}" for ending in ("safetensors", "onnx", "int8.onnx")]
        binarize.save(packed, files[0])
        write_fp32(model, images[:1], files[1])
        write_int8(files[1], images, files[2])
        made[label] = [str(file) for file in files]
    ways = [("binarize", 0), ("onnxruntime", 1), ("onnxruntime", 2), ("openvino", 1)]
    return [(runtime, made[name][which], made["small"][which]) for runtime, which in ways]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", help="a network of torchvision.models")
    parser.add_argument("--scheme", default="xnor-net")
    parser.add_argument("--ends", default="fp", help="scheme of the first and last layers")
    parser.add_argument("--size", type=int, default=224, help="side of the image")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # runtime, file, small file: measured in this process
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one, options.size)))
        return
    from torchvision import models  # not in the process that is measured

    if options.name not in models.list_models():
        parser.error(f"no network of torchvision.models: {options.name}")
    with tempfile.TemporaryDirectory() as folder:
        for runtime, path, small in write(options.name, options.scheme, options.ends, options.size, Path(folder)):
            one = [options.name, "--size", str(options.size), "--one", runtime, path, small]
            done = subprocess.run([sys.executable, __file__, *one], capture_output=True, text=True, check=True)
            asked = {"network": options.name, "scheme": options.scheme, "runtime": runtime, "file": Path(path).name}
            print(json.dumps(asked | json.loads(done.stdout)), flush=True)


if __name__ == "__main__":
    main()
