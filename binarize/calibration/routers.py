"""A router's first choice: images that look alike choose the same branches, and all branches are chosen alike often.

Nothing in a trained network says which images a branch should serve, and random weights choose the same few branches
for nearly all images. So K branches are fitted to all images, as if only they were stored; the others start as their
copies, branch k of branch k mod K, and each K are a set. A set serves images that look alike: these are put into as
many clusters as there are sets, by their mean features S, and all branches of set j prefer the images near centre c_j,

    z = P (mean(S) - mu),    l_k = s (2 c_j . z - |c_j|^2) + b_j  =  -s |z - c_j|^2 + b_j + s |z|^2,  j = k div K   (1)

with P the main directions of the features, and b so that all sets are chosen alike often. At first the network is that
of K branches; training makes the sets differ. Where K does not divide N, what the last set lacks is chosen from the
next best, at a smaller share.

In training a branch meets its own images only. So the normalisation layers of the copies get the statistics of those,
and the scale and shift with which they compute the same as before. docs/decisions/0004-start-of-routers.md says what
else was tried.
"""

from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from binarize.layers.branches import Branches, Router, mean_features, routed_groups, sharing

__all__ = ["split_branches", "start_router"]

SPREAD = 1.0  # standard deviation of the first logits
LEAST = 0.01  # of the variance that a channel had
FEWEST = 8  # images that statistics are taken from
ROUNDS = 20  # of moving the centres
STEPS = 300  # of balancing
TINY = 1e-6  # share of the largest singular value below which a direction is noise


@torch.no_grad()
def start_router(router: Router, features: Tensor, before: Tensor | None = None) -> Tensor:
    """Set the weights of a router by equation (1).

    Args:
        router: of N branches; overwritten.
        features: mean of the aggregate over each image, ``(n, c)``.
        before: the set of each image ``(n,)`` in another group, whose branches hand on to these: sets are numbered so
            that most images stay in theirs.

    Returns:
        The set of each image, ``(n,)``.
    """
    hidden, stored = router.squeeze.out_features, router.choose.out_features
    directions, offset = _main_directions(features.float(), hidden // 2)
    z = features.float() @ directions.T + offset
    centres = _centres(z, -(-stored // router.executed))
    slope, bias = 2 * centres, -centres.square().sum(1)
    logits = z @ slope.T + bias
    scale = SPREAD / logits.std(0, correction=0).mean().clamp_min(TINY)
    bias = scale * bias + _balance(scale * logits)
    chosen = (scale * (z @ slope.T) + bias).argmax(1)
    if before is not None and int(before.max()) < len(centres):
        order = _numbers(chosen, before, len(centres))
        slope, bias, chosen = slope[order], bias[order], torch.tensor(order, device=chosen.device).argsort()[chosen]
    sets = torch.arange(stored, device=features.device) // router.executed
    slope, bias = slope[sets], bias[sets]
    _set(router.squeeze, torch.cat([directions, -directions]), torch.cat([offset, -offset]))
    _set(router.choose, scale * torch.cat([slope, -slope], 1), bias)  # relu(z) - relu(-z) = z
    return chosen


def _numbers(sets: Tensor, before: Tensor, count: int) -> list[int]:
    """Return which of ``sets`` gets each number: in turn the pair that shares most images of those that are left."""
    shared = F.one_hot(sets, count).double().T @ F.one_hot(before, count).double()
    found = [0] * count
    for _ in range(count):
        here, there = divmod(int(shared.argmax()), count)
        found[there] = here
        shared[here], shared[:, there] = -1, -1
    return found


def _set(layer: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    """Fill the first rows and columns of a layer; the others become 0."""
    layer.weight.zero_()
    layer.bias.zero_()
    layer.weight[: weight.shape[0], : weight.shape[1]] = weight
    layer.bias[: len(bias)] = bias


def _main_directions(features: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return P ``(p, c)`` and the offset ``(p,)`` of at most ``most`` main directions; the first has variance 1."""
    mean = features.mean(0)
    _, size, directions = torch.linalg.svd(features - mean, full_matrices=False)
    kept = int((size > TINY * size[:1].clamp_min(TINY)).sum())
    scaled = directions[: min(kept, most)] * (len(features) ** 0.5 / size[:1].clamp_min(TINY))
    return scaled, -scaled @ mean


def _centres(z: Tensor, count: int) -> Tensor:
    """Return cluster centres ``(count, p)``: each the farthest from those before it, then moved to its images' mean."""
    centres = [z[int(z.square().sum(1).argmin())]]
    for _ in range(count - 1):
        distance = torch.cdist(z, torch.stack(centres)).amin(1)
        centres.append(z[int(distance.argmax())])
    found = torch.stack(centres)
    for _ in range(ROUNDS):
        nearest = torch.cdist(z, found).argmin(1)
        member = F.one_hot(nearest, count).to(z)
        size = member.sum(0).unsqueeze(1)
        found = torch.where(size > 0, member.T @ z / size.clamp_min(1), found)
    return found


def _balance(logits: Tensor) -> Tensor:
    """Return the bias ``(j,)`` with which each set is chosen for nearly the same number of images."""
    wanted = 1 / logits.shape[1]
    bias, best, least = logits.new_zeros(logits.shape[1]), logits.new_zeros(logits.shape[1]), torch.inf
    for step in range(STEPS):
        chosen = F.one_hot((logits + bias).argmax(1), logits.shape[1]).to(logits)
        excess = chosen.mean(0) - wanted
        if float(excess.abs().max()) < least:
            best, least = bias, float(excess.abs().max())
        bias = bias - SPREAD * (1 - step / STEPS) * excess
    return best


@torch.no_grad()
def split_branches(net: nn.Module, batches: Iterable[tuple[Any, ...]]) -> None:
    """Make the branches beyond the first K of every routed group copies of those, and start the routers.

    Args:
        net: in evaluation mode, the first K branches of its groups ready.
        batches: argument tuples of ``forward``: the images to divide among the sets.
    """
    batches = list(batches)
    seen: dict[Branches, list[Tensor]] = {}
    handles = [group.register_forward_pre_hook(_keeping(seen)) for group in routed_groups(net)]
    try:
        with sharing(net):
            for batch in batches if handles else ():
                net(*batch)
    finally:
        for handle in handles:
            handle.remove()
    before: Tensor | None = None
    for group in routed_groups(net):
        group.split()
    for group, found in seen.items():  # in the order of execution
        features = torch.cat(found)
        assert group.router is not None
        before = None if before is None or len(before) != len(features) else before
        before = start_router(group.router, features, before)
    if seen:
        _renormalise(net, batches)


def _renormalise(net: nn.Module, batches: Iterable[tuple[Any, ...]]) -> None:
    """Let normalisation layers of routed branches hold the statistics of their images, and compute what they did."""
    groups = routed_groups(net)
    modules = [module for group in groups for body in group.bodies for module in body.modules()]
    norms = [module for module in modules if isinstance(module, _BatchNorm)]
    seen = {layer: _Moments() for layer in norms if layer.affine and layer.track_running_stats}
    handles = [layer.register_forward_pre_hook(moments.add) for layer, moments in seen.items()]
    try:
        for group in groups:
            group.sparse = True  # a branch then sees no other images than its own
        for batch in batches:
            net(*batch)
    finally:
        for group in groups:
            group.sparse = False
        for handle in handles:
            handle.remove()
    for layer, moments in seen.items():
        if moments.images >= FEWEST:
            _replace_statistics(layer, *moments.of_all())


def _replace_statistics(layer: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Set the statistics, and the scale and shift with which the layer computes the same in evaluation.

    A channel that hardly varies keeps its own: it may do so in other images, and would be all but switched off.
    """
    assert layer.running_mean is not None
    assert layer.running_var is not None
    varies = variance > LEAST * layer.running_var
    mean = torch.where(varies, mean, layer.running_mean)
    variance = torch.where(varies, variance, layer.running_var)
    old, new = ((values.double() + layer.eps).sqrt() for values in (layer.running_var, variance))
    slope = layer.weight.double() / old
    layer.bias.add_(slope * (mean - layer.running_mean.double()))
    layer.weight.copy_(slope * new)
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(variance)


@final
class _Moments:
    """Sums of what a layer receives, by channel.

    Attributes:
        images: that it received.
    """

    def __init__(self) -> None:
        self.images, self._count = 0, 0
        self._total = self._squares = torch.zeros(())

    def add(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Take the input ``(n, c, ...)`` of a call in."""
        values = args[0].double().transpose(0, 1).flatten(1)
        self.images, self._count = self.images + len(args[0]), self._count + values.shape[1]
        self._total, self._squares = self._total + values.sum(1), self._squares + values.square().sum(1)

    def of_all(self) -> tuple[Tensor, Tensor]:
        """Return mean and variance ``(c,)``."""
        mean = self._total / self._count
        return mean, (self._squares / self._count - mean.square()).clamp_min(0)


def _keeping(seen: dict[Branches, list[Tensor]]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(module, Branches)
        seen.setdefault(module, []).append(mean_features(args[0]))

    return hook
