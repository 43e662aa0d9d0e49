"""How pixels become what a network reads: the order of the channels, their mean and spread."""

import dataclasses
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from binarize.errors import DataError, nearest

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "ORDERS", "Pixels"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ORDERS = ("rgb", "bgr")


@final
@dataclasses.dataclass(frozen=True)
class Pixels:
    """Turns images ``(n, c, h, w)``, bytes divided by 255 already, into what a network reads.

    Attributes:
        shift: ``(1, c, 1, 1)``, subtracted.
        scale: ``(1, c, 1, 1)``, divided by after that.
        is_reversed: whether the channels are turned round first: B, G, R.
    """

    shift: Tensor
    scale: Tensor
    is_reversed: bool = False

    @classmethod
    def of(
        cls,
        mean: Sequence[float] | float | None,
        std: Sequence[float] | float | None,
        channels: int,
        order: str = "rgb",
    ) -> "Pixels":
        """Read the options of `load_data`; ``mean`` and ``std`` are in the order that the network reads.

        Raises:
            DataError: They do not fit ``channels``, a spread is 0, or there is no such order.
        """
        if order not in ORDERS:
            known = " or ".join(ORDERS)
            raise DataError(f"cannot read channels as {order!r}{nearest(order, ORDERS)}; the orders are {known}")
        if order != "rgb" and channels != 3:
            raise DataError(f"cannot read channels as {order!r}: images have {channels} of them; only three are turned")
        scale = _statistic(std, channels, "std", 1.0)
        if bool((scale == 0).any()):
            raise DataError("cannot normalise: a value of std is 0; give the spread of each channel, above 0")
        return cls(_statistic(mean, channels, "mean", 0.0), scale, order == "bgr")

    def __call__(self, images: Tensor) -> Tensor:
        """Return the images as the network reads them, float32, same shape."""
        return ((images.flip(1) if self.is_reversed else images) - self.shift) / self.scale

    def restore(self, images: Tensor) -> Tensor:
        """Undo it: from what the network reads back to R, G, B in 0 to 1."""
        images = images * self.scale + self.shift
        return images.flip(1) if self.is_reversed else images

    def named(self) -> dict[str, str]:
        """Return the options that ask for it, as text."""
        mean, std = (",".join(f"{value:.6g}" for value in values.flatten()) for values in (self.shift, self.scale))
        return {"mean": mean, "std": std, "channels": ORDERS[self.is_reversed]}


def _statistic(values: Sequence[float] | float | None, channels: int, name: str, default: float) -> Tensor:
    given = [default if values is None else values] if isinstance(values, float | int | None) else list(values)
    if len(given) == 1:
        given = given * channels
    if len(given) != channels:
        raise DataError(
            f"cannot normalise: {len(given)} values of {name} for {channels} channels; give one per channel"
        )
    return torch.tensor(given, dtype=torch.float32).reshape(1, channels, 1, 1)
