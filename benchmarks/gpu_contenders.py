"""What `gpu.py` checks and times: operands, products, single convolutions, whole networks."""

import copy
import dataclasses
import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Calls = dict[str, Callable[[], object]]


def each_kernel(device: torch.device, problem: Any) -> list[tuple[Any, str]]:
    """Return the kernels that can run a problem on the device, and their names."""
    from binarize.kernels.dispatch import LEVELS

    if device.type != "cuda":
        return [(level.kernels, level.name) for level in LEVELS[:-1] if level.why_not(problem) is None]
    from binarize.kernels.cuda.devices import cuda_kernels
    from binarize.kernels.cuda.kernels import CudaKernels
    from binarize.kernels.cuda.tiles import candidates

    @dataclasses.dataclass(frozen=True)
    class One:
        one: Any

        def tile(self, *_: object) -> Any:
            return self.one

    launcher = cuda_kernels(device, problem).launcher
    tiles = candidates(problem, launcher.gpu)
    return [(CudaKernels(launcher, One(tile)), str(tile or "direct")) for tile in tiles]


def operands(problem: Any, images: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return random activations and weights in the form of a problem; spare bits and bytes are 0."""
    from binarize.kernels import fold_weight, pack_codes, pack_digits, pack_signs, prepare_weight

    shape = (images, problem.channels, size, size)
    terms = [torch.randint(0, 2**planes, shape) for planes in problem.activation_terms]
    weights = (sum(problem.weight_terms), problem.out_channels, problem.channels_per_group, *problem.kernel)
    bits = pack_signs(torch.randint(0, 2, weights) * 2 - 1)
    sizes = {
        "out_channels": problem.out_channels, "channels_per_group": problem.channels_per_group,
        "kernel": problem.kernel, "groups": problem.groups,
    }  # fmt: skip
    if problem.codes:
        x, weight = pack_codes(torch.stack(terms), problem.groups), fold_weight(bits, problem.weight_terms, **sizes)
    else:
        planes = zip(terms, problem.activation_terms, strict=True)
        x = torch.cat([pack_digits(term, count, problem.groups) for term, count in planes], 4)
        weight = prepare_weight(bits, **sizes)
    return x.to(device), weight.to(device)


def compare(problem: Any, kernels: Any, device: torch.device) -> None:
    """Raise unless every epilogue gives the bits of the reference."""
    from binarize.kernels import reference
    from binarize.kernels.problem import UniformCode

    x, weight = operands(problem, 2, 9, device)
    oh, ow = problem.out_size(9, 9)
    classes = (torch.arange(oh) % 3 * 2).int(), (torch.arange(ow) % 2).int()
    scale, bias = torch.randn(problem.products, problem.out_channels), torch.randn(6, problem.out_channels) * 100
    tables = (scale, bias, *classes, torch.randn(2, problem.out_channels, oh, ow) * 100, -50.0, 1000.0)
    calls = {"conv2d_integer": (), "conv2d": tables, "conv2d_codes": (*tables, UniformCode(-40.0, 0.37, 3, 1))}
    if problem.products == 1:
        flip = torch.arange(problem.out_channels) % 3 == 0
        calls["conv2d_threshold"] = (torch.randint(-9, 9, (6, problem.out_channels)).int(), flip, *classes)
    for name, arguments in calls.items():
        moved = [part.to(device) if isinstance(part, Tensor) else part for part in arguments]
        seen = getattr(kernels, name)(problem, x, weight, *moved).cpu()
        if not torch.equal(seen, getattr(reference, name)(problem, x.cpu(), weight.cpu(), *arguments)):
            raise AssertionError(f"{name} differs from the reference: {problem}")
    compare_finished(problem, kernels, (x, weight, *tables[:4]), tables[4].bfloat16())


def compare_finished(problem: Any, kernels: Any, held: Sequence[Tensor], residual: Tensor) -> None:
    """Raise unless floats of 16 bits, slopes and what is packed beside the floats are those of the reference."""
    from binarize.kernels import reference
    from binarize.kernels.finish import Finish, Packing

    device, slope = held[0].device, torch.rand(problem.out_channels)
    for codes in (False, True):
        packing = Packing(codes, 2, -40.0, 0.037, None, 1)
        seen, wanted = (
            level.conv2d_finished(
                problem, *(part.to(where) for part in held), residual.to(where), -50.0, 1000.0,
                Finish(slope.to(where), residual.dtype, packing),
            )
            for level, where in ((kernels, device), (reference, torch.device("cpu")))
        )  # fmt: skip
        if not all(torch.equal(a.cpu(), b) for a, b in zip(seen, wanted, strict=True)):
            raise AssertionError(f"conv2d_finished differs from the reference: {problem}")


def gemm_calls(size: int, device: torch.device) -> Calls:
    """Return square products: ours to whole numbers and to bits, torch's in bf16, and in int8 where it has it."""
    from binarize.kernels import ops

    window = ([1, 1], [1, 1], [0, 0], [1, 1])
    geometry = (size, size, *window, 1, [1], [1])
    words = size // 32
    x = torch.randint(-(2**31), 2**31 - 1, (1, 1, size, 1, 1, words), dtype=torch.int32, device=device)
    shape = (1, 1, -(-size // 32), 1, words // 2, 2, 2, 16)
    weight = torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32, device=device)
    thresholds = torch.zeros(1, size, dtype=torch.int32, device=device)
    flip = torch.zeros(size, dtype=torch.bool, device=device)
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    calls: Calls = {
        "binarize to int32": lambda: ops.conv2d_integer(x, weight, *geometry),
        "binarize to bits": lambda: ops.conv2d_threshold(x, weight, thresholds, flip, None, None, *geometry),
        "torch bf16": lambda: a @ b,
    }
    if device.type == "cuda":
        c, d = (torch.randint(-128, 127, (size, size), dtype=torch.int8, device=device) for _ in range(2))
        calls["torch int8"] = functools.partial(torch._int_mm, c, d.t())
    return calls


def layer_calls(layer: tuple[int, int, int, int], batch: int, device: torch.device) -> Calls:
    """Return one convolution: ours of one plane and of four bits, torch's fp32 and bf16, channels last."""
    from binarize.kernels import ops
    from binarize.kernels.problem import Conv2dProblem

    channels, outputs, kernel, size = layer
    window = (kernel, kernel), (1, 1), (kernel // 2, kernel // 2), (1, 1)
    one, four = (
        Conv2dProblem(channels, outputs, *window, 1, (planes,), (planes,), codes)
        for planes, codes in ((1, False), (4, True))
    )
    few = min(batch, 2)  # made on the host once, repeated on the device
    (x, weight), (codes, folded) = (operands(problem, few, size, device) for problem in (one, four))
    x, codes = (torch.cat([part] * (batch // few)) for part in (x, codes))
    scale, bias = torch.rand(1, outputs, device=device), torch.zeros(1, outputs, device=device)
    thresholds, flip = torch.zeros_like(scale).int(), torch.zeros(outputs, dtype=torch.bool, device=device)
    last = {"device": device, "memory_format": torch.channels_last}
    residual = torch.empty(batch, outputs, size, size, **last).normal_()
    image = torch.empty(batch, channels, size, size, **last).normal_()
    filters = torch.empty(outputs, channels, kernel, kernel, **last).normal_()
    half, half_filters, half_residual = image.bfloat16(), filters.bfloat16(), residual.bfloat16()
    geometry = [list(pair) for pair in window]
    shape = (channels, outputs, *geometry, 1)
    padding = kernel // 2
    limits = 0.0, float("inf")
    return {
        "1x1 bits to bits": lambda: ops.conv2d_threshold(
            x, weight, thresholds, flip, None, None, *shape, [1], [1]
        ),
        "1x1 bits, residual to fp32": lambda: ops.conv2d(
            x, weight, scale, bias, None, None, residual, *shape, [1], [1], *limits
        ),
        "1x1 bits, bf16 residual to bf16 and bits": lambda: ops.conv2d_and_pack(
            x, weight, scale, bias, None, None, half_residual, *shape, [1], [1], *limits, None, torch.bfloat16,
            False, 1, 0.0, 0.5, None, 1,
        ),
        "4x4 bits to codes": lambda: ops.conv2d_codes(
            codes, folded, scale, bias, None, None, None, *shape, [4], [4], *limits, 0.0, 0.01, 4, 1
        ),
        "torch fp32": lambda: F.conv2d(image, filters, padding=padding),
        "torch bf16": lambda: F.conv2d(half, half_filters, padding=padding),
    }  # fmt: skip


def build(name: str, schemes: Sequence[str], device: torch.device) -> tuple[nn.Module, dict[str, nn.Module]]:
    """Return a network of random weights, and its packed forms, on the device."""
    import binarize

    models = importlib.import_module("torchvision.models")
    torch.manual_seed(0)
    model = models.get_model(name, weights=None).eval()
    images = torch.randn(2, 3, 64, 64)
    ours = {scheme: binarize.pack(binarize.convert(model, images, scheme)).to(device) for scheme in schemes}
    return model.to(device, memory_format=torch.channels_last), ours


def network_calls(model: nn.Module, ours: dict[str, nn.Module], x: Tensor, compiled: bool) -> Calls:
    """Return whole networks on one batch, not run yet."""
    half_model, half = copy.deepcopy(model).bfloat16(), x.bfloat16()
    calls: Calls = {scheme: functools.partial(net, x) for scheme, net in ours.items()}
    calls |= {f"{scheme} bf16": functools.partial(copy.deepcopy(net).bfloat16(), half) for scheme, net in ours.items()}
    calls["torch fp32"] = functools.partial(model, x)
    calls["torch bf16"] = functools.partial(half_model, half)
    if compiled:
        calls["torch bf16 compiled"] = functools.partial(torch.compile(half_model, dynamic=False), half)
    return calls


def verify(calls: Calls, images: int) -> None:
    """Raise unless every network gives finite outputs of one shape."""
    for name, call in calls.items():
        y = call()
        assert isinstance(y, Tensor)
        assert y.shape == (images, 1000), name
        assert bool(y.isfinite().all()), name


def peak_memory(call: Callable[[], object], device: torch.device) -> float | None:
    """Return the most memory of activations that a call holds at a time, in MiB, above what it starts with."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


def held_memory(call: Callable[[], object]) -> float:
    """Return the memory of a network's tensors in MiB, its weights in the kernels' layout among them."""
    net = call.func if isinstance(call, functools.partial) else None
    assert isinstance(net, nn.Module)
    tensors = [*net.parameters(), *net.buffers()]
    for module in net.modules():
        tensors += getattr(module, "_prepared", {}).values()
    return round(sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20, 1)
