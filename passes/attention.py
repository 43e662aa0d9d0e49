"""Open attention: `nn.MultiheadAttention` becomes its projections and a function, which compute the same."""

from torch import nn

from binarize.layers.attention import Attention
from binarize.passes.callers import reads_of
from binarize.passes.graph import put

__all__ = ["open_attention", "why_not"]


def why_not(parent: nn.Module, name: str, attention: nn.MultiheadAttention) -> str | None:
    """Return why ``parent.<name>`` has to stay a MultiheadAttention, or None."""
    if type(attention) is not nn.MultiheadAttention:
        return f"class {type(attention).__name__} may compute something else"
    if "in_proj_weight" not in attention._parameters or attention._parameters["in_proj_weight"] is None:
        return "its keys or values have widths of their own"
    if attention.bias_k is not None or attention.add_zero_attn:
        return "it adds keys of its own"
    if type(parent).__module__.startswith("torch.nn.modules.transformer") or reads_of(parent, name):
        return f"{type(parent).__name__} reads its weights directly"
    if attention._forward_hooks or attention._forward_pre_hooks:
        return "it has forward hooks, which a replacement would lose"
    return None


def open_attention(model: nn.Module) -> tuple[str, ...]:
    """Replace, in place, every MultiheadAttention that can be; return their paths.

    The model must be a copy: its module paths change.
    """
    opened: dict[nn.Module, Attention] = {}
    changed = []
    for path, module in list(model.named_modules(remove_duplicate=False)):
        parent, _, name = path.rpartition(".")
        if not path or not isinstance(module, nn.MultiheadAttention):
            continue
        if why_not(model.get_submodule(parent), name, module) is None:
            put(model, path, opened.setdefault(module, Attention(module)))
            changed.append(path)
    return tuple(changed)
