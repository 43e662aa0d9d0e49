"""Running the chosen branches only: images are grouped by branch, and nothing is computed for what does not run.

Memory traffic decides in packed form, because binary convolutions are cheap: a branch's images are copied at most once,
into one tensor for one run of the branch; outputs are added to the sum from where they are, and handed on as they are.
In training, which needs gradients, what a branch hands on is a whole batch.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

__all__ = ["Rows", "add_weighted", "empty", "may_choose", "per_image", "run_chosen", "some", "take", "train_chosen"]

_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")

Rows = list[Tensor]
"""A batch as one tensor ``(...)`` per image, so that images may lie in different memory."""


def may_choose(x: Tensor) -> bool:
    """Whether the host may read which branches run: not while a CUDA graph is captured, which holds one choice.

    All branches then run, those that were not chosen with weight 0: the same sum. So they do where there is no image.
    """
    return len(x) > 0 and not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def _never_compiled(function: Callable[_Given, _Made]) -> Callable[_Given, _Made]:
    """Keep a function out of `torch.compile`: which images go where differs from call to call.

    The guard that torch has imports the compiler, 150 MB and more than a second: it stands only where one is at work.
    """

    @functools.wraps(function)
    def run(*given: _Given.args, **named: _Given.kwargs) -> _Made:
        chosen: Callable[_Given, _Made] = _disable_dynamo(function) if torch.compiler.is_compiling() else function
        return chosen(*given, **named)

    return run


@_never_compiled
@torch.no_grad()
def run_chosen(
    bodies: Sequence[nn.Module],
    gather: Callable[[int, Sequence[int]], Tensor],
    weights: Tensor,
    ran: Tensor,
    *,
    hands_on: int,
) -> tuple[Tensor, list[Rows]]:
    """Run each branch on the images that chose it. For inference: no gradients.

    Args:
        bodies: N branches.
        gather: from a branch and the images it runs for, by number, to the branch's input.
        weights: ``(n, N)``, what each output is multiplied by.
        ran: ``(n, N)`` bool, whether a branch runs for an image: one among k, k + K, ... does for each k < K.
        hands_on: K where the branches' outputs are asked for too, else 0.

    Returns:
        The weighted sum ``(n, ...)``, the same bits as that of all branches with the others at weight 0, and for each
        branch the output ``(...)`` per image of that of its copies that ran: views, without memory of their own.
    """
    total: Tensor | None = None
    outputs: list[Rows] = [[weights] * len(weights) for _ in range(hands_on)]  # every place gets its image's output
    for k, images in enumerate(_images(ran)):
        if not images:
            continue
        part = bodies[k](gather(k, images))
        total = _zeros(len(weights), part) if total is None else total
        place = 0
        for first, last in runs(images):
            add_weighted(total[first:last], weights[first:last, k], part[place : place + last - first])
            place += last - first
        for image, value in zip(images, part.unbind() if hands_on else (), strict=False):
            outputs[k % hands_on][image] = value
    assert total is not None
    return total, [outputs[k % hands_on] for k in range(len(bodies) if hands_on else 0)]


@_never_compiled
def train_chosen(
    bodies: Sequence[nn.Module],
    gather: Callable[[int, Tensor], Tensor],
    weights: Tensor,
    ran: Tensor,
    *,
    hands_on: int,
) -> Tensor | tuple[Tensor, ...]:
    """Run each branch on the images that chose it, with gradients.

    A branch that one image alone chose is normalised by the statistics of before: one image has none of its own.

    Args:
        bodies: N branches.
        gather: from a branch and the numbers of images it runs for to the branch's input.
        weights: ``(n, N)``, what each output is multiplied by.
        ran: ``(n, N)`` bool, whether a branch runs for an image: one among k, k + K, ... does for each k < K.
        hands_on: K where the branches' outputs are asked for too, else 0.

    Returns:
        The weighted sum ``(n, ...)``, and with ``hands_on`` for each branch the outputs of its copies that ran.
    """
    total: Tensor | None = None  # the axes of this and of the parts lie as in memory
    order: list[int] = []
    outputs: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(hands_on)]
    for k, numbers in enumerate(_images(ran)):
        if not numbers:
            continue
        images = torch.tensor(numbers, device=weights.device)
        with _settled(bodies[k]) if len(numbers) == 1 else contextlib.nullcontext():
            part = bodies[k](gather(k, images))
        order = order or _memory_order(part)
        part = part.permute(order)
        weighted = per_image(weights[:, k].index_select(0, images), part) * part
        total = weighted.new_zeros(len(weights), *part.shape[1:]) if total is None else total
        total = total.index_add_(0, images, weighted)
        if hands_on:
            outputs[k % hands_on].append((images, part))
    assert total is not None
    back = _inverse(order)
    if not hands_on:
        return total.permute(back)
    handed = [_in_order(parts).to(total.dtype).permute(back) for parts in outputs]
    return total.permute(back), *(handed[k % hands_on] for k in range(len(bodies)))


def _in_order(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return one batch of parts ``(numbers of images, values)`` that hold each image once."""
    places = torch.cat([images for images, _ in parts]).argsort()
    return torch.cat([values for _, values in parts]).index_select(0, places)


def some(x: Tensor, images: Tensor) -> Tensor:
    """Return some images of a batch ``(n, ...)`` by number, with gradients, in the same memory order."""
    order = _memory_order(x)
    return x.permute(order).index_select(0, images).permute(_inverse(order))


def _memory_order(x: Tensor) -> list[int]:
    """Return the axes as they lie in memory, images first; torch indexes images whose values do not lie so slowly."""
    return [0, *sorted(range(1, x.dim()), key=x.stride, reverse=True)]


def _inverse(order: Sequence[int]) -> list[int]:
    return [order.index(axis) for axis in range(len(order))]


@contextlib.contextmanager
def _settled(body: nn.Module) -> Iterator[None]:
    """Normalise by running statistics, and leave them, while open."""
    learning = [m for m in body.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    for module in learning:
        module.eval()
    try:
        yield
    finally:
        for module in learning:
            module.train()


def add_weighted(total: Tensor, weights: Tensor, value: Tensor) -> Tensor:
    """Add ``weights * value`` to ``total`` ``(n, ...)`` in place, with ``weights`` ``(n or 1,)``, in one pass."""
    return total.addcmul_(per_image(weights, value), value)


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """Reshape ``(n,)`` so that it multiplies ``like`` ``(n, ...)``."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def runs(images: Sequence[int]) -> list[tuple[int, int]]:
    """Return the stretches ``(first, last + 1)`` of consecutive numbers in a rising sequence."""
    breaks = [at for at in range(1, len(images)) if images[at] != images[at - 1] + 1]
    return [(images[a], images[b - 1] + 1) for a, b in zip([0, *breaks], [*breaks, len(images)], strict=True)]


def take(x: Tensor | Rows, images: Sequence[int]) -> Tensor:
    """Return some images of a batch: a view where they lie side by side, else a copy in the same memory order."""
    found = runs(images)
    if isinstance(x, Tensor) and len(found) == 1:
        return x[found[0][0] : found[0][1]]
    made = empty(len(images), x[images[0]])
    for place, image in enumerate(images):
        made[place] = x[image]
    return made


def empty(count: int, image: Tensor) -> Tensor:
    """Return memory for ``count`` images like ``image`` ``(...)``, in its memory order."""
    order = torch.empty_like(image, device="meta").stride()  # without the gaps that a crop would have
    return image.new_empty_strided((count, *image.shape), (image.numel(), *order))


def _zeros(count: int, part: Tensor) -> Tensor:
    return empty(count, part[0]).zero_()


def _images(ran: Tensor) -> list[list[int]]:
    """Return the numbers of the images that each branch runs for."""
    table = ran.t().tolist()
    return [[image for image, here in enumerate(row) if here] for row in table]
