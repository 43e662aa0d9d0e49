"""Loads and launches kernels through the CUDA driver, on torch's current stream and in torch's context."""

import contextlib
import ctypes
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, final

import torch

from binarize.errors import NoKernelError
from binarize.kernels.cuda.compile import architecture, compile_all, compiled
from binarize.kernels.cuda.specialise import Specialised
from binarize.kernels.cuda.tiles import Gpu

__all__ = ["Driver", "open_driver"]

_MOST_SHARED_ATTRIBUTE = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_PLAIN_SHARED_BYTES = 48 << 10  # what a kernel may have without asking
_DEVICE_SHARED = 97  # CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
_TIMED_RUNS = 10
_LIBRARIES = ("libcuda.so.1", "libcuda.so", "nvcuda.dll")


@functools.lru_cache(maxsize=1)
def open_driver() -> ctypes.CDLL:
    """Return the driver's library.

    Raises:
        OSError: there is none.
    """
    for name in _LIBRARIES:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    raise OSError(f"no CUDA driver: none of {', '.join(_LIBRARIES)} can be opened")


@final
class Driver:
    """A `Launcher` for one GPU.

    Args:
        index: of the device, as torch counts.
        library: the driver's library.
    """

    def __init__(self, index: int, library: Any = None) -> None:
        self.index = index
        self._library = open_driver() if library is None else library
        self._functions: dict[Specialised, ctypes.c_void_p] = {}
        self._collected: dict[Specialised, None] | None = None
        self._lock = threading.Lock()
        properties = torch.cuda.get_device_properties(index)
        capability = properties.major, properties.minor
        self.gpu = Gpu(properties.name, capability, properties.multi_processor_count, self._shared_bytes())

    def launch(self, kernel: Specialised, call: ctypes.Structure, blocks: int, threads: int, shared_bytes: int) -> None:
        """Start a kernel on torch's current stream of the device.

        Raises:
            NoKernelError: it cannot be compiled, loaded or started; the message has the driver's reason.
        """
        if self._collected is not None:
            self._collected[kernel] = None
            return
        with torch.cuda.device(self.index):
            self._enter_context()
            function = self._functions.get(kernel)
            if function is None:
                function = self._load(kernel, shared_bytes)
            stream = ctypes.c_void_p(torch.cuda.current_stream(self.index).cuda_stream)
            parameters = (ctypes.c_void_p * 1)(ctypes.addressof(call))
            status = self._library.cuLaunchKernel(
                function, blocks, 1, 1, threads, 1, 1, shared_bytes, stream, parameters, None
            )
        self._check(status, kernel, "start")

    def collect(self, run: Callable[[], object]) -> list[Specialised]:
        """Return the kernels that ``run`` would launch; none is, so that what it returns is meaningless."""
        self._collected = {}
        try:
            run()
            return [*self._collected]
        finally:
            self._collected = None

    def may_wait(self) -> bool:
        """Whether the host may wait for the device: not while a CUDA graph is captured or kernels are collected."""
        return self._collected is None and not torch.cuda.is_current_stream_capturing()

    def prepare(self, kernels: Sequence[Specialised]) -> None:
        """Compile kernels side by side; one that cannot be compiled fails when it is launched."""
        with contextlib.suppress(NoKernelError):
            compile_all(kernels, architecture(self.gpu.capability))

    def seconds(self, run: Callable[[], object]) -> float:
        """Return how long ``run`` takes on the device: the mean of some runs in a row after two to warm up."""
        with torch.cuda.device(self.index):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            for _ in range(2):
                run()
            start.record()
            for _ in range(_TIMED_RUNS):
                run()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) / 1e3 / _TIMED_RUNS

    def _load(self, kernel: Specialised, shared_bytes: int) -> ctypes.c_void_p:
        code = compiled(kernel, architecture(self.gpu.capability))
        with self._lock:
            if kernel in self._functions:
                return self._functions[kernel]
            module, function = ctypes.c_void_p(), ctypes.c_void_p()
            self._check(self._library.cuModuleLoadData(ctypes.byref(module), code), kernel, "load")
            name = kernel.name.encode()
            self._check(self._library.cuModuleGetFunction(ctypes.byref(function), module, name), kernel, "find")
            if shared_bytes > _PLAIN_SHARED_BYTES:
                status = self._library.cuFuncSetAttribute(function, _MOST_SHARED_ATTRIBUTE, shared_bytes)
                self._check(status, kernel, f"give {shared_bytes} bytes of shared memory to")
            self._functions[kernel] = function
            return function

    def _enter_context(self) -> None:
        """Make torch's context current where this thread has none yet."""
        context = ctypes.c_void_p()
        self._library.cuCtxGetCurrent(ctypes.byref(context))
        if context.value:
            return
        self._library.cuInit(0)
        self._library.cuDevicePrimaryCtxRetain(ctypes.byref(context), self._device())
        self._library.cuCtxSetCurrent(context)

    def _device(self) -> ctypes.c_int:
        """Return the driver's number of the device, which is torch's: both see the same visible devices."""
        device = ctypes.c_int()
        self._library.cuDeviceGet(ctypes.byref(device), self.index)
        return device

    def _shared_bytes(self) -> int:
        found = ctypes.c_int(_PLAIN_SHARED_BYTES)
        self._library.cuInit(0)
        self._library.cuDeviceGetAttribute(ctypes.byref(found), _DEVICE_SHARED, self._device())
        return found.value

    def _check(self, status: int, kernel: Specialised, verb: str) -> None:
        if status:
            name = ctypes.c_char_p()
            self._library.cuGetErrorName(status, ctypes.byref(name))
            said = name.value.decode() if name.value else f"status {status}"
            raise NoKernelError(kernel.short, {"cuda": f"the CUDA driver cannot {verb} it: {said}"})
