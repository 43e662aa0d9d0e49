"""Every kernel compiles for every architecture without a GPU, and its machine code holds the instructions it should."""

import importlib.util
import itertools
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from binarize.errors import NoKernelError
from binarize.kernels.cuda import compile as compiling
from binarize.kernels.cuda.compile import architecture, compile_all, compiled, missing, why_not_capability
from binarize.kernels.cuda.specialise import EPILOGUES, Epilogue, Specialised, Tile, convolution, packing
from binarize.kernels.problem import Conv2dProblem

CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
WINDOW = (3, 3), (1, 1), (1, 1), (1, 1)
PLANES = Conv2dProblem(256, 256, *WINDOW, 1, (1,), (1,))
CODES = Conv2dProblem(256, 256, *WINDOW, 1, (4,), (4,), codes=True)
EMULATION = "EMULATION"
TILE = Tile(64, 32, (2, 2), 32, 2)
each_architecture = pytest.mark.parametrize("capability", CAPABILITIES, ids=architecture)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    if why := missing():
        pytest.skip(why)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp()))


def disassembler():
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else [Path(place) for place in spec.submodule_search_locations]
    found = [path for folder in folders for path in folder.glob("**/bin/nvdisasm*") if path.is_file()]
    return found[0] if found else pytest.skip("no nvdisasm: pip install nvidia-cuda-nvdisasm")


def instructions(kernel, capability, tmp_path):
    """How often each instruction stands in the machine code of a kernel, by its full name."""
    file = tmp_path / "kernel.cubin"
    file.write_bytes(compiled(kernel, architecture(capability)))
    text = subprocess.run([disassembler(), "-c", file], capture_output=True, text=True, check=True).stdout
    # A call of a label is a jump. That of a vote makes a warp meet first, where the compiler cannot see that it has.
    text = re.sub(r"CALL[A-Z.]* `\(\$(?![\w$]*votesync)", f"{EMULATION} (", text)
    return Counter(re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", text, re.MULTILINE))


def count(found, name):
    return sum(times for full, times in found.items() if full == name or full.startswith(f"{name}."))


def check_plain(found):
    """No call of an emulation and no fused multiply-add of floats."""
    assert sum(found.values()) > 50
    assert count(found, EMULATION) == count(found, "FFMA") == 0


def check_registers(found):
    """No array outside the registers."""
    assert count(found, "LDL") == count(found, "STL") == 0


def test_an_emulated_instruction_would_be_seen(tmp_path):
    """``xor`` has no instruction on sm_90: NVRTC puts calls of its own there."""
    source = tmp_path / "xor.cu"
    operands = "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3}"
    product = f"mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.xor.popc {operands};"
    outputs = ", ".join(f'"+r"(c[{i}])' for i in range(4))
    inputs = ", ".join(f'"r"(a[{i}])' for i in range(6))
    source.write_text(
        'extern "C" __global__ void pack(unsigned* a) {\n  unsigned c[4] = {};\n'
        f'  asm volatile("{product}" : {outputs} : {inputs});\n  a[0] = c[0] + c[1] + c[2] + c[3];\n}}\n'
    )
    found = instructions(Specialised(str(source), "pack", ()), (9, 0), tmp_path)

    assert count(found, EMULATION) > 0


@pytest.mark.parametrize("capability", [known for known in CAPABILITIES if known < (10, 0)], ids=architecture)
def test_planes_are_multiplied_by_binary_tensor_cores_where_there_are_any(capability, tmp_path):
    found = instructions(convolution(PLANES, Epilogue("digits"), TILE, xor=capability < (8, 0)), capability, tmp_path)

    check_plain(found)
    check_registers(found)
    kind = "BMMA.88128.XOR.POPC" if capability < (8, 0) else "BMMA.168256.AND.POPC"
    assert {name for name in found if "MMA" in name} - {"HFMA2.MMA"} == {kind}
    if capability >= (8, 0):
        assert count(found, "LDGSTS") > 0  # copies past the registers
    assert count(found, "LDSM") > 0


@pytest.mark.parametrize("tile", [Tile(128, 128, (4, 1), 32, 3, True), Tile(64, 64, (4, 1), 8, 2, True)], ids=str)
@pytest.mark.parametrize("problem", [PLANES, CODES], ids=["planes", "codes"])
def test_four_warps_together_multiply_by_the_instruction_of_sm_90a(problem, tile, tmp_path):
    found = instructions(convolution(problem, Epilogue("values"), tile), (9, 0), tmp_path)

    check_plain(found)
    check_registers(found)
    assert {name.partition(".")[0] for name in found if "MMA" in name} == {"IGMMA" if problem.codes else "BGMMA"}
    assert count(found, "WARPGROUP.ARRIVE") == 1  # products of a stage follow each other without waiting


@each_architecture
def test_codes_are_multiplied_by_eight_bit_tensor_cores(capability, tmp_path):
    found = instructions(convolution(CODES, Epilogue("codes"), TILE), capability, tmp_path)

    check_plain(found)
    check_registers(found)
    kind = "IMMA.8816" if capability < (8, 0) else "IMMA.16832"
    assert count(found, f"{kind}.S8.U8") > 0
    assert count(found, "BMMA") == 0


@each_architecture
@pytest.mark.parametrize("problem", [PLANES, CODES], ids=["planes", "codes"])
def test_the_direct_kernel_counts_on_plain_cores(problem, capability, tmp_path):
    found = instructions(convolution(problem, Epilogue("values"), None), capability, tmp_path)

    check_plain(found)
    assert count(found, "IDP" if problem.codes else "POPC") > 0
    assert count(found, "IMMA") == count(found, "BMMA") == 0


@each_architecture
def test_packing_compiles(capability, tmp_path):
    kinds = itertools.product((False, True), repeat=3) if capability == (9, 0) else [(False, False, True)]
    for kind in kinds:
        check_plain(instructions(packing(*kind), capability, tmp_path))
    for dtype in ("float16", "bfloat16"):
        check_plain(instructions(packing(False, False, True, dtype), capability, tmp_path))


@each_architecture
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("tile", [None, TILE], ids=["direct", "tensor"])
def test_sixteen_bits_slopes_and_packing_beside_the_floats_compile(tile, dtype, capability, tmp_path):
    beside = {"planes": 2} if tile is None else {"codes": True}
    epilogue = Epilogue("values", dtype, dtype, slopes=True, **beside)
    found = instructions(convolution(CODES, epilogue, tile), capability, tmp_path)

    check_plain(found)
    if tile is not None:  # the other saves some around its one division, before the loops
        check_registers(found)
    assert count(found, "STG.E.U16") > 0


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("tile", [None, Tile(64, 64, (2, 4), 16, 2)], ids=["direct", "64x64"])
def test_sums_of_several_terms_stay_in_registers(epilogue, tile, tmp_path):
    several = Conv2dProblem(64, 64, *WINDOW, 1, (1, 1), (1,))
    if epilogue == "digits":
        several = Conv2dProblem(64, 64, *WINDOW, 1, (2,), (2,))
    found = instructions(convolution(several, Epilogue(epilogue), tile), (8, 0), tmp_path)

    check_plain(found)
    check_registers(found)


def test_a_kernel_is_compiled_once_and_a_damaged_file_again(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = []
    compile_now = compiling._compile
    monkeypatch.setattr(compiling, "_compile", lambda *call: made.append(call) or compile_now(*call))
    kernel = packing(False, False, True)

    first = compiled(kernel, "sm_80")
    assert compiled(kernel, "sm_80") == first
    assert len(made) == 1

    (file,) = (tmp_path / "binarize" / "cuda").iterdir()
    whole = file.read_bytes()
    for damaged in (b"", whole[:-1], whole[:40] + b"x" + whole[41:]):
        file.write_bytes(damaged)
        assert compiled(kernel, "sm_80") == first
        assert file.read_bytes() == whole
    assert len(made) == 4
    assert compiled(kernel, "sm_90") != first  # another architecture is another file


def test_many_kernels_are_compiled_side_by_side(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels = [packing(False, codes, last) for codes, last in itertools.product((False, True), repeat=2)]

    compile_all(kernels * 2, "sm_80", threads=3)

    assert len([*(tmp_path / "binarize" / "cuda").iterdir()]) == 4
    assert all(compiled(kernel, "sm_80") for kernel in kernels)


def test_a_cache_that_cannot_be_written_is_done_without(monkeypatch, tmp_path):
    (tmp_path / "binarize").write_text("a file stands where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    assert compiled(packing(False, False, True), "sm_80")


def test_what_nvrtc_says_reaches_the_user():
    with pytest.raises(NoKernelError, match=r"(?s)NVRTC cannot compile it for sm_20.*gpu-architecture"):
        compiled(packing(False, False, True), "sm_20")


def test_old_gpus_are_refused_by_their_compute_capability():
    assert "7.5 or newer, this one has 7.0" in str(why_not_capability((7, 0)))
    assert all(why_not_capability(capability) is None for capability in CAPABILITIES)


@pytest.mark.parametrize("refusal", [ImportError("No module named 'cuda'"), RuntimeError("no libnvrtc\nat all")])
def test_a_missing_cuda_core_names_the_extra(monkeypatch, tmp_path, refusal):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def gone():
        raise refusal

    monkeypatch.setattr(compiling, "_toolchain", gone)
    assert "pip install 'binarize[cuda]'" in str(missing())
    with pytest.raises(NoKernelError, match=r"cuda-core.*pip install 'binarize\[cuda\]'"):
        compiled(packing(True, True, True), "sm_80")
