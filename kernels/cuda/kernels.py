"""The ops on a GPU: allocates outputs, fills in the arguments, launches. One `CudaKernels` per device."""

import ctypes
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol, final

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from binarize.errors import ModelError, NoKernelError
from binarize.kernels.codes import depth
from binarize.kernels.cuda.call import Call, PackCall, address
from binarize.kernels.cuda.outputs import Affine, Fields, Outputs, beside, code_fields, new_codes, type_of
from binarize.kernels.cuda.specialise import Epilogue, Specialised, Tile, convolution, packing
from binarize.kernels.cuda.tiles import Gpu, forced_kind, why_not_tensor
from binarize.kernels.cuda.tune import Trial, Tuner
from binarize.kernels.finish import Finish, name_of
from binarize.kernels.format import words
from binarize.kernels.problem import Conv2dProblem, UniformCode

__all__ = ["CudaKernels", "Launcher", "Tiles"]

_LIMIT = 2**31
_DIRECT_PIXELS, _DIRECT_THREADS = 4, 128  # kWarpPixels and kThreads of direct.cu
_PACK_THREADS = 256  # kThreads of pack.cu


class Launcher(Protocol):
    """What runs kernels: a GPU's driver, or in tests an emulated thread block."""

    gpu: Gpu

    def launch(self, kernel: Specialised, call: ctypes.Structure, blocks: int, threads: int, shared_bytes: int) -> None:
        """Start a kernel on the current stream of the device."""

    def may_wait(self) -> bool:
        """Whether the host may wait for the device now: not while a CUDA graph is captured."""

    def prepare(self, kernels: Sequence[Specialised]) -> None:
        """Compile kernels side by side; one that cannot be compiled fails when it is launched."""

    def seconds(self, run: Callable[[], object]) -> float:
        """Return how long ``run`` takes on the device."""


class Tiles(Protocol):
    """What chooses tiles: a `Tuner`, or in tests one tile for all."""

    def tile(self, problem: Conv2dProblem, epilogue: Epilogue, pixels: int, trial: Trial | None) -> Tile | None:
        """See `Tuner.tile`."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class _Ready:
    """One convolution with its arguments: a `Trial`, since running it again adds nothing up."""

    launcher: Launcher
    problem: Conv2dProblem
    epilogue: Epilogue
    pixels: int
    call: Call
    out: Tensor

    def kernel(self, tile: Tile | None) -> Specialised:
        return convolution(self.problem, self.epilogue, tile, self.launcher.gpu.xor)

    def launch(self, tile: Tile | None) -> None:
        kernel, (blocks, threads, shared) = self.kernel(tile), _grid(self.problem, self.pixels, tile)
        if blocks >= _LIMIT:
            raise NoKernelError(self.problem, {kernel.name: f"would take {blocks} thread blocks; use fewer images"})
        self.launcher.launch(kernel, self.call, blocks, threads, shared)

    def prepare(self, tiles: Sequence[Tile | None]) -> None:
        self.launcher.prepare([self.kernel(tile) for tile in tiles])

    def seconds(self, tile: Tile | None) -> float:
        return self.launcher.seconds(lambda: self.launch(tile))

    def agrees(self, tile: Tile, other: Tile | None) -> bool:
        found = []
        for each in (tile, other):  # what is right comes last and stays
            self.out.zero_()
            self.launch(each)
            found.append(self.out.clone())
        return torch.equal(*(x.flatten().view(torch.uint8) for x in found))


@final
class CudaKernels:
    """The ops on one device; `binarize.kernels.reference` says what each computes.

    Args:
        launcher: runs the kernels.
        tiles: tell how a convolution is cut up; by default a `Tuner`.
    """

    reads_halves: ClassVar[bool] = True

    def __init__(self, launcher: Launcher, tiles: Tiles | None = None) -> None:
        self.launcher = launcher
        self.tiles: Tiles = Tuner(launcher.gpu) if tiles is None else tiles
        self._checked: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def why_not(self, problem: Conv2dProblem) -> str | None:
        """Return why no kernel here runs ``problem``, or None."""
        why = problem.why_not_int32()
        if why is None and forced_kind() == "tensor":
            why = why_not_tensor(problem, self.launcher.gpu)
        return why

    def conv2d_integer(self, problem: Conv2dProblem, x: Tensor, weight: Tensor) -> Tensor:
        """See `binarize.kernels.reference.conv2d_integer`."""
        out = x.new_empty((*self._size(problem, x), problem.products, problem.out_channels), dtype=torch.int32)
        self._run(problem, x, weight, Outputs(Epilogue("integers"), out, {}))
        return out

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
        """See `binarize.kernels.reference.conv2d`."""
        tables = scale, bias, row_class, column_class, residual
        return self.conv2d_finished(problem, x, weight, *tables, minimum, maximum, Finish())[0]

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
        """See `binarize.kernels.reference.conv2d_finished`."""
        n, oh, ow = self._size(problem, x)
        size = (n, problem.out_channels, oh, ow)
        out = torch.empty(size, device=x.device, dtype=finish.dtype, memory_format=torch.channels_last)
        affine = self._affine(scale, bias, row_class, column_class, residual, minimum, maximum)
        found = beside(problem, x, (n, oh, ow), finish.packing)
        stored, added, slopes = name_of(finish.dtype), type_of(affine.residual), finish.slope is not None
        epilogue = dataclasses.replace(found.epilogue, dtype=stored, added=added, slopes=slopes)
        fields = affine.fields | found.fields | {"slope": address(finish.slope)}
        self._run(problem, x, weight, Outputs(epilogue, out, fields))
        packed = found.out
        if finish.packing is not None and packed is None:
            packed = finish.packing.of(self, out)
        return out, packed

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
        """See `binarize.kernels.reference.conv2d_codes`."""
        out = new_codes(x, self._size(problem, x), problem.out_channels, code.groups)
        affine = self._affine(scale, bias, row_class, column_class, residual, minimum, maximum)
        fields = affine.fields | code_fields(code, problem.out_channels)
        self._run(problem, x, weight, Outputs(Epilogue("codes", added=type_of(affine.residual)), out, fields))
        return out

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
        """See `binarize.kernels.reference.conv2d_threshold`."""
        whole = problem.out_channels % 64 == 0 and (
            problem.groups == 1 or problem.out_channels // problem.groups % 32 == 0
        )
        make = x.new_empty if whole else x.new_zeros
        out = make((*self._size(problem, x), 1, 1, words(problem.out_channels)), dtype=torch.int32)
        fields: Fields = {"thresholds": address(thresholds), "flip": address(flip)}
        fields |= self._border(row_class, column_class, thresholds)
        self._run(problem, x, weight, Outputs(Epilogue("digits"), out, fields))
        return out

    def pack_uniform(self, x: Tensor, low: float, inverse_step: float, bits: int, groups: int) -> Tensor:
        """See `binarize.kernels.reference.pack_uniform`."""
        return self._pack(x, bits, groups, low, inverse_step, None, codes=False)

    def pack_thresholds(self, x: Tensor, thresholds: Tensor, groups: int) -> Tensor:
        """See `binarize.kernels.reference.pack_thresholds`."""
        return self._pack(x, len(thresholds), groups, 0.0, 0.0, thresholds, codes=False)

    def encode_uniform(self, x: Tensor, low: float, inverse_step: float, bits: int, groups: int) -> Tensor:
        """See `binarize.kernels.reference.encode_uniform`."""
        return self._pack(x, bits, groups, low, inverse_step, None, codes=True)

    def encode_thresholds(self, x: Tensor, thresholds: Tensor, groups: int) -> Tensor:
        """See `binarize.kernels.reference.encode_thresholds`."""
        return self._pack(x, len(thresholds), groups, 0.0, 0.0, thresholds, codes=True)

    def _size(self, problem: Conv2dProblem, x: Tensor) -> tuple[int, int, int]:
        n, (oh, ow) = x.shape[0], problem.checked_size(x.shape[1], x.shape[2])
        if n * oh * ow >= _LIMIT:
            raise ModelError(
                f"cannot convolve {n} images to {oh}x{ow}: they have 2^31 pixels or more; use fewer images"
            )
        return n, oh, ow

    def _affine(
        self,
        scale: Tensor,
        bias: Tensor,
        row_class: Tensor | None,
        column_class: Tensor | None,
        residual: Tensor | None,
        minimum: float,
        maximum: float,
    ) -> Affine:
        if residual is not None:
            residual = residual.contiguous(memory_format=torch.channels_last)
        fields: Fields = {"scale": address(scale), "bias": address(bias)}
        fields |= {"residual": address(residual), "minimum": minimum, "maximum": maximum}
        return Affine(residual, fields | self._border(row_class, column_class, bias))

    def _border(self, row_class: Tensor | None, column_class: Tensor | None, table: Tensor) -> Fields:
        if row_class is not None and column_class is not None:
            self._check_classes(row_class, column_class, len(table))
        return {"row_class": address(row_class), "column_class": address(column_class), "classes": len(table)}

    def _check_classes(self, row_class: Tensor, column_class: Tensor, rows: int) -> None:
        """Raise where a border class lies outside the table; looks at each pair of tensors once.

        The host has to wait for the device to look. A kernel never reads outside the table, looked at or not.
        """
        seen = (rows, row_class._version, column_class._version, id(column_class))
        if self._checked.get(row_class) == seen or not self.launcher.may_wait() or not row_class.numel():
            return
        least, most = row_class.min() + column_class.min(), row_class.max() + column_class.max()
        if int(least) < 0 or int(most) >= rows:
            raise ModelError(f"cannot run a packed convolution: a border class lies outside the {rows} rows given")
        self._checked[row_class] = seen

    def _run(self, problem: Conv2dProblem, x: Tensor, weight: Tensor, to: Outputs) -> None:
        n, h, w = x.shape[:3]
        oh, ow = problem.checked_size(h, w)
        pixels = n * oh * ow
        if pixels == 0:
            return
        x, weight = _aligned(x), _aligned(weight)
        call = Call(
            x=address(x), weight=address(weight), out=address(to.out), pixels=pixels, h=h, w=w, out_h=oh, out_w=ow,
            **to.fields,
        )  # fmt: skip

        ready = _Ready(self.launcher, problem, to.epilogue, pixels, call, to.out)
        ready.launch(self.tiles.tile(problem, to.epilogue, pixels, ready if self.launcher.may_wait() else None))

    def _pack(
        self,
        x: Tensor,
        planes: int,
        groups: int,
        low: float,
        inverse_step: float,
        thresholds: Tensor | None,
        codes: bool,
    ) -> Tensor:
        n, c, h, w = x.shape
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        if not channels_last:
            x = x.contiguous()
        strips = planes if thresholds is not None or not codes else 1
        strip = depth(c // groups) // 4 if codes else words(c // groups)
        shape = (n, h, w, groups, strips, 4 * strip if codes else strip)
        out = x.new_empty(shape, dtype=torch.uint8 if codes else torch.int32)
        items, lanes = h * w * groups * strip, 32 if channels_last and not codes else 1
        image_blocks = -(-items // (_PACK_THREADS // lanes))
        if n * items == 0:
            return out
        if max(items, n * image_blocks) >= _LIMIT:
            raise ModelError(
                f"cannot pack {n} images of {h}x{w}: they take 2^31 words or more; use fewer or smaller ones"
            )
        call = PackCall(
            x=address(x), out=address(out), thresholds=address(thresholds), items=items, image_blocks=image_blocks,
            pixels=h * w, channels=c, groups=groups, planes=planes, words=strip, low=low, inverse_step=inverse_step,
            top=float(2**planes - 1), shared_thresholds=int(thresholds is not None and thresholds.shape[1] == 1),
        )  # fmt: skip
        kernel = packing(thresholds is not None, codes, channels_last, name_of(x.dtype))
        self.launcher.launch(kernel, call, n * image_blocks, _PACK_THREADS, 0)
        return out


def _grid(problem: Conv2dProblem, pixels: int, tile: Tile | None) -> tuple[int, int, int]:
    """Return thread blocks, threads of each, and its bytes of shared memory."""
    outputs = problem.out_channels // problem.groups
    if tile is None:
        warps = problem.groups * math.ceil(outputs / 32) * math.ceil(pixels / _DIRECT_PIXELS)
        return math.ceil(32 * warps / _DIRECT_THREADS), _DIRECT_THREADS, 0
    blocks = problem.groups * math.ceil(outputs / tile.outputs) * math.ceil(pixels / tile.pixels)
    return blocks, tile.threads, tile.shared_bytes


def _aligned(x: Tensor) -> Tensor:
    """Return ``x``, or a copy where it does not begin at 16 bytes, which asynchronous copies need."""
    return x if x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.contiguous_format)
