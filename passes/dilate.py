"""Dilations of their own for the branches of a group (BPAC), and groups that lose their strides."""

import copy

from torch import fx, nn

from binarize.passes.graph import module_of, put
from binarize.passes.regions import Region
from binarize.schemes.structures import Groupwise

__all__ = ["set_rates", "why_no_rates"]

_POOLS = (nn.MaxPool2d, nn.AvgPool2d)


def why_no_rates(gm: fx.GraphModule, region: Region, structure: Groupwise) -> str | None:
    """Return why the branches of a region cannot have dilations or strides of their own, or None if they can."""
    for node in region.nodes:
        module = module_of(gm, node)
        if isinstance(module, nn.Conv2d) and _takes_rate(module, structure) and not _keeps_size(module):
            return f"{str(node.target)!r} does not keep the size of its input, which a dilation of its own needs"
        if isinstance(module, _POOLS) and structure.strides == "drop" and not _is_odd(module):
            return f"{str(node.target)!r} has an even window, which needs its stride"
    return None


def set_rates(body: fx.GraphModule, structure: Groupwise, branch: int) -> None:
    """Give the dilated convolutions of branch ``branch`` its dilation, and all layers stride 1 if strides are dropped.

    Padding follows the dilation, so that the branches' outputs have one size.

    Reference:
        Zhuang et al., arXiv:1909.09934, binary parallel atrous convolution. The published code gives every branch the
        last rate, by building the branches once per rate; here branch k has ``rates[k mod K]``.
    """
    for name, module in list(body.named_modules()):
        if isinstance(module, nn.Conv2d):
            takes = structure.rates and _takes_rate(module, structure)
            rate = structure.rates[branch % structure.branches] if takes else None
            if rate is not None or (structure.strides == "drop" and module.stride != (1, 1)):
                put(body, name, _changed(module, rate, structure.strides == "drop"))
        elif isinstance(module, _POOLS) and structure.strides == "drop":
            module.stride = 1


def _takes_rate(conv: nn.Conv2d, structure: Groupwise) -> bool:
    """Whether a convolution takes the branch's dilation: it has one, or its group lost its strides for one."""
    if not structure.rates or max(conv.kernel_size) == 1:
        return False
    return max(conv.dilation) > 1 or structure.strides == "drop"


def _keeps_size(conv: nn.Conv2d) -> bool:
    if isinstance(conv.padding, str):
        return False
    sizes = zip(conv.kernel_size, conv.dilation, conv.padding, strict=True)
    return all(2 * int(padding) == dilation * (kernel - 1) for kernel, dilation, padding in sizes)


def _is_odd(pool: nn.MaxPool2d | nn.AvgPool2d) -> bool:
    size = pool.kernel_size if isinstance(pool.kernel_size, tuple) else (pool.kernel_size,) * 2
    padding = pool.padding if isinstance(pool.padding, tuple) else (pool.padding,) * 2
    return all(2 * p == k - 1 for k, p in zip(size, padding, strict=True))


def _changed(conv: nn.Conv2d, rate: int | None, drop: bool) -> nn.Conv2d:
    """Return the convolution with another dilation, or without its stride; same weights."""
    made = copy.deepcopy(conv)
    if rate is not None:
        height, width = conv.kernel_size
        made.dilation, made.padding = (rate, rate), (rate * (height - 1) // 2, rate * (width - 1) // 2)
        made._reversed_padding_repeated_twice = [made.padding[1]] * 2 + [made.padding[0]] * 2
    if drop:
        made.stride = (1, 1)
    return made
