"""On a real GPU: ``pytest -m cuda``. Every kernel there is against the reference on the CPU."""

import copy

import pytest
import torch
from conv_cases import as_codes, cases, epilogue, make_case
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models import resnet18

import binarize
from binarize.errors import ModelError
from binarize.kernels import ops, reference
from binarize.kernels.cuda.devices import cuda_kernels, cuda_why_not
from binarize.kernels.cuda.kernels import CudaKernels
from binarize.kernels.cuda.tiles import candidates
from binarize.kernels.problem import Conv2dProblem, UniformCode

WHY = cuda_why_not()
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(WHY is not None, reason=f"no CUDA kernels here: {WHY}")]


class OneTile:
    def __init__(self, tile):
        self.one = tile

    def tile(self, problem, epilogue, pixels, seconds):
        return self.one


def on_gpu(arguments):
    return [argument.cuda() if isinstance(argument, torch.Tensor) else argument for argument in arguments]


def check(case, tile, residual):
    """Every epilogue of one convolution with one tile."""
    p = case.problem
    kernels = CudaKernels(cuda_kernels(torch.device("cuda"), None).launcher, OneTile(tile))
    x, weight = case.x, case.weight
    tables, code = epilogue(case, residual), UniformCode(-40.0, 0.37, 3, p.groups)
    calls = {
        "conv2d_integer": (),
        "conv2d": (*tables, -50.0, 1000.0),
        "conv2d_codes": (*tables, -50.0, 1000.0, code),
    }
    if p.products == 1:
        calls["conv2d_threshold"] = (
            torch.zeros(6, p.out_channels, dtype=torch.int32),
            torch.arange(p.out_channels) % 3 == 0,
            *tables[2:4],
        )
    for name, arguments in calls.items():
        seen = getattr(kernels, name)(p, *on_gpu((x, weight, *arguments))).cpu()
        assert torch.equal(seen, getattr(reference, name)(p, x, weight, *arguments)), (name, tile)


@settings(max_examples=30)
@given(case=cases(), codes=st.booleans(), residual=st.booleans(), choice=st.integers(0, 99))
def test_any_geometry_equals_the_reference(case, codes, residual, choice):
    case = as_codes(case, codes)
    tiles = candidates(case.problem, cuda_kernels(torch.device("cuda"), None).launcher.gpu)

    check(case, tiles[choice % len(tiles)], residual)


@pytest.mark.parametrize("codes", [False, True], ids=["planes", "codes"])
def test_every_tile_equals_the_reference(codes):
    case = make_case(Conv2dProblem(256, 200, (3, 3), (1, 1), (1, 1), (1, 1), 1, (2,), (2,), codes), 2, 14, 14, 0)
    for tile in candidates(case.problem, cuda_kernels(torch.device("cuda"), None).launcher.gpu):
        check(case, tile, residual=True)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_packing_equals_the_reference(layout):
    x = torch.randn(3, 70, 9, 7).contiguous(memory_format=layout)
    for op, rest in (
        ("pack_uniform", (-1.1, 0.7, 3, 2)),
        ("encode_uniform", (-1.1, 0.7, 3, 2)),
        ("pack_thresholds", (torch.randn(3, 70), 2)),
        ("encode_thresholds", (torch.randn(3, 1), 2)),
    ):
        seen = getattr(ops, op)(*on_gpu((x, *rest))).cpu()
        assert torch.equal(seen, getattr(reference, op)(x, *rest)), op


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    images = torch.randn(4, 3, 64, 64)
    model = resnet18(weights=None).eval()
    fast = binarize.pack(binarize.convert(model, images, "encoding:w=2,a=2"))
    return fast, copy.deepcopy(fast).cuda(), images


def close(seen, wanted):
    """Decisions, and values up to a few codes that the float layers' other order of additions may flip."""
    assert torch.equal(seen.argmax(1), wanted.argmax(1))
    torch.testing.assert_close(seen, wanted, rtol=0.05, atol=0.05 * float(wanted.abs().max()))


@torch.inference_mode()
def test_a_network_moves_to_the_gpu_and_decides_alike(networks):
    fast, there, images = networks

    close(there(images.cuda()).cpu(), fast(images))


@torch.inference_mode()
def test_a_network_is_captured_in_a_cuda_graph(networks):
    _, there, images = networks
    x = images.cuda()
    wanted = there(x)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        there(x)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = there(x)
    graph.replay()

    assert torch.equal(y, wanted)
    x.copy_(images.flip(0))
    graph.replay()
    assert torch.equal(y, there(x))


@torch.inference_mode()
def test_a_network_is_compiled(networks):
    _, there, images = networks
    x = images.cuda()
    wanted = there(x)

    close(torch.compile(there)(x).cpu(), wanted.cpu())


def test_another_stream_and_another_thread_give_the_same_bits(networks):
    import threading

    _, there, images = networks
    x, seen = images.cuda(), []
    with torch.inference_mode():
        wanted = there(x)
        torch.cuda.synchronize()

    def run():
        with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):
            seen.append(there(x).cpu())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert torch.equal(seen[0], wanted.cpu())


def test_mixed_devices_are_refused_and_out_of_memory_leaves_the_network_usable(networks):
    fast, there, images = networks
    layer = next(module for module in there.modules() if type(module).__name__ == "PackedConv2d")
    planes = layer.activation(torch.randn(1, layer.geometry.channels, 8, 8, device="cuda"))
    with pytest.raises(ModelError, match="all tensors must be on one device"):
        ops.conv2d_integer(planes, layer.prepared(planes.dtype).cpu(), *layer.geometry.arguments())

    free = torch.cuda.mem_get_info()[0]
    with torch.inference_mode():
        with pytest.raises(torch.OutOfMemoryError):
            there(torch.empty(1, 3, 64, 64, device="cuda").expand(free // (64 * 64 * 12), -1, -1, -1))
        torch.cuda.empty_cache()
        close(there(images.cuda()).cpu(), fast(images))
