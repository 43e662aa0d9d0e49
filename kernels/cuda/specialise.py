"""What a kernel is compiled for: the constants and tables that stand in front of its CUDA source.

A kernel is compiled once for each convolution, epilogue and tile; sizes of images and batches stay arguments.
"""

import dataclasses
import functools
from pathlib import Path
from typing import final

from binarize.kernels.problem import Conv2dProblem

__all__ = ["EPILOGUES", "FLOAT_TYPES", "SOURCES", "Epilogue", "Specialised", "Tile", "convolution", "packing"]

SOURCES = Path(__file__).parent / "source"
EPILOGUES = {"integers": 0, "values": 1, "codes": 2, "digits": 3}  # `Epilogue` of call.cuh
FLOAT_TYPES = {"float32": 0, "float16": 1, "bfloat16": 2}  # `FloatType` of narrow.cuh


@final
@dataclasses.dataclass(frozen=True)
class Epilogue:
    """What becomes of the sums.

    Attributes:
        stored: one of `EPILOGUES`.
        dtype: of the floats that are stored, one of `FLOAT_TYPES`.
        added: of the residual, the same.
        slopes: whether what is not above 0 is multiplied by a slope.
        planes: digit planes that are packed beside the floats.
        codes: whether codes are.
        thresholds: whether thresholds make the digits, else the uniform code.
    """

    stored: str
    dtype: str = "float32"
    added: str = "float32"
    slopes: bool = False
    planes: int = 0
    codes: bool = False
    thresholds: bool = False

    def constants(self) -> tuple[tuple[str, int], ...]:
        """Return name and value of the kernel's constants."""
        return (
            ("kEpilogue", EPILOGUES[self.stored]),
            ("kStored", FLOAT_TYPES[self.dtype]),
            ("kAdded", FLOAT_TYPES[self.added]),
            ("kSlopes", int(self.slopes)),
            ("kAlso", 2 if self.codes else int(self.planes > 0)),
            ("kAlsoBits", self.planes),
            ("kAlsoThresholds", int(self.thresholds)),
        )


@final
@dataclasses.dataclass(frozen=True)
class Tile:
    """How the tensor-core kernels cut a convolution up.

    Attributes:
        outputs: output channels of a thread block, a multiple of 32.
        pixels: output pixels of a thread block.
        warps: of a thread block, along either.
        step: words of the depth taken at a time: 8, 16 or 32.
        stages: buffers that hold a step each.
        together: whether four warps multiply with all pixels of the tile at once, which sm_90a alone can (``wgmma``).
    """

    outputs: int
    pixels: int
    warps: tuple[int, int]
    step: int
    stages: int
    together: bool = False

    @property
    def threads(self) -> int:
        """Threads of a thread block."""
        return 32 * self.warps[0] * self.warps[1]

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a thread block, as tensor.cu lays it out."""
        stages = self.stages * self.step * (self.outputs + self.pixels)
        sums = self.pixels * (self.outputs + 4)
        return 4 * (max(stages, sums) + self.pixels + self.outputs + 3 * self.pixels)

    def why_not(self) -> str | None:
        """Return why tensor.cu has no such tile, or None."""
        rows, columns = (size // count for size, count in zip((self.outputs, self.pixels), self.warps, strict=True))
        whole = rows * self.warps[0] == self.outputs and columns * self.warps[1] == self.pixels
        if not whole or rows % 16 or columns % 16 or self.outputs % 32:
            return "a warp takes a multiple of 16 of either, a block a multiple of 32 output channels"
        if self.step not in (8, 16, 32) or self.stages < 2:
            return "steps are 8, 16 or 32 words, in two stages or more"
        if self.together and (self.warps[0] % 4 or self.warps[1] != 1 or self.pixels not in (64, 128)):
            return "four warps together take 64 or 128 pixels"
        return None


@final
@dataclasses.dataclass(frozen=True, eq=False)  # compared by identity: each is made once
class Specialised:
    """One kernel with its constants: what is compiled, cached and launched.

    Attributes:
        file: of the source folder.
        name: the kernel's.
        constants: name and value of each.
        passes: rows of the table of `Pass`.
        products: rows of the table of `Product`.
    """

    file: str
    name: str
    constants: tuple[tuple[str, int], ...]
    passes: tuple[tuple[int, ...], ...] = ()
    products: tuple[tuple[int, ...], ...] = ()

    def text(self) -> str:
        """Return the CUDA source that is compiled."""
        lines = [f"constexpr int {name} = {value};" for name, value in self.constants]
        lines.append('#include "call.cuh"')
        if self.products:
            lines += [_table("Pass", "passes", self.passes), _table("Product", "products", self.products)]
        lines.append(f'#include "{self.file}"')
        return "\n".join(lines) + "\n"

    @functools.cached_property
    def short(self) -> str:
        """A name for messages and files."""
        return f"{self.name} of {dict(self.constants)}"


def _table(kind: str, name: str, rows: tuple[tuple[int, ...], ...]) -> str:
    values = ", ".join("{" + ", ".join(map(str, row)) + "}" for row in rows)
    table = f"__constant__ const {kind} k{kind}Table[] = {{{values}}};"
    return f"{table}\nDEVICE {kind} {name}(int index) {{ return k{kind}Table[index]; }}"


@functools.lru_cache(maxsize=4096)
def convolution(problem: Conv2dProblem, epilogue: Epilogue, tile: Tile | None, xor: bool = False) -> Specialised:
    """Return the kernel of one convolution: on tensor cores in tiles, or with ``tile=None`` on plain cores.

    Args:
        problem: what is computed.
        epilogue: what becomes of the sums.
        tile: how it is cut up.
        xor: whether tensor cores multiply planes by xor: those of compute capability 7.5.
    """
    strips = len if problem.codes else sum
    names = ("Kernel", "Stride", "Padding", "Dilation")
    windows = (problem.kernel, problem.stride, problem.padding, problem.dilation)
    xor = xor and tile is not None and not problem.codes
    passes, products = _passes(problem, xor)
    constants = [
        ("kCodes", int(problem.codes)),
        ("kXor", int(xor)),
        ("kGroups", problem.groups),
        ("kWords", problem.words),
        ("kOut", problem.out_channels // problem.groups),
        *(
            (f"k{name}{axis}", pair["HW".index(axis)])
            for name, pair in zip(names, windows, strict=True)
            for axis in "HW"
        ),
        ("kStrips", strips(problem.activation_terms)),
        ("kWeightStrips", strips(problem.weight_terms)),
        ("kProducts", problem.products),
        *epilogue.constants(),
    ]
    if tile is None:
        return Specialised("direct.cu", "direct", tuple(constants), passes, products)
    rows, columns = tile.warps
    sizes = (tile.outputs, tile.pixels, rows, columns, tile.step, tile.stages, int(tile.together))
    named = zip(("kTileO", "kTileP", "kWarpsO", "kWarpsP", "kStep", "kStages", "kTogether"), sizes, strict=True)
    return Specialised("tensor.cu", "tensor", (*constants, *named), passes, products)


@functools.lru_cache(maxsize=32)
def packing(thresholds: bool, codes: bool, channels_last: bool, dtype: str = "float32") -> Specialised:
    """Return the kernel that packs floats of a type into planes or codes."""
    flags = {
        "kThresholds": thresholds, "kPackCodes": codes, "kChannelsLast": channels_last, "kRead": FLOAT_TYPES[dtype],
    }  # fmt: skip
    return Specialised("pack.cu", "pack", tuple((name, int(flag)) for name, flag in flags.items()))


def _passes(problem: Conv2dProblem, xor: bool) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """Return the rows of the tables of passes and products, products weight-major."""
    passes: list[tuple[int, ...]] = []
    products: list[tuple[int, ...]] = []
    first_weight = 0
    for w, weights in enumerate(problem.weight_terms):
        first_strip = 0
        for a, digits in enumerate(problem.activation_terms):
            if problem.codes:
                made = [(w, a, 0, 0, -1)]
                odd = -1 if weights else 1
            else:
                made = _plane_passes(first_weight, weights, first_strip, digits, xor)
                odd = 2**weights - 1 if weights else 1
            products.append((len(passes), len(made), int(weights > 0), odd, 2**digits - 1))
            passes += made
            first_strip += digits
        first_weight += weights
    return tuple(passes), tuple(products)


def _plane_passes(
    first_weight: int, weights: int, first_strip: int, digits: int, xor: bool
) -> list[tuple[int, int, int, int, int]]:
    """Passes of one product by falling i + j (Horner's rule), i over weight planes and j over digit planes.

    Each digit plane is counted in one of its passes, or, for xor, each weight plane.
    """
    if weights == 0:  # the constant +1: its sum is that of the window
        return [(0, first_strip + j, 0, j, -1) for j in range(digits)]
    made: list[tuple[int, int, int, int, int]] = []
    for total in range(weights + digits - 2, -1, -1):
        pairs = [(i, total - i) for i in range(weights) if 0 <= total - i < digits]
        for place, (i, j) in enumerate(pairs):
            doubles = int(place == 0 and bool(made))
            window = j if i == weights - 1 and not xor else -1
            weight = i if j == digits - 1 and xor else -1
            made.append((first_weight + i, first_strip + j, doubles, window, weight))
    return made
