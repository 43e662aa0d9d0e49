"""Which kernel runs a convolution on a GPU: on plain cores, or on tensor cores in tiles of some size."""

import dataclasses
import functools
import os
from typing import final

from binarize.errors import ModelError, nearest
from binarize.kernels.cuda.specialise import Tile
from binarize.kernels.problem import Conv2dProblem

__all__ = ["KINDS", "Gpu", "candidates", "default_tile", "forced_kind", "likely", "why_not_tensor"]

KINDS = ("direct", "tensor")
_VARIABLE = "BINARIZE_CUDA_KERNEL"
_Shape = tuple[int, int, tuple[int, int]]
_SHAPES: tuple[_Shape, ...] = (  # output channels, pixels, warps along either; large first
    (128, 128, (2, 4)),
    (128, 64, (2, 2)),
    (64, 128, (2, 2)),
    (64, 64, (2, 2)),
    (64, 32, (2, 2)),
    (32, 64, (2, 2)),
    (32, 32, (2, 1)),
    (32, 16, (2, 1)),
)
_TOGETHER: tuple[_Shape, ...] = (  # the same by four warps together
    (128, 128, (4, 1)),
    (128, 128, (8, 1)),
    (128, 64, (4, 1)),
    (64, 128, (4, 1)),
    (64, 64, (4, 1)),
)
_MOST_TIMED, _MOST_TOGETHER = 8, 4
_FEW_OUTPUTS = 1 << 20  # beyond, tensor cores win by far where they run at all
_FEW_CHANNELS = 8  # of a group: a word would be mostly empty


@final
@dataclasses.dataclass(frozen=True)
class Gpu:
    """What the choice of a kernel depends on.

    Attributes:
        name: of the product.
        capability: compute capability.
        processors: streaming multiprocessors.
        shared_bytes: shared memory that one thread block can have.
    """

    name: str
    capability: tuple[int, int]
    processors: int
    shared_bytes: int

    @property
    def xor(self) -> bool:
        """Whether tensor cores multiply planes by xor."""
        return self.capability < (8, 0)

    @property
    def together(self) -> bool:
        """Whether four warps can multiply together: an instruction of this one capability (``sm_90a``)."""
        return self.capability == (9, 0)


def forced_kind() -> str | None:
    """Return the kind of kernel that ``BINARIZE_CUDA_KERNEL`` asks for, or None.

    Raises:
        ModelError: there is no such kind.
    """
    asked = os.environ.get(_VARIABLE) or None
    if asked is not None and asked not in KINDS:
        hint = f"{nearest(asked, KINDS)}; use {' or '.join(KINDS)}"
        raise ModelError(f"cannot choose a CUDA kernel: {_VARIABLE} is {asked!r}{hint}")
    return asked


def why_not_tensor(problem: Conv2dProblem, gpu: Gpu) -> str | None:
    """Return why tensor cores of ``gpu`` cannot run ``problem``, or None."""
    if not problem.codes and gpu.capability >= (10, 0):
        return "GPUs of compute capability 10.0 and newer have no binary tensor cores; the route int8 has tensor cores"
    return None


@functools.lru_cache(maxsize=4096)
def candidates(problem: Conv2dProblem, gpu: Gpu) -> tuple[Tile | None, ...]:
    """Return the tiles worth timing, the largest first, and None for the kernel on plain cores."""
    if why_not_tensor(problem, gpu) is not None:
        return (None,)
    made = [_tile(shape, step, stages) for shape in _fitting(problem, _SHAPES) for step, stages in _steps(problem)]
    if gpu.together:
        shapes = _fitting(problem, _TOGETHER)
        made += [Tile(*shape, step, stages, together=True) for shape in shapes for step, stages in _steps(problem)]
    kept = [tile for tile in made if tile.shared_bytes <= gpu.shared_bytes]
    return (*kept, None)


def _tile(shape: _Shape, step: int, stages: int) -> Tile:
    outputs, pixels, (rows, columns) = shape
    columns = min(columns, pixels // 16)
    return Tile(outputs, pixels, (rows, columns), step, stages)


def _fitting(problem: Conv2dProblem, shapes: tuple[_Shape, ...]) -> list[_Shape]:
    """Shapes that are at most half empty in output channels."""
    outputs = problem.out_channels // problem.groups
    return [shape for shape in shapes if shape[0] < 2 * outputs or shape[0] == 32]


def _steps(problem: Conv2dProblem) -> list[tuple[int, int]]:
    """Words per step and stages, likely ones first."""
    depth = problem.kernel[0] * problem.kernel[1] * problem.words
    if depth <= 8:
        return [(8, 2)]
    if depth < 64:
        return [(16, 3), (8, 4)]
    return [(32, 3), (32, 2), (16, 4)]


@functools.lru_cache(maxsize=4096)
def likely(problem: Conv2dProblem, pixels: int, gpu: Gpu) -> tuple[Tile | None, ...]:
    """Return the candidates worth timing: those that the model finds best, and the kernel on plain cores."""
    tiles = sorted(_tiles(problem, gpu), key=lambda tile: _cost(problem, pixels, gpu, tile))
    best = [tile for tile in tiles if not tile.together][:_MOST_TIMED]
    best += [tile for tile in tiles if tile.together][:_MOST_TOGETHER]
    small = pixels * problem.out_channels <= _FEW_OUTPUTS
    return (*best, None) if small or not best else (*best,)


def _tiles(problem: Conv2dProblem, gpu: Gpu) -> list[Tile]:
    return [tile for tile in candidates(problem, gpu) if tile is not None]


@functools.lru_cache(maxsize=4096)
def default_tile(problem: Conv2dProblem, pixels: int, gpu: Gpu) -> Tile | None:
    """Return the tile that a simple model prefers, without timing anything.

    None of four warps together: no GPU has shown yet that it takes their instruction as its manual says. `Tuner` times
    them, once it has seen that they give the same bits.
    """
    kind = forced_kind()
    tiles = [tile for tile in _tiles(problem, gpu) if not tile.together]
    few = problem.channels_per_group < _FEW_CHANNELS
    if kind == "direct" or not tiles or (few and kind is None):
        return None
    return min(tiles, key=lambda tile: _cost(problem, pixels, gpu, tile))


def _cost(problem: Conv2dProblem, pixels: int, gpu: Gpu, tile: Tile) -> float:
    """A tile costs its area, and its edges for the words that they load; processors take one each at a time."""
    outputs = problem.out_channels // problem.groups
    blocks = problem.groups * -(-outputs // tile.outputs) * -(-pixels // tile.pixels)
    waves = -(-blocks // gpu.processors)
    return float(waves * (tile.outputs * tile.pixels + 48 * (tile.outputs + tile.pixels) + 2048))
