"""What the driver is asked for, with a stand-in for its library and for torch's view of the device."""

import ctypes
import types

import pytest
import torch

from binarize.errors import NoKernelError
from binarize.kernels.cuda import devices, driver
from binarize.kernels.cuda.call import Call
from binarize.kernels.cuda.driver import Driver
from binarize.kernels.cuda.specialise import packing

KERNEL = packing(False, False, True)


class Library:
    """Answers every call of the driver with success, or with what was put into ``fails``."""

    def __init__(self):
        self.calls, self.fails, self.context = [], {}, 7

    def __getattr__(self, name):
        return lambda *arguments: self._answer(name, arguments)

    def _answer(self, name, arguments):
        self.calls.append((name, arguments))
        if name == "cuCtxGetCurrent":
            arguments[0]._obj.value = self.context
        if name == "cuDeviceGetAttribute":
            arguments[0]._obj.value = 227 << 10
        if name == "cuModuleGetFunction":
            arguments[0]._obj.value = 99
        if name == "cuGetErrorName":
            arguments[1]._obj.value = b"CUDA_ERROR_OUT_OF_MEMORY"
        if name == "cuCtxSetCurrent":
            self.context = 7
        return self.fails.get(name, 0)

    def named(self, name):
        return [arguments for called, arguments in self.calls if called == name]


class Guard:
    """Stands for `torch.cuda.device`."""

    entered: list = []  # noqa: RUF012

    def __init__(self, index):
        self.index = index

    def __enter__(self):
        Guard.entered.append(self.index)

    def __exit__(self, *_):
        return None


@pytest.fixture
def library(monkeypatch):
    Guard.entered.clear()
    properties = types.SimpleNamespace(name="H200", major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "device", Guard)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: types.SimpleNamespace(cuda_stream=4660))
    monkeypatch.setattr(driver, "compiled", lambda kernel, arch: f"{kernel.name} for {arch}".encode())
    return Library()


def test_a_kernel_is_loaded_once_and_launched_on_torchs_stream_of_the_device(library):
    here = Driver(1, library)
    for _ in range(2):
        here.launch(KERNEL, Call(pixels=5), 10, 128, 0)

    assert here.gpu.capability == (9, 0)
    assert here.gpu.shared_bytes == 227 << 10
    assert [arguments[1] for arguments in library.named("cuModuleLoadData")] == [b"pack for sm_90a"]
    launched = library.named("cuLaunchKernel")
    assert len(launched) == 2
    function, *grid, shared, stream, _, extra = launched[0]
    assert (function.value, grid, shared, stream.value, extra) == (99, [10, 1, 1, 128, 1, 1], 0, 4660, None)
    assert Guard.entered == [1, 1]
    assert library.named("cuFuncSetAttribute") == []


def test_the_arguments_are_passed_as_one_struct(library):
    here, seen = Driver(0, library), []
    call = Call(pixels=5, minimum=-2.0, x=1234)

    def read(name, arguments):
        if name == "cuLaunchKernel":
            there = Call.from_address(arguments[-2][0])
            seen.append((there.pixels, there.minimum, there.x))
        return 0

    library._answer = read
    here.launch(KERNEL, call, 1, 32, 0)

    assert seen == [(5, -2.0, 1234)]
    assert ctypes.sizeof(Call) % 8 == 0


def test_kernels_are_collected_without_launching_any(library):
    here = Driver(0, library)

    def run():
        assert not here.may_wait()  # nothing may be timed that does not run
        here.launch(KERNEL, Call(), 1, 32, 0)

    assert here.collect(run) == [KERNEL]
    assert library.named("cuLaunchKernel") == []
    here.launch(KERNEL, Call(), 1, 32, 0)
    assert len(library.named("cuLaunchKernel")) == 1


def test_more_shared_memory_than_usual_is_asked_for(library):
    Driver(0, library).launch(KERNEL, Call(), 1, 32, 100 << 10)

    assert [arguments[1:] for arguments in library.named("cuFuncSetAttribute")] == [(8, 100 << 10)]


def test_a_thread_without_a_context_gets_that_of_torch(library):
    library.context = None
    Driver(0, library).launch(KERNEL, Call(), 1, 32, 0)

    assert len(library.named("cuDevicePrimaryCtxRetain")) == len(library.named("cuCtxSetCurrent")) == 1


@pytest.mark.parametrize(
    ("call", "said"), [("cuModuleLoadData", "cannot load it"), ("cuLaunchKernel", "cannot start it")]
)
def test_what_the_driver_refuses_is_told_and_can_be_tried_again(library, call, said):
    here = Driver(0, library)
    library.fails[call] = 2
    with pytest.raises(NoKernelError, match=f"{said}: CUDA_ERROR_OUT_OF_MEMORY"):
        here.launch(KERNEL, Call(), 1, 32, 0)

    library.fails.clear()
    here.launch(KERNEL, Call(), 1, 32, 0)
    assert library.named("cuLaunchKernel")


def test_a_machine_without_a_gpu_says_what_is_missing(monkeypatch):
    if devices.cuda_why_not() is None:
        pytest.skip("there is a GPU here")
    assert devices.cuda_why_not()

    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in str(devices.cuda_why_not())
    monkeypatch.setattr(torch.version, "cuda", "13.0")

    def no_library():
        raise OSError("no CUDA driver: none of libcuda.so.1 can be opened")

    monkeypatch.setattr(devices, "open_driver", no_library)
    assert "no CUDA driver" in str(devices.cuda_why_not())
    monkeypatch.setattr(devices, "open_driver", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch sees no CUDA device" in str(devices.cuda_why_not())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices, "missing", lambda: "needs cuda-core; pip install 'binarize[cuda]'")
    assert "binarize[cuda]" in str(devices.cuda_why_not())
    monkeypatch.setattr(devices, "missing", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 0))
    assert "compute capability 7.5" in str(devices.cuda_why_not())


def test_kernels_of_a_gpu_that_has_none_are_an_error_with_the_reason(monkeypatch):
    devices._of_device.cache_clear()
    monkeypatch.setattr(devices, "cuda_why_not", lambda index: "needs cuda-core; pip install 'binarize[cuda]'")
    with pytest.raises(NoKernelError, match=r"(?s)cuda:3.*pip install 'binarize\[cuda\]'"):
        devices.cuda_kernels(torch.device("cuda", 3), None)
