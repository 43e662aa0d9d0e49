"""How fast a GPU multiplies planes and codes: measured once on the device, kept in the user's cache.

The constants by which a packed tensor gets its form on a GPU, as `binarize.kernels.speeds` has them for the CPU.
"""

import functools

import torch

from binarize.kernels.cuda.compile import source_digest
from binarize.kernels.cuda.devices import cuda_kernels
from binarize.kernels.cuda.kept import keep, kept
from binarize.kernels.cuda.kernels import CudaKernels
from binarize.kernels.problem import Conv2dProblem
from binarize.kernels.speeds import Speeds

__all__ = ["assumed_rates", "gpu_rates", "measure_rates"]

_FILE = "rates.json"
_CHANNELS, _SIZE, _IMAGES = 256, 28, 32


def assumed_rates(capability: tuple[int, int]) -> Speeds:
    """Return the ratio of peak rates in NVIDIA's tables, where nothing can be measured: while a graph is captured.

    A100: 4992 binary TOPS, 624 of int8. From compute capability 10.0 on there are no binary tensor cores.
    """
    return Speeds(8.0, 1.0) if capability < (10, 0) else Speeds(0.01, 1.0)


def measure_rates(kernels: CudaKernels, device: torch.device) -> Speeds:
    """Time one 3x3 convolution in both forms and return products per nanosecond."""
    products = _IMAGES * _SIZE**2 * 9 * _CHANNELS**2
    rates = []
    for codes in (False, True):
        window = (3, 3), (1, 1), (1, 1), (1, 1)
        problem = Conv2dProblem(_CHANNELS, _CHANNELS, *window, 1, (1,), (1,), codes)
        form = (torch.uint8, torch.int8) if codes else (torch.int32, torch.int32)
        x = torch.ones((_IMAGES, _SIZE, _SIZE, *problem.x_shape), dtype=form[0], device=device)
        weight = torch.zeros(problem.weight_shape, dtype=form[1], device=device)
        run = functools.partial(kernels.conv2d_integer, problem, x, weight)
        rates.append(products / (1e9 * kernels.launcher.seconds(run)))
    return Speeds(*rates)


@functools.lru_cache(maxsize=64)
def _kept_rates(index: int) -> Speeds:
    device = torch.device("cuda", index)
    kernels = cuda_kernels(device, None)
    key = f"{kernels.launcher.gpu} {source_digest()}"
    found = kept(_FILE).get(key)
    if isinstance(found, list) and len(found) == 2 and all(isinstance(rate, float) and rate > 0 for rate in found):
        return Speeds(*found)
    measured = measure_rates(kernels, device)
    keep(_FILE, key, [measured.planes, measured.codes])
    return measured


def gpu_rates(device: torch.device) -> Speeds:
    """Return the rates of the GPU ``device``, from the cache or measured now."""
    index = torch.cuda.current_device() if device.index is None else device.index
    if torch.cuda.is_current_stream_capturing() or torch.compiler.is_compiling():
        return assumed_rates(torch.cuda.get_device_capability(index))
    return _kept_rates(index)
