"""Choosing tiles: what fits a GPU, what a model prefers, and what was timed."""

import json

import pytest
import torch
from cuda_emulator import Emulator

from binarize.errors import NoKernelError
from binarize.kernels.cuda.compile import cache_folder
from binarize.kernels.cuda.specialise import Tile
from binarize.kernels.cuda.tiles import Gpu, candidates, default_tile, likely
from binarize.kernels.cuda.tune import Tuner
from binarize.kernels.problem import Conv2dProblem

H200, ADA, TURING = (
    Gpu("H200", (9, 0), 132, 227 << 10),
    Gpu("4090", (8, 9), 128, 99 << 10),
    Gpu("T4", (7, 5), 40, 64 << 10),
)
BLACKWELL = Gpu("B200", (10, 0), 148, 227 << 10)


def problem(channels=256, outputs=256, kernel=(3, 3), codes=False, groups=1):
    return Conv2dProblem(channels, outputs, kernel, (1, 1), (1, 1), (1, 1), groups, (1,), (1,), codes)


class Timing:
    """A `Trial` whose times are what ``seconds`` says."""

    def __init__(self, seconds):
        self.seconds, self.prepared, self.wrong = seconds, [], []

    def prepare(self, tiles):
        self.prepared += tiles

    def agrees(self, tile, other):
        assert tile.together
        assert not other.together
        return tile not in self.wrong


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("BINARIZE_TUNE", "BINARIZE_CUDA_KERNEL"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("gpu", [H200, ADA, TURING, BLACKWELL], ids=lambda gpu: gpu.name)
@pytest.mark.parametrize("codes", [False, True])
def test_every_candidate_is_a_tile_and_fits_the_shared_memory(gpu, codes):
    for case in (problem(codes=codes), problem(8, 20, (1, 1), codes), problem(64, 64, (3, 3), codes)):
        tiles = candidates(case, gpu)
        assert tiles[-1] is None
        assert all(tile.why_not() is None and tile.shared_bytes <= gpu.shared_bytes for tile in tiles[:-1])
        assert (len(tiles) > 2) == (codes or gpu is not BLACKWELL)


def test_large_problems_take_large_tiles_and_small_ones_fill_the_processors():
    large, small = default_tile(problem(), 256 * 14 * 14, H200), default_tile(problem(512, 512), 49, H200)

    assert (large.outputs, large.pixels) == (128, 128)
    assert small.outputs * small.pixels < 64 * 64


def test_tiles_worth_timing_are_few_and_hold_the_one_of_the_model():
    assert len(likely(problem(), 49, ADA)) == 9
    assert len(likely(problem(), 49, H200)) == 13
    assert default_tile(problem(), 49, H200) in likely(problem(), 49, H200)
    assert None not in likely(problem(), 10**6, H200)
    assert likely(problem(), 10**6, BLACKWELL) == (None,)


def test_few_channels_in_a_group_run_on_plain_cores():
    assert default_tile(problem(64, 64, groups=64), 1000, H200) is None
    assert default_tile(problem(), 1000, BLACKWELL) is None


def test_nothing_is_timed_unless_asked_for():
    def seconds(tile):
        raise AssertionError("timed")

    assert Tuner(H200).tile(problem(), "values", 1000, Timing(seconds)) == default_tile(problem(), 1000, H200)


def test_the_quickest_tile_is_kept_for_the_next_process(monkeypatch):
    monkeypatch.setenv("BINARIZE_TUNE", "1")
    case, timed = problem(), []
    tried = likely(case, 1000, H200)
    wanted = tried[3]

    def seconds(tile):
        timed.append(tile)
        if tile == tried[0]:
            raise NoKernelError(case, {"cuda": "too many registers"})
        return 1.0 if tile == wanted else 2.0

    assert Tuner(H200).tile(case, "values", 1000, Timing(seconds)) == wanted
    assert timed == list(tried)
    assert Tuner(H200).tile(problem(), "values", 1000, None) == wanted  # another process, the same geometry
    monkeypatch.delenv("BINARIZE_TUNE")
    assert Tuner(H200).tile(problem(), "values", 1000, Timing(seconds)) == wanted
    assert Tuner(ADA).tile(problem(), "values", 1000, None) == default_tile(problem(), 1000, ADA)
    assert len(timed) == len(tried)


def test_four_warps_together_are_taken_only_after_they_were_seen_to_be_right(monkeypatch):
    assert not default_tile(problem(), 10**6, H200).together
    monkeypatch.setenv("BINARIZE_TUNE", "1")
    together = [tile for tile in likely(problem(), 1000, H200) if tile is not None and tile.together]
    timing = Timing(lambda tile: 1.0 if tile in together else 2.0)
    timing.wrong = together[:1]

    with pytest.warns(UserWarning, match="a kernel is not used: .* gives other bits than .* on H200"):
        assert Tuner(H200).tile(problem(), "values", 1000, timing) == together[1]
    assert all(not tile.together for tile in candidates(problem(), ADA) if tile is not None)


def test_tiles_that_give_other_bits_leave_the_right_ones_behind(monkeypatch):
    from conv_cases import make_case

    from binarize.kernels.cuda.kernels import CudaKernels

    case = make_case(Conv2dProblem(70, 64, (3, 3), (1, 1), (1, 1), (1, 1), 1, (1,), (2,)), 1, 5, 5, seed=0)
    plain, together = Tile(64, 64, (2, 2), 32, 2), Tile(64, 64, (4, 1), 32, 2, together=True)

    class Both:
        def tile(self, problem, epilogue, pixels, trial):
            assert trial.agrees(together, plain)
            return plain

    kernels = CudaKernels(Emulator((9, 0)), Both())

    assert torch.equal(kernels.conv2d_integer(case.problem, case.x, case.weight).double(), case.sums())


@pytest.mark.parametrize("damage", ["not json", "[1]", '{"tile": 3}', '{"outputs": 7}', '{"outputs": [2], "warps": 1}'])
def test_a_damaged_cache_of_tiles_is_as_good_as_none(damage, monkeypatch):
    monkeypatch.setenv("BINARIZE_TUNE", "1")
    case = problem()
    Tuner(H200).tile(case, "values", 1000, Timing(lambda tile: 1.0))
    file = cache_folder() / "tiles.json"
    (key,) = json.loads(file.read_text())
    file.write_text(damage if not damage.startswith("{") else json.dumps({key: json.loads(damage)}))
    monkeypatch.delenv("BINARIZE_TUNE")

    assert Tuner(H200).tile(case, "values", 1000, None) == default_tile(case, 1000, H200)


def test_the_kind_that_is_forced_is_taken(monkeypatch):
    monkeypatch.setenv("BINARIZE_CUDA_KERNEL", "direct")
    assert Tuner(H200).tile(problem(), "values", 1000, None) is None
    monkeypatch.setenv("BINARIZE_CUDA_KERNEL", "tensor")
    assert Tuner(H200).tile(problem(64, 64, groups=64), "values", 1000, None) is not None


def test_tuning_runs_every_candidate_and_then_the_quickest(monkeypatch):
    from conv_cases import make_case

    from binarize.kernels.cuda.kernels import CudaKernels

    monkeypatch.setenv("BINARIZE_TUNE", "1")
    case = make_case(Conv2dProblem(20, 20, (1, 1), (1, 1), (0, 0), (1, 1), 1, (1,), (1,)), 1, 3, 3, seed=0)
    emulator = Emulator((8, 0))
    kernels, tried = CudaKernels(emulator), len(likely(case.problem, 9, emulator.gpu))

    first = kernels.conv2d_integer(case.problem, case.x, case.weight)
    assert emulator.prepared == emulator.launched[:-1]
    assert len(emulator.launched) == tried + 1
    kernels.conv2d_integer(case.problem, case.x, case.weight)
    assert len(emulator.launched) == tried + 2
    assert (first.double() == case.sums()).all()
