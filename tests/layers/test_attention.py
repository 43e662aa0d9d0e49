"""Attention with open projections against `torch.nn.MultiheadAttention`, whose interface it has."""

import itertools

import pytest
import torch
from torch import nn

from binarize.layers.attention import Attention

N, L, S, C, HEADS = 2, 4, 5, 24, 3


def masks(kind):
    torch.manual_seed(1)
    if kind == "bool":
        return (torch.rand(L, S) > 0.7) & (torch.arange(S) > 0)
    return {"none": None, "float": torch.randn(L, S), "each": torch.randn(N * HEADS, L, S)}[kind]


@pytest.mark.parametrize("mask", ["none", "bool", "float", "each"])
@pytest.mark.parametrize(("batch_first", "bias"), list(itertools.product((False, True), (False, True))))
def test_it_gives_what_torch_gives(batch_first, bias, mask):
    torch.manual_seed(0)
    original = nn.MultiheadAttention(C, HEADS, bias=bias, batch_first=batch_first).eval()
    inputs = [torch.randn(N, length, C) for length in (L, S, S)]
    inputs = inputs if batch_first else [x.transpose(0, 1) for x in inputs]
    padding = torch.zeros(N, S, dtype=torch.bool)
    padding[0, -2:] = True
    if mask in ("float", "each"):
        padding = torch.zeros(N, S).masked_fill(padding, -1e4)

    for need, average, padded in itertools.product((False, True), (False, True), (False, True)):
        options = {"need_weights": need, "average_attn_weights": average, "attn_mask": masks(mask)}
        options["key_padding_mask"] = padding if padded else None
        wanted, got = original(*inputs, **options), Attention(original)(*inputs, **options)

        # sums of at most 24 products of numbers near 1, in other orders
        torch.testing.assert_close(got[0], wanted[0], rtol=1e-5, atol=1e-5)
        assert (got[1] is None) == (wanted[1] is None)
        if got[1] is not None:
            torch.testing.assert_close(got[1], wanted[1], rtol=1e-5, atol=1e-6)


def test_one_sequence_without_a_batch_is_enough():
    torch.manual_seed(0)
    original = nn.MultiheadAttention(C, HEADS).eval()
    x = torch.randn(L, C)

    (wanted, weights), (got, own) = original(x, x, x), Attention(original)(x, x, x)

    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert own.shape == weights.shape


def test_training_drops_attention_weights():
    torch.manual_seed(0)
    made = Attention(nn.MultiheadAttention(C, HEADS, dropout=0.5))
    x = torch.randn(L, N, C)

    assert not torch.equal(made(x, x, x)[0], made(x, x, x)[0])
    made.eval()
    assert torch.equal(made(x, x, x, need_weights=False)[0], made(x, x, x, need_weights=False)[0])
