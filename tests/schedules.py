"""What tests of schedules share: the same network node by node, and the native calls that were made for it."""

import torch

from binarize.passes.schedule import runner_of


@torch.no_grad()
def by_nodes(net, *inputs, monkeypatch):
    """Run a network with every node called by torch."""
    with monkeypatch.context() as off:
        off.setenv("BINARIZE_SCHEDULE", "off")
        return net(*inputs)


def programs(net):
    """The native calls that the network made for the sizes it met; None where there could be none."""
    return [p for item in runner_of(net).items for p in getattr(item, "_programs", {}).values()]
