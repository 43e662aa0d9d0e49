"""Autotuning: the tiles that a model finds likely are timed once on the device at hand, and the quickest is kept.

``BINARIZE_TUNE=1`` asks for it: compiling and timing some ten kernels takes seconds for each convolution and size.
Without it `default_tile` chooses, and what was tuned before is used.
"""

import contextlib
import dataclasses
import hashlib
import os
import warnings
from collections.abc import Sequence
from typing import Protocol, final

from binarize.errors import NoKernelError
from binarize.kernels.cuda.compile import source_digest
from binarize.kernels.cuda.kept import keep, kept
from binarize.kernels.cuda.specialise import Epilogue, Tile
from binarize.kernels.cuda.tiles import Gpu, candidates, default_tile, forced_kind, likely
from binarize.kernels.problem import Conv2dProblem

__all__ = ["Trial", "Tuner", "asked_to_tune"]

_FILE = "tiles.json"


def asked_to_tune() -> bool:
    """Whether ``BINARIZE_TUNE`` asks for timing what was not timed before."""
    return os.environ.get("BINARIZE_TUNE", "") not in ("", "0")


class Trial(Protocol):
    """One convolution, to be run with different tiles."""

    def prepare(self, tiles: Sequence[Tile | None]) -> None:
        """Compile the kernels of all these tiles side by side; what cannot be compiled fails when it is timed."""

    def seconds(self, tile: Tile | None) -> float:
        """Return how long it takes with a tile."""

    def agrees(self, tile: Tile, other: Tile | None) -> bool:
        """Whether two tiles give the same bits."""


@final
class Tuner:
    """Chooses tiles for one GPU: those timed before, those timed now if asked for, else by the model.

    Args:
        gpu: whose tiles.
    """

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self._known: dict[tuple[Conv2dProblem, Epilogue, int, str | None], Tile | None] = {}

    def tile(self, problem: Conv2dProblem, epilogue: Epilogue, pixels: int, trial: Trial | None) -> Tile | None:
        """Return the tile for a convolution, None for the kernel on plain cores.

        Args:
            problem: the convolution.
            epilogue: what it stores.
            pixels: of its output, over all images.
            trial: times it with a tile; None where nothing may be timed now.
        """
        forced = forced_kind()
        known = problem, epilogue, pixels, forced
        if known in self._known:
            return self._known[known]
        if forced == "direct":
            return None
        timing = trial if asked_to_tune() else None
        key = self._key(problem, epilogue, pixels)
        found = kept(_FILE).get(key)
        if isinstance(found, dict) and (chosen := _tile_of(found)) in candidates(problem, self.gpu):
            self._known[known] = chosen
        elif timing is not None:
            self._known[known] = chosen = self._quickest(problem, pixels, timing)
            keep(_FILE, key, {} if chosen is None else dataclasses.asdict(chosen))
        else:
            chosen = default_tile(problem, pixels, self.gpu)
            if trial is not None:  # else it may be timed or found later
                self._known[known] = chosen
        return chosen

    def _quickest(self, problem: Conv2dProblem, pixels: int, trial: Trial) -> Tile | None:
        tiles = likely(problem, pixels, self.gpu)
        trial.prepare(tiles)
        times: dict[Tile | None, float] = {}
        for tile in tiles:
            with contextlib.suppress(NoKernelError):  # needs more of the device than it has
                if tile is None or not tile.together or self._is_right(tile, tiles[0], problem, trial):
                    times[tile] = trial.seconds(tile)
        return min(times, key=lambda tile: times[tile]) if times else None

    def _is_right(self, tile: Tile, other: Tile | None, problem: Conv2dProblem, trial: Trial) -> bool:
        if trial.agrees(tile, other):
            return True
        what = f"{tile} gives other bits than {other} on {self.gpu.name} for {problem}"
        warnings.warn(f"a kernel is not used: {what}; please report this", stacklevel=2)
        return False

    def _key(self, problem: Conv2dProblem, epilogue: Epilogue, pixels: int) -> str:
        fields = [self.gpu, problem, epilogue, pixels, source_digest()]
        return hashlib.sha256(repr(fields).encode()).hexdigest()


def _tile_of(found: dict[str, object]) -> Tile | None:
    """Return the tile that a cache entry describes; what is damaged describes none that is a candidate."""
    if not found:
        return None
    try:
        made = Tile(**found)  # type: ignore[arg-type]
    except TypeError:
        return Tile(0, 0, (0, 0), 0, 0)
    return dataclasses.replace(made, warps=tuple(made.warps) if isinstance(made.warps, list) else made.warps)
