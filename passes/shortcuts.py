"""Shortcuts around the convolutions of a branch, as Bi-Real Net has them."""

import operator

from torch import fx, nn

from binarize.passes.graph import call_of, calls, first_input, single_user, take_over

__all__ = ["add_shortcuts"]


def add_shortcuts(body: fx.GraphModule) -> list[str]:
    """Add the input of each convolution to its normalised output, where both have one shape; return their paths.

    Reference:
        Liu et al., Bi-Real Net, ECCV 2018, arXiv:1808.00278, section 3.1; Group-Net's blocks have the same.
    """
    added = []
    for call in calls(body, nn.Conv2d):
        if not _keeps_shape(call.module):
            continue
        end = single_user(call.node)
        normalised = end is not None and call_of(body, end, nn.BatchNorm2d) is not None
        last = end if end is not None and normalised else call.node
        with body.graph.inserting_after(last):
            total = body.graph.call_function(operator.add, (last, first_input(call.node)))
        take_over(last, total)
        added.append(call.name)
    body.graph.lint()
    body.recompile()
    return added


def _keeps_shape(conv: nn.Conv2d) -> bool:
    if conv.in_channels != conv.out_channels or max(conv.stride) > 1:
        return False
    if isinstance(conv.padding, str):
        return conv.padding == "same"
    sizes = zip(conv.kernel_size, conv.dilation, conv.padding, strict=True)
    return all(2 * int(padding) == dilation * (kernel - 1) for kernel, dilation, padding in sizes)
