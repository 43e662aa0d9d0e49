import subprocess
import sys
from pathlib import Path

import pytest

from binarize.errors import NoKernelError
from binarize.kernels import dispatch, levels
from binarize.kernels.compiled import Compiled
from binarize.kernels.problem import Conv2dProblem


def problem(channels=8, weight_terms=(1,), activation_terms=(1,), kernel=(1, 1), codes=False):
    return Conv2dProblem(channels, 8, kernel, (1, 1), (0, 0), (1, 1), 1, weight_terms, activation_terms, codes)


def test_levels_are_listed_best_first_and_the_reference_always_runs():
    popcounts = ["avx512_vpopcntdq_amd", "avx512_vpopcntdq"]
    names = [*popcounts, "avx512_amx", "avx512_vnni", "avx512bw", "avx2_vnni", "avx2", "neon", "scalar", "reference"]
    assert [name for name, _ in levels()] == names
    assert dict(levels())["reference"] is None


@pytest.mark.parametrize("codes", [False, True])
def test_the_first_level_that_runs_is_chosen(monkeypatch, codes):
    monkeypatch.delenv("BINARIZE_KERNEL", raising=False)
    form = "codes" if codes else "planes"
    best = next(level for level in dispatch.LEVELS if level.why_not() is None and form in level.forms)

    assert dispatch.choose(problem(codes=codes)) is best.kernels


@pytest.mark.parametrize("level", dispatch.LEVELS, ids=lambda level: level.name)
def test_the_environment_forces_one_level(monkeypatch, level):
    monkeypatch.setenv("BINARIZE_KERNEL", level.name)
    if level.why_not(problem()):
        with pytest.raises(NoKernelError, match=level.name):
            dispatch.choose(problem())
    else:
        assert dispatch.choose(problem()) is level.kernels


def test_the_environment_may_name_one_level_for_each_form(monkeypatch):
    here = [level for level in dispatch.LEVELS if level.missing is None]
    planes = next((level for level in reversed(here) if level.forms == ("planes",)), None)
    codes = next((level for level in reversed(here) if level.forms == ("codes",)), None)
    if planes is None or codes is None:
        pytest.skip("no level of this CPU takes one form only")
    monkeypatch.setenv("BINARIZE_KERNEL", f"{codes.name},{planes.name}")

    assert dispatch.choose(problem()) is planes.kernels
    assert dispatch.choose(problem(codes=True)) is codes.kernels


@pytest.mark.parametrize("names", ["avx3", "scalar,avx3"])
def test_an_unknown_level_is_an_error_that_names_the_known_ones(monkeypatch, names):
    monkeypatch.setenv("BINARIZE_KERNEL", names)

    known = (
        "avx512_vpopcntdq_amd, avx512_vpopcntdq, avx512_amx, avx512_vnni, avx512bw, avx2_vnni, avx2, neon, scalar, "
        "reference"
    )
    with pytest.raises(NoKernelError, match=rf"did you mean 'avx2'.*{known}"):
        dispatch.choose(problem())


def test_sums_past_int32_are_refused_by_every_level_with_the_reason(monkeypatch):
    monkeypatch.delenv("BINARIZE_KERNEL", raising=False)
    wide = problem(channels=40000, weight_terms=(8,), activation_terms=(8,))

    with pytest.raises(NoKernelError) as caught:
        dispatch.choose(wide)

    runnable = [level.name for level in dispatch.LEVELS if level.missing is None]
    multiplies_planes = [level.name for level in dispatch.LEVELS if "planes" in level.forms]
    assert all("int32 limit" in caught.value.reasons[name] for name in runnable if name in multiplies_planes)
    assert all("multiplies codes" in caught.value.reasons[name] for name in runnable if name not in multiplies_planes)


def test_the_largest_problem_within_int32_is_accepted():
    assert problem(channels=33025, weight_terms=(8,), activation_terms=(8,)).why_not_int32() is None


def test_more_planes_than_native_code_holds_go_to_the_reference(monkeypatch):
    monkeypatch.delenv("BINARIZE_KERNEL", raising=False)
    many = problem(weight_terms=(8,) * 5)

    assert dispatch.choose(many) is dispatch.LEVELS[-1].kernels


def test_without_the_compiled_module_the_reference_runs_and_the_reasons_say_so(monkeypatch):
    monkeypatch.setattr("binarize.kernels.dispatch.compiled_levels", list)

    rows = [dispatch._level(name) for name in ("avx512_vpopcntdq", "avx512_vnni", "avx2", "scalar")]

    assert all("BINARIZE_NO_KERNELS" in str(row.why_not(problem())) for row in rows)
    assert all(isinstance(row.kernels, Compiled) for row in rows)


def test_the_folder_refuses_to_be_imported_as_top_level_kernels():
    root = Path(dispatch.__file__).parent.parent
    root = root if (root / "pyproject.toml").exists() else Path(__file__).parents[2]
    command = [sys.executable, "-c", "import kernels"]

    seen = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)

    assert seen.returncode == 1
    assert "installs as binarize.kernels" in seen.stderr
