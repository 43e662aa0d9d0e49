"""The table of CPU levels, best first, and the choice between them; the door to the kernels of a GPU.

``BINARIZE_KERNEL=name`` forces one level, ``name,name`` the best of some; `levels` says which run here and why the
others do not.
"""

import dataclasses
import functools
import os
from typing import Protocol, cast, final

from torch import Tensor

from binarize.errors import NoKernelError, nearest
from binarize.kernels import reference
from binarize.kernels.compiled import Compiled, compiled_levels
from binarize.kernels.cuda.devices import cuda_kernels
from binarize.kernels.finish import Finish
from binarize.kernels.problem import Conv2dProblem, UniformCode

__all__ = ["LEVELS", "Kernels", "Level", "choose", "kernels_for", "levels", "names_in"]

_VARIABLE = "BINARIZE_KERNEL"


class Kernels(Protocol):
    """What a level computes; `binarize.kernels.reference` is the definition of each.

    Attributes:
        reads_halves: whether floats that are packed, and residuals, may be float16 or bfloat16.
    """

    @property
    def reads_halves(self) -> bool:
        """See the class."""

    def pack_uniform(self, x: Tensor, low: float, inverse_step: float, bits: int, groups: int) -> Tensor:
        """Digit planes of the uniform code."""

    def pack_thresholds(self, x: Tensor, thresholds: Tensor, groups: int) -> Tensor:
        """One digit plane per threshold."""

    def encode_uniform(self, x: Tensor, low: float, inverse_step: float, bits: int, groups: int) -> Tensor:
        """The uniform code as bytes."""

    def encode_thresholds(self, x: Tensor, thresholds: Tensor, groups: int) -> Tensor:
        """One term of bytes per threshold."""

    def conv2d_integer(self, problem: Conv2dProblem, x: Tensor, weight: Tensor) -> Tensor:
        """Integer accumulators."""

    def conv2d(
        self,
        problem: Conv2dProblem,
        x: Tensor,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor,
        row_class: Tensor | None,
        column_class: Tensor | None,
        residual: Tensor | None,
        minimum: float,
        maximum: float,
    ) -> Tensor:
        """Accumulators, then the float epilogue."""

    def conv2d_finished(
        self,
        problem: Conv2dProblem,
        x: Tensor,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor,
        row_class: Tensor | None,
        column_class: Tensor | None,
        residual: Tensor | None,
        minimum: float,
        maximum: float,
        finish: Finish,
    ) -> tuple[Tensor, Tensor | None]:
        """Accumulators, then the float epilogue and what follows it; a residual in any of `FLOATS`."""

    def conv2d_codes(
        self,
        problem: Conv2dProblem,
        x: Tensor,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor,
        row_class: Tensor | None,
        column_class: Tensor | None,
        residual: Tensor | None,
        minimum: float,
        maximum: float,
        code: UniformCode,
    ) -> Tensor:
        """Accumulators, then the float epilogue, then its codes."""

    def conv2d_threshold(
        self,
        problem: Conv2dProblem,
        x: Tensor,
        weight: Tensor,
        thresholds: Tensor,
        flip: Tensor,
        row_class: Tensor | None,
        column_class: Tensor | None,
    ) -> Tensor:
        """Accumulators, then the integer threshold."""


@final
@dataclasses.dataclass(frozen=True)
class Level:
    """One row of the table.

    ``missing`` is why it cannot run on this machine, or None; ``forms`` are the forms of operands that it multiplies.
    """

    name: str
    kernels: Kernels
    missing: str | None
    forms: tuple[str, ...] = ("planes", "codes")

    def why_not(self, problem: Conv2dProblem | None = None) -> str | None:
        """Return why this level cannot run ``problem`` (None: anything at all), or None."""
        if self.missing is not None or problem is None:
            return self.missing
        form = "codes" if problem.codes else "planes"
        if form not in self.forms:
            return f"multiplies {' and '.join(self.forms)}, not {form}"
        why = problem.why_not_int32()
        if why is None and isinstance(self.kernels, Compiled):
            why = problem.why_not_native()
        return why


# best first, as in native/levels.inc
_CPU_LEVELS = (
    "avx512_vpopcntdq_amd", "avx512_vpopcntdq", "avx512_amx", "avx512_vnni", "avx512bw", "avx2_vnni", "avx2", "neon",
    "scalar",
)  # fmt: skip


def _level(name: str) -> Level:
    compiled = compiled_levels()
    names = [known.name for known in compiled]
    if name in names:
        known = compiled[names.index(name)]
        missing = None if known.runs_here else f"this CPU lacks {name}"
        return Level(name, Compiled(names.index(name)), missing, known.forms)
    if not compiled:
        missing = "not compiled (installed with BINARIZE_NO_KERNELS=1); reinstall without it"
    else:
        missing = "not compiled for this kind of CPU"
    return Level(name, Compiled(-1), missing)


LEVELS: tuple[Level, ...] = (  # best first
    *(_level(name) for name in _CPU_LEVELS),
    Level("reference", cast("Kernels", reference), None),
)


def levels() -> list[tuple[str, str | None]]:
    """Return name and reason of each level, best first; the reason is None where it runs on this machine."""
    return [(level.name, level.why_not()) for level in LEVELS]


def choose(problem: Conv2dProblem | None = None) -> Kernels:
    """Return the kernels of the best level that runs ``problem`` (None: packing, which every level does).

    Raises:
        NoKernelError: Nothing runs it, or ``BINARIZE_KERNEL`` names a level that cannot or is not there.
    """
    return _choose(problem, os.environ.get(_VARIABLE) or None)


def kernels_for(x: Tensor, problem: Conv2dProblem | None = None) -> Kernels:
    """Return the kernels of the device that ``x`` lies on: those of its GPU, or the best level of this CPU.

    Raises:
        NoKernelError: Nothing there runs ``problem``.
    """
    return cuda_kernels(x.device, problem) if x.is_cuda else choose(problem)


def names_in(forced: str) -> list[str]:
    """Return the levels that a value of ``BINARIZE_KERNEL`` names."""
    return [name.strip() for name in forced.split(",")]


@functools.lru_cache(maxsize=4096)
def _choose(problem: Conv2dProblem | None, forced: str | None) -> Kernels:
    known = [level.name for level in LEVELS]
    wanted = names_in(forced) if forced is not None else known
    for name in wanted:
        if name not in known:
            why = f"no such kernel{nearest(name, known)}; {_VARIABLE} may be one of {', '.join(known)}"
            raise NoKernelError(problem or "packing", {name: why})
    reasons = {}
    for level in LEVELS:
        skipped = None if level.name in wanted else f"{_VARIABLE}={forced}"
        why_not = skipped or level.why_not(problem)
        if why_not is None:
            return level.kernels
        reasons[level.name] = why_not
    raise NoKernelError(problem or "packing", reasons)
