"""Whole packed networks on the emulated GPU: every op they call, on both routes, gives the bits of the CPU."""

import pytest
import torch
from cuda_emulator import Emulator
from torch import nn

import binarize
from binarize.kernels import ops
from binarize.kernels.cuda import rates
from binarize.kernels.cuda.kernels import CudaKernels
from binarize.kernels.speeds import Speeds
from binarize.layers.geometry import Geometry
from binarize.layers.gpu_routes import GpuRoutes, quickest
from binarize.layers.packed import PackActivation

IMAGES = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(1))
GPU = torch.device("cuda", 0)
WIDE = Geometry(64, 64, (3, 3), (1, 1), (1, 1), (1, 1), 1, (1,), (1,))
DEEP = Geometry(64, 64, (3, 3), (1, 1), (1, 1), (1, 1), 1, (4,), (4,))


class Net(nn.Module):
    """A residual block, groups, uneven sizes, and a classifier."""

    def __init__(self):
        super().__init__()
        self.first, self.a = nn.Conv2d(3, 20, 3, padding=1), nn.Conv2d(20, 36, 3, stride=2, padding=1, bias=False)
        self.norm, self.b = nn.BatchNorm2d(36), nn.Conv2d(36, 36, 3, padding=1, groups=2)
        self.short, self.head = nn.Conv2d(20, 36, 1, stride=2), nn.Linear(36, 10)

    def forward(self, x):
        x = torch.relu(self.first(x))
        y = torch.relu(self.norm(self.a(x)))
        y = torch.relu(self.b(y) + self.short(x))
        return self.head(y.mean((2, 3)))


def packed_net(scheme):
    recipe = binarize.Recipe(scheme=scheme, convert=("*",), keep_first=False, keep_last=False, smallest=0)
    return binarize.pack(binarize.convert(Net().eval(), IMAGES, recipe=recipe))


@pytest.mark.parametrize("route", ["popcount", "int8"])
@pytest.mark.parametrize("scheme", ["xnor-net", "encoding:w=2,a=3", "pa-net:m=2,n=2"])
def test_a_packed_network_gives_the_bits_of_the_cpu(scheme, route, monkeypatch):
    monkeypatch.setenv("BINARIZE_ROUTE", route)
    monkeypatch.setattr("binarize.kernels.codes.field_bits", lambda terms: None)  # weights on a GPU are bytes
    fast = packed_net(scheme)
    wanted = fast(IMAGES)
    emulator = Emulator()
    kernels = CudaKernels(emulator)
    monkeypatch.setattr(ops, "kernels_for", lambda x, problem=None: kernels)
    monkeypatch.setenv("BINARIZE_SCHEDULE", "off")  # on the CPU it would run without the ops

    assert torch.equal(fast(IMAGES), wanted)

    names = {kernel.name for kernel in emulator.launched}
    assert names == {"pack", "tensor", "direct"}  # the image's three channels are few for tensor cores
    assert {dict(kernel.constants)["kCodes"] for kernel in emulator.launched if kernel.name != "pack"} == {
        int(route == "int8")
    }


def test_the_quicker_form_is_packed_on_a_gpu_and_the_cpu_keeps_its_own(monkeypatch):
    monkeypatch.setattr("binarize.layers.gpu_routes.gpu_rates", lambda device: Speeds(8.0, 1.0))
    assert GpuRoutes((WIDE,)).route(GPU, "int8") == "popcount"
    assert GpuRoutes((DEEP,)).route(GPU, "popcount") == "int8"  # sixteen products for one
    assert GpuRoutes((WIDE, DEEP, DEEP)).route(GPU, "popcount") == "int8"  # together
    assert GpuRoutes((WIDE,), "int8").route(GPU, "popcount") == "int8"  # asked for
    assert GpuRoutes((WIDE,)).route(torch.device("cpu"), "int8") == "int8"


def test_packing_a_network_tells_each_packing_its_readers():
    fast = packed_net("encoding:w=2,a=3")
    packings = [module for module in fast.modules() if isinstance(module, PackActivation)]

    assert packings
    assert all(packing.gpu.readers for packing in packings)
    assert max(len(packing.gpu.readers) for packing in packings) == 2  # the block and its shortcut


def test_without_a_measurement_blackwell_multiplies_whole_codes():
    assert quickest((WIDE,), rates.assumed_rates((9, 0))) == "popcount"
    assert quickest((DEEP,), rates.assumed_rates((9, 0))) == "int8"
    assert quickest((WIDE,), rates.assumed_rates((10, 0))) == "int8"


def test_rates_are_products_by_time(monkeypatch):
    monkeypatch.setattr(rates, "_CHANNELS", 64)
    monkeypatch.setattr(rates, "_SIZE", 4)
    monkeypatch.setattr(rates, "_IMAGES", 1)
    emulator = Emulator()

    measured = rates.measure_rates(CudaKernels(emulator), torch.device("cpu"))

    assert [kernel.name for kernel in emulator.launched] == ["tensor", "tensor"]
    products = 4 * 4 * 9 * 64 * 64
    assert measured.planes + measured.codes == pytest.approx(
        products * sum(1 / threads for threads in emulator.threads_of)
    )
