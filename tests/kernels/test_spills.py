"""The machine code of the hot loops keeps everything in registers: a spill would be read in every turn."""

import os
import platform
import re
import shutil
import subprocess

import pytest

from binarize.kernels.compiled import native

pytestmark = [
    pytest.mark.skipif(native is None, reason="no kernels are compiled"),
    pytest.mark.skipif("ASAN_OPTIONS" in os.environ, reason="sanitizers put code of their own into the loops"),
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86 machine code"),
    pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not installed (binutils)"),
]

# What does the work in the loops of each level, and how many of it the smallest of its full tiles has in a loop.
HOT = {
    "avx512_vpopcntdq": (r"vpopcntd .*zmm", 14),
    "avx512_amx": (r"tdpbusd ", 4),
    "avx512_vnni": (r"vpdpbusd .*zmm", 14),
    "avx512bw": (r"vpshufb .*zmm", 12),
    "avx2_vnni": (r"(\{vex\} )?vpdpbusd .*ymm", 12),
    "avx2": (r"vpshufb .*ymm", 8),
    "avx2 codes": (r"vpmaddwd .*ymm", 8),
    "float avx512": (r"vfmadd...ps .*zmm", 24),
}
LINE = re.compile(r"^\s*([0-9a-f]+):\s+(\S.*)$")
JUMP = re.compile(r"^j[a-z]+\s+([0-9a-f]+)\b")
SPILL = re.compile(r"%[xyz]mm.*\(%r[sb]p|\(%r[sb]p[^)]*\).*%[xyz]mm")


@pytest.fixture(scope="module")
def loops():
    """The innermost loops of the native module, each as the texts of its instructions."""
    command = ["objdump", "-d", "--no-show-raw-insn", native.__file__]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [(int(found[1], 16), found[2]) for found in map(LINE.match, text.splitlines()) if found]
    places = {address: index for index, (address, _) in enumerate(lines)}
    found, last_end = [], -1
    for index, (address, instruction) in enumerate(lines):
        jump = JUMP.match(instruction)
        target = int(jump[1], 16) if jump else address
        if target < address and target in places and places[target] > last_end:
            found.append([text for _, text in lines[places[target] : index + 1]])
            last_end = index
    return found


@pytest.mark.parametrize("level", HOT)
def test_no_hot_loop_spills_a_register(loops, level):
    pattern, least = HOT[level]
    hot = [loop for loop in loops if sum(bool(re.match(pattern, line)) for line in loop) >= least]

    assert hot, f"no loop of {level} was found"
    for loop in hot:
        spills = [line for line in loop if SPILL.search(line) and not re.match(pattern, line)]
        assert spills == [], "\n".join(loop)
