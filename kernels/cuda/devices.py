"""The kernels of each GPU, and why a GPU has none."""

import functools

import torch

from binarize.errors import NoKernelError
from binarize.kernels.cuda.compile import missing, why_not_capability
from binarize.kernels.cuda.driver import Driver, open_driver
from binarize.kernels.cuda.kernels import CudaKernels
from binarize.kernels.problem import Conv2dProblem

__all__ = ["cuda_kernels", "cuda_why_not"]


def cuda_why_not(index: int | None = None) -> str | None:
    """Return why kernels do not run on GPU ``index`` (None: on any), or None where they do."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA; install a build of torch with CUDA"
    try:
        open_driver()
    except OSError as error:
        return f"{error}; install NVIDIA's driver"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device; nvidia-smi and CUDA_VISIBLE_DEVICES tell more"
    return missing() or why_not_capability(torch.cuda.get_device_capability(index))


def cuda_kernels(device: torch.device, problem: Conv2dProblem | None) -> CudaKernels:
    """Return the kernels of the GPU ``device`` that runs ``problem`` (None: packing).

    Raises:
        NoKernelError: nothing runs there, or not this problem.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    kernels = _of_device(index)
    why = None if problem is None else kernels.why_not(problem)
    if why is not None:
        raise NoKernelError(problem, {f"cuda:{index}": why})
    return kernels


@functools.lru_cache(maxsize=64)
def _of_device(index: int) -> CudaKernels:
    why = cuda_why_not(index)
    if why is not None:
        raise NoKernelError("anything", {f"cuda:{index}": why})
    return CudaKernels(Driver(index))
