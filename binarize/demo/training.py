"""Trains the demo's network, as any user would have done before meeting this package."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from binarize.data import load_data

__all__ = ["train"]

BATCH = 64
LEARNING_RATE = 0.05


def train(
    model: nn.Module, *, epochs: int = 15, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> None:
    """Train on the train part of `digits`: SGD with momentum, cosine decay, random shifts by one pixel."""
    torch.manual_seed(seed)
    images = load_data("digits:train", batch_size=BATCH, shuffle=True, seed=seed)
    optimiser = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * len(images))
    model.train()
    for epoch in range(epochs):
        for batch, labels in images:
            optimiser.zero_grad()
            F.cross_entropy(model(_shifted(batch)), labels).backward()
            optimiser.step()
            schedule.step()
        if progress is not None:
            progress(epoch + 1, epochs)
    model.eval()


def _shifted(images: Tensor) -> Tensor:
    """Move a batch ``(n, 1, h, w)`` by up to one pixel."""
    height, width = images.shape[-2:]
    top, left = (int(torch.randint(3, ())) for _ in range(2))
    return F.pad(images, (1, 1, 1, 1))[..., top : top + height, left : left + width]
