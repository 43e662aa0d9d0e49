"""Runs the CUDA kernels on a CPU: the very same source as plain C++, one emulated thread block at a time."""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from binarize.kernels.cuda.specialise import SOURCES, Specialised
from binarize.kernels.cuda.tiles import Gpu

HERE = Path(__file__).parent / "kernels" / "cuda"
TILE_CONSTANTS = ("kTileO", "kTileP", "kWarpsO", "kWarpsP", "kStep", "kStages", "kTogether")
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-Wno-pragmas")


def compiler():
    return shutil.which("g++") or pytest.skip("no g++, which the emulated thread block is compiled with")


@functools.lru_cache(maxsize=1)
def _version():
    texts = [path.read_bytes() for folder in (SOURCES, HERE) for path in sorted(folder.iterdir()) if path.is_file()]
    return hashlib.sha256(b"".join(texts)).hexdigest()[:16]


@functools.lru_cache(maxsize=64)
def library(file, name, tile):
    """Return the emulated kernel with these constants of tiles, compiled at most once a source."""
    kind = "PackCall" if name == "pack" else "Call"
    constants = " ".join(f"constexpr int {constant} = {value};" for constant, value in tile)
    key = hashlib.sha256(f"{_version()} {file} {constants}".encode()).hexdigest()[:24]
    path = Path(tempfile.gettempdir()) / f"binarize-emulated-{key}.so"
    if not path.exists():
        defines = (f'-DKERNEL_FILE="{file}"', f"-DKERNEL_NAME={name}", f"-DKERNEL_CALL={kind}", f"-DTILE={constants}")
        draft = str(path.with_suffix(f".{os.getpid()}"))
        command = [compiler(), *FLAGS, f"-I{HERE}", f"-I{SOURCES}", *defines, str(HERE / "emulate.cpp"), "-o", draft]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        Path(draft).replace(path)
    found = ctypes.CDLL(str(path))
    found.run.restype = ctypes.c_char_p
    return found


class Emulator:
    """A `Launcher` whose device is emulated; tensors stay on the CPU."""

    def __init__(self, capability=(9, 0), seed=0):
        self.gpu = Gpu("emulated", capability, 4, 227 << 10)
        self.seed, self.launched, self.tensors, self.threads_of, self.prepared = seed, [], [], [], []

    def readable(self, *tensors):
        """Let asynchronous copies read these tensors and nothing else; without any, everything."""
        self.tensors = tensors
        return self

    def may_wait(self):
        return True

    def prepare(self, kernels):
        self.prepared += kernels

    def seconds(self, run):
        """Take the number of threads for the time."""
        before = sum(self.threads_of)
        run()
        return 1e-9 * (sum(self.threads_of) - before)

    def launch(self, kernel: Specialised, call, blocks, threads, shared_bytes):
        values = dict(kernel.constants)
        tile = tuple((name, values.pop(name)) for name in TILE_CONSTANTS if name in values)
        compiled = library(kernel.file, kernel.name, tile)
        for name, value in values.items():
            assert compiled.set_constant(name.encode(), value) == 0, name
        rows = [number for row in (*kernel.passes, *kernel.products) for number in row]
        compiled.set_tables((ctypes.c_int * len(rows))(*rows), len(kernel.passes), len(kernel.products))
        bounds = [edge for x in self.tensors for edge in (x.data_ptr(), x.data_ptr() + x.numel() * x.element_size())]
        ranges = (ctypes.c_uint64 * len(bounds))(*bounds)
        size = ctypes.c_size_t(ctypes.sizeof(call))
        fault = compiled.run(
            ctypes.byref(call),
            size,
            ranges,
            len(bounds) // 2,
            blocks,
            threads,
            ctypes.c_size_t(shared_bytes),
            self.seed,
        )
        assert not fault, fault.decode()
        self.launched.append(kernel)
        self.threads_of.append(blocks * threads)
