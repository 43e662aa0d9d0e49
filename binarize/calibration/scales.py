"""Scales of branches by least squares against the original's output of their group.

    min over scale of |sum_k scale_k u_k - y|^2,    u_k = share_k v_k                                          (1)

One system of N equations for each group, in graph order, each on inputs from the groups before it. What the images do
not determine stays at 1, the plain mean; scales that do not lower the error on images kept aside are not taken.

Reference:
    Zhuang et al., arXiv:1811.10413, learnt scales of branches; here they start where (1) has its minimum.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from binarize.calibration.reconstruct import arguments_of
from binarize.calibration.regions import traced_parts
from binarize.calibration.walk import Walk, stretches
from binarize.layers.branches import Branches
from binarize.passes.capture import capture
from binarize.passes.graph import join, module_of

__all__ = ["fit_scales", "least_squares_scales"]

RIDGE = 0.01  # how strongly scales are held to 1, as a share of the branches' mean power
ASIDE = 4  # every fourth batch judges and is not fitted to


@torch.no_grad()
def fit_scales(net: nn.Module, teacher: nn.Module, batches: Sequence[tuple[Any, ...]]) -> dict[str, tuple[float, ...]]:
    """Fit the scales of all branches of ``net``, in place.

    Args:
        net: training form, its layers fitted.
        teacher: the original.
        batches: argument tuples of ``forward``.

    Returns:
        The scales of each group whose error fell, by the module path of its branches.
    """
    found: dict[str, tuple[float, ...]] = {}
    parts = [(path, gm) for path, gm in traced_parts(net) if any(isinstance(m, Branches) for m in gm.modules())]
    originals = capture(copy.deepcopy(teacher)).graphs if parts else {}
    for path, gm in parts:
        ours, theirs = (arguments_of(model, path, batches) for model in (net, teacher))
        if path not in originals or not len(ours) == len(theirs) == len(batches):
            continue
        walk, original = Walk(gm, ours), Walk(originals[path], theirs)
        for nodes in stretches(gm, ()):
            branches, node = module_of(gm, nodes[-1]), nodes[-1]
            if isinstance(branches, Branches) and branches.scale is not None and "original" in node.meta:
                targets = original.until(node.meta["original"])
                inputs = [[values[read] for read in node.all_input_nodes] for values in walk.values]
                if targets is not None and _improve(branches, inputs, targets):
                    found[join(path, str(node.target))] = tuple(branches.scale.tolist())
            walk.step(nodes, node)
    return found


def _improve(branches: Branches, inputs: Sequence[Sequence[Tensor]], targets: Sequence[Tensor]) -> bool:
    """Fit the scales of one group; return whether the images kept aside gained."""
    pairs = [(torch.stack(branches.terms(*given)), y) for given, y in zip(inputs, targets, strict=True)]
    if any(terms.shape[1:] != y.shape for terms, y in pairs):  # the group lost a stride: it has another size
        return False
    aside = pairs[::ASIDE]
    scale = least_squares_scales([pair for index, pair in enumerate(pairs) if index % ASIDE] or aside)
    if not _error(aside, scale) < _error(aside, torch.ones_like(scale)):
        return False
    assert branches.scale is not None
    branches.scale[: len(scale)] = scale
    return True


def least_squares_scales(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Solve (1), held to 1: pairs of terms ``(N, n, ...)`` and targets ``(n, ...)`` to scales ``(N,)``."""
    count = len(pairs[0][0])
    gram, right = torch.zeros(count, count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for terms, y in pairs:
        flat = terms.flatten(1).double()
        gram += (flat @ flat.T).cpu()
        right += (flat @ y.flatten().double()).cpu()
    level = RIDGE * gram.diagonal().mean().clamp_min(1e-30)
    solved: Tensor = torch.linalg.solve(gram + level * torch.eye(count, dtype=torch.float64), right + level)
    return solved.to(pairs[0][0])


def _error(pairs: Sequence[tuple[Tensor, Tensor]], scale: Tensor) -> float:
    return sum(float((torch.tensordot(scale, terms, 1) - y).square().sum()) for terms, y in pairs)
