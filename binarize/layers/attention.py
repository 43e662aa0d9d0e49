"""Attention with its projections as layers of their own, so that they can be converted like any other."""

import math
from typing import final

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

__all__ = ["Attention", "attend"]


@final
class Attention(nn.Module):
    """What `torch.nn.MultiheadAttention` computes, its input projections three linear layers and its output one.

    Attributes:
        heads: that the features fall into.
        batch_first: whether inputs are ``(n, length, features)`` and not ``(length, n, features)``.
        dropout: share of attention weights that training drops.
    """

    def __init__(self, original: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads, self.batch_first, self.dropout = original.num_heads, original.batch_first, original.dropout
        assert isinstance(original.in_proj_weight, Tensor)
        biases = (None,) * 3 if original.in_proj_bias is None else original.in_proj_bias.detach().chunk(3)
        weights = original.in_proj_weight.detach().chunk(3)
        self.query, self.key, self.value = (_linear(weight, bias) for weight, bias in zip(weights, biases, strict=True))
        bias = original.out_proj.bias
        self.out_proj = _linear(original.out_proj.weight.detach(), None if bias is None else bias.detach())
        self.train(original.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Take and give what `torch.nn.MultiheadAttention` does."""
        dropout = self.dropout if self.training else 0.0
        projected = (self.query(query), self.key(key), self.value(value))
        found = attend(
            *projected, self.heads, self.batch_first, dropout, key_padding_mask, attn_mask, need_weights,
            average_attn_weights,
        )  # fmt: skip
        return self.out_proj(found[0]), found[1]


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    made.weight = nn.Parameter(weight.clone())
    if bias is not None:
        made.bias = nn.Parameter(bias.clone())
    return made


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    batch_first: bool,
    dropout: float = 0.0,
    padding: Tensor | None = None,
    mask: Tensor | None = None,
    need_weights: bool = False,
    average: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Return ``softmax(q k^T / sqrt(d)) v`` over all heads, and the attention weights where they are wanted.

    Args:
        query: projected, ``(n, l, c)``, ``(l, n, c)`` or ``(l, c)``.
        key: projected, s in place of l.
        value: projected, as the key.
        heads: that c falls into.
        batch_first: which of the first two layouts it is.
        dropout: share of weights that is dropped.
        padding: ``(n, s)``, True or added where a key is not to be seen.
        mask: ``(l, s)`` or ``(n * heads, l, s)``, True or added likewise.
        need_weights: return them.
        average: over the heads.
    """
    batched = query.dim() == 3
    if batched and not batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    elif not batched:
        query, key, value = (x.unsqueeze(0) for x in (query, key, value))
        padding = None if padding is None else padding.unsqueeze(0)
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    added = _added(padding, mask, q, k)
    weights = None
    if need_weights:
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        weights = (scores if added is None else scores + added).softmax(-1)
        found = F.dropout(weights, dropout) @ v if dropout else weights @ v
    else:
        found = F.scaled_dot_product_attention(q, k, v, added, dropout)
    y = found.transpose(1, 2).flatten(2)
    if weights is not None:
        weights = weights.mean(1) if average else weights
    if not batched:
        return y.squeeze(0), None if weights is None else weights.squeeze(0)
    return y if batch_first else y.transpose(0, 1), weights


fx.wrap("attend")


def _added(padding: Tensor | None, mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """Return what is added to the scores ``(n, heads, l, s)``, or None."""
    found = None
    if padding is not None:
        found = _numbers(padding, q).reshape(len(q), 1, 1, k.shape[2])
    if mask is not None:
        numbers = _numbers(mask, q)
        numbers = numbers if mask.dim() == 2 else numbers.reshape(len(q), -1, q.shape[2], k.shape[2])
        found = numbers if found is None else found + numbers
    return found


def _numbers(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return like.new_zeros(mask.shape).masked_fill(mask, -math.inf)
