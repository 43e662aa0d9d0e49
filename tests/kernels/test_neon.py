"""The kernels of 64-bit ARM, cross-compiled and run by an emulator, against the scalar ones, bit for bit."""

import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "kernels" / "native"
SOURCES = [
    *(NATIVE / name for name in ("dispatch.cpp", "dense.cpp", "threads.cpp")),
    *(NATIVE / "cpu" / f"{name}.cpp" for name in ("scalar", "dense_scalar", "neon", "dense_neon")),
    Path(__file__).parent / "compare" / "compare.cpp",
]
COMPILER, EMULATOR, ROOT = "aarch64-linux-gnu-g++", "qemu-aarch64", "/usr/aarch64-linux-gnu"
MISSING = [tool for tool in (COMPILER, EMULATOR) if shutil.which(tool) is None]


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (g++-aarch64-linux-gnu, qemu-user)")
def test_neon_gives_the_bits_of_the_scalar_kernels(tmp_path):
    program = tmp_path / "compare"
    options = ["-std=c++17", "-O2", "-ffp-contract=off", "-fno-trapping-math", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([COMPILER, *options, f"-I{NATIVE}", *map(str, SOURCES), "-ldl", "-o", program], check=True)

    done = subprocess.run([EMULATOR, "-L", ROOT, program, "25"], capture_output=True, text=True)

    assert done.stdout == "neon and neon against scalar\n"
    assert done.returncode == 0, done.stderr
