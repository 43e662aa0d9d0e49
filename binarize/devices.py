"""Which devices there are."""

import torch

__all__ = ["device_why_not"]


def device_why_not(device: str | torch.device) -> str | None:
    """Return why tensors cannot be on ``device`` here, or None if they can."""
    try:
        place = torch.device(device)
    except RuntimeError:
        return "there is no such kind of device"
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        return "torch sees no such CUDA device"
    try:
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError):  # of kinds that torch was built without
        return "torch has no such device here"
    return None
