"""Shortcuts around the convolutions of a branch, as Bi-Real Net has them."""

import operator

from torch import fx, nn

from binarize.passes.graph import call_of, calls, first_input, single_user, take_over
from binarize.passes.operations import add_of

__all__ = ["add_shortcuts"]


def add_shortcuts(body: fx.GraphModule) -> list[str]:
    """Add the input of each convolution to its normalised output, where both have one shape; return their paths.

    Where a block adds its own input to that output already, and an earlier shortcut has brought this input along, the
    block's shortcut starts at the convolution instead: v = BN(conv(u)) + u with x in u. Both together would count x
    twice, and values would double from block to block.

    Reference:
        Liu et al., Bi-Real Net, ECCV 2018, arXiv:1808.00278, section 3.1; Group-Net's blocks have the same.
    """
    added: list[str] = []
    carried: dict[fx.Node, fx.Node] = {}  # what a shortcut starts at -> where it ends
    for call in calls(body, nn.Conv2d):
        if not _keeps_shape(call.module):
            continue
        source, end = first_input(call.node), single_user(call.node)
        normalised = end is not None and call_of(body, end, nn.BatchNorm2d) is not None
        last = end if end is not None and normalised else call.node
        own = _residual_of(last)
        begun = None if own is None else carried.get(_through_identities(body, own[1]))
        if own is not None and begun is not None and _leads_to(begun, source):
            own[0].replace_input_with(own[1], source)
        else:
            with body.graph.inserting_after(last):
                total = body.graph.call_function(operator.add, (last, source))
            take_over(last, total)
            carried[source] = total
        added.append(call.name)
    body.graph.eliminate_dead_code()
    body.graph.lint()
    body.recompile()
    return added


def _residual_of(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Return the addition that alone reads ``node``, and what it adds."""
    user = single_user(node)
    terms = None if user is None else add_of(user)
    if user is None or terms is None or terms[0] is terms[1]:
        return None
    return user, terms[1] if terms[0] is node else terms[0]


def _through_identities(body: fx.GraphModule, node: fx.Node) -> fx.Node:
    while call_of(body, node, nn.Identity) is not None:
        node = first_input(node)
    return node


def _leads_to(start: fx.Node, end: fx.Node) -> bool:
    """Whether ``end`` is computed from ``start``."""
    waiting, seen = [end], set[fx.Node]()
    while waiting:
        node = waiting.pop()
        if node is start:
            return True
        if node not in seen:
            seen.add(node)
            waiting += node.all_input_nodes
    return False


def _keeps_shape(conv: nn.Conv2d) -> bool:
    if conv.in_channels != conv.out_channels or max(conv.stride) > 1:
        return False
    if isinstance(conv.padding, str):
        return conv.padding == "same"
    sizes = zip(conv.kernel_size, conv.dilation, conv.padding, strict=True)
    return all(2 * int(padding) == dilation * (kernel - 1) for kernel, dilation, padding in sizes)
