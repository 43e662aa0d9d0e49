"""Make writing in place visible in the graph: later steps may then swap a module without changing what others see."""

from torch import fx

from binarize.passes.graph import first_input, flowing
from binarize.passes.operations import is_inplace

__all__ = ["thread_inplace"]


def thread_inplace(gm: fx.GraphModule) -> int:
    """Let whoever reads a tensor after it was overwritten read the node that overwrote it.

    Tracing records ``y = relu_(x); z = x + y`` with ``z`` reading the old name of ``x``. The value is right only as
    long as the ReLU really writes in place, which a fused or swapped one does not. Writes through a view are not seen.

    Returns:
        How many readers were moved.
    """
    order = {node: index for index, node in enumerate(gm.graph.nodes)}
    tensors, moved = flowing(gm), 0
    for node in gm.graph.nodes:
        # Python's += on a size makes a new number, on a tensor it overwrites
        if node not in tensors or not is_inplace(gm, node) or (source := first_input(node)) not in tensors:
            continue
        for user in [user for user in source.users if order[user] > order[node]]:
            user.replace_input_with(source, node)
            moved += 1
    return moved
