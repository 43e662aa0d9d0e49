"""The kernel of AMX on emulated tiles, against the scalar ones, bit for bit: CPUs that have the real ones are rare."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from binarize.kernels import levels

HERE = Path(__file__).parent
NATIVE = HERE.parents[1] / "kernels" / "native"
OPTIONS = ["-std=c++17", "-O2", "-ffp-contract=off", "-fno-trapping-math"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma", "-mpopcnt"]
SOURCES = {
    NATIVE / "dense.cpp": [],
    NATIVE / "threads.cpp": [],
    NATIVE / "cpu" / "scalar.cpp": [],
    NATIVE / "cpu" / "dense_scalar.cpp": [],
    NATIVE / "cpu" / "dense_avx2.cpp": ["-mavx2", "-mfma"],
    NATIVE / "cpu" / "dense_avx512.cpp": AVX512,
    NATIVE / "cpu" / "avx512_amx.cpp": [*AVX512, "-DBINARIZE_EMULATED_TILES"],
    HERE / "compare" / "amx_levels.cpp": [],
    HERE / "compare" / "compare.cpp": [],
}


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="compiles for x86")
@pytest.mark.skipif(dict(levels())["avx512_vnni"] is not None, reason="this CPU lacks avx512_vnni")
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_tiles_give_the_bits_of_the_scalar_kernels(tmp_path):
    program, objects = tmp_path / "compare", []
    for source, options in SOURCES.items():
        objects.append(tmp_path / f"{source.stem}.o")
        subprocess.run(
            ["g++", *OPTIONS, *options, f"-I{NATIVE}", "-c", str(source), "-o", str(objects[-1])], check=True
        )
    subprocess.run(["g++", *map(str, objects), "-ldl", "-o", str(program)], check=True)

    done = subprocess.run([program, "150"], capture_output=True, text=True)

    assert done.stdout == "avx512_amx and avx512 against scalar\n"
    assert done.returncode == 0, done.stderr
