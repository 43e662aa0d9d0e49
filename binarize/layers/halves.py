"""What `half()`, `bfloat16()` and `to(dtype)` do to packed layers: the floats they give change, their numbers stay.

Scales, biases and thresholds are few, and whole sums are too large for 16 bits: they stay float32, as the sums do.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from binarize.kernels.finish import FLOATS

__all__ = ["as_taken", "dtype_after", "keeping_types"]


def as_taken(network: nn.Module, images: Tensor) -> Tensor:
    """Return float32 images in the type of a network's float layers, where that is float16 or bfloat16."""
    found = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    return images.to(found) if images.dtype == torch.float32 and found in FLOATS else images


def dtype_after(fn: Callable[[Tensor], Tensor], dtype: torch.dtype) -> torch.dtype:
    """Return the type that ``fn``, as `torch.nn.Module._apply` takes it, makes of floats of type ``dtype``."""
    return fn(torch.empty(0, dtype=dtype, device="cpu")).dtype


def keeping_types(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return ``fn`` that moves tensors as before and leaves their type as it is."""

    def moved(x: Tensor) -> Tensor:
        made = fn(x)
        if made.dtype == x.dtype:
            return made
        return torch.empty_like(x, device=made.device) if x.is_meta else x.to(made.device)

    return moved
