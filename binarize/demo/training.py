"""Trains the demo's network, as any user would have done before meeting this package."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from binarize.data import Images, load_data

__all__ = ["train"]

BATCH = 64
LEARNING_RATE = 0.05


def train(
    model: nn.Module, *, epochs: int = 12, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> None:
    """Train on the train part of `digits`: SGD with momentum, cosine decay."""
    torch.manual_seed(seed)
    images = load_data("digits:train", batch_size=BATCH, shuffle=True, seed=seed)
    optimiser = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * len(images))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # images of 8x8 gain nothing from more, and on a busy machine threads wait for each other
    model.train()
    try:
        for epoch in range(epochs):
            _epoch(model, images, optimiser, schedule)
            if progress is not None:
                progress(epoch + 1, epochs)
    finally:
        torch.set_num_threads(threads)
        model.eval()


def _epoch(
    model: nn.Module, images: Images, optimiser: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler
) -> None:
    for batch, labels in images:
        assert labels is not None  # digits have labels
        optimiser.zero_grad()
        F.cross_entropy(model(batch), labels).backward()
        optimiser.step()
        schedule.step()
