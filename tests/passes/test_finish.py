"""What follows a convolution taken into its epilogue, as graphs run on a GPU: here by the ops of the CPU."""

import pytest
import torch
from cuda_emulator import Emulator
from torch import nn

import binarize
from binarize.kernels import ops
from binarize.kernels.cuda.kernels import CudaKernels
from binarize.passes.finish import Finished, FinishRunner

IMAGES = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """A stem, and blocks whose sum goes on as floats and packed."""

    def __init__(self, rectify=nn.ReLU, write=lambda y: y):
        super().__init__()
        self.stem = nn.Conv2d(3, 40, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(40, 40, 3, padding=1) for _ in range(3))
        self.rectify = nn.ModuleList(rectify() for _ in range(3))
        self.write = write

    def forward(self, x):
        x = self.stem(x)
        for conv, rectify in zip(self.convs, self.rectify, strict=True):
            x = self.write(rectify(conv(x) + x))
        return x


def packed(scheme, **options):
    torch.manual_seed(2)
    net = Net(**options).eval()
    for module in net.modules():
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, -0.5, 0.9)
    recipe = binarize.Recipe(scheme=scheme, keep_last=False, smallest=0)
    return binarize.pack(binarize.convert(net, IMAGES, recipe=recipe))


def finished(runner):
    return [item for item in runner.items if isinstance(item, Finished)]


@pytest.mark.parametrize("rectify", [nn.ReLU, nn.PReLU, lambda: nn.PReLU(40)], ids=["relu", "one slope", "slopes"])
@pytest.mark.parametrize("scheme", ["xnor-net", "encoding:w=2,a=3", "pa-net:m=2,n=2"])
def test_the_outputs_are_those_of_the_graph(scheme, rectify, monkeypatch):
    fast = packed(scheme, rectify=rectify)
    monkeypatch.setenv("BINARIZE_SCHEDULE", "off")
    wanted = fast(IMAGES)

    runner = FinishRunner(fast)

    assert len(finished(runner)) == 2  # nothing packs what the last block gives
    assert len(finished(runner)[0].operations) == (2 if rectify is nn.ReLU else 3)
    assert torch.equal(runner.run((IMAGES,)), wanted)


@pytest.mark.parametrize("route", ["popcount", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_one_kernel_makes_floats_and_what_is_packed_of_them(dtype, route, monkeypatch):
    monkeypatch.setenv("BINARIZE_ROUTE", route)
    monkeypatch.setattr("binarize.kernels.codes.field_bits", lambda terms: None)  # weights on a GPU are bytes
    fast, images = packed("encoding:w=2,a=3", rectify=nn.PReLU).to(dtype), IMAGES.to(dtype)
    wanted = FinishRunner(fast).run((images,))
    emulator = Emulator()
    kernels = CudaKernels(emulator)
    monkeypatch.setattr(ops, "kernels_for", lambda x, problem=None: kernels)

    seen = FinishRunner(fast).run((images,))

    assert seen.dtype == dtype
    assert torch.equal(seen, wanted)
    assert [kernel.name for kernel in emulator.launched].count("pack") == 1  # the stem's output
    assert len(emulator.launched) == 4


def through_a_view(y):
    y[:, :16].mul_(-1.0)
    return y


@pytest.mark.parametrize(
    "write", [lambda y: y.add_(1.0), through_a_view, lambda y: torch.neg(y, out=y)], ids=["itself", "a view", "out"]
)
def test_what_may_be_written_over_is_packed_by_itself(write, monkeypatch):
    fast = packed("encoding:w=2,a=3", write=write)
    monkeypatch.setenv("BINARIZE_SCHEDULE", "off")

    runner = FinishRunner(fast)

    assert not finished(runner)
    assert torch.equal(runner.run((IMAGES,)), fast(IMAGES))


def test_a_graph_that_changed_is_looked_at_again():
    fast = packed("encoding:w=2,a=3")
    runner = FinishRunner(fast)
    assert runner.is_current()
    assert not runner.may_run((IMAGES,))  # it is for GPUs

    fast.half()

    assert not runner.is_current()
