"""Rows: the sampled least-squares problem is the layer itself."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from binarize.calibration.rows import Rows, draw, row_count, values
from binarize.layers.binary import BinaryActivation, BinaryConv2d, BinaryLinear
from binarize.schemes.presets import build_scheme


def binary(layer, spec="encoding:w=2,a=3"):
    scheme = build_scheme(spec)
    kind = BinaryConv2d if isinstance(layer, nn.Conv2d) else BinaryLinear
    made = kind.from_float(layer, scheme, BinaryActivation(scheme.activation))
    made.activation.set_levels(scheme.activation.fit(torch.randn(1000)))
    return made.eval()


def rebuilt(layer, rows):
    groups = getattr(layer, "groups", 1)
    weight = layer.weight_value().reshape(groups, -1, layer.weight[0].numel())
    y = rows.design(layer) @ weight.transpose(1, 2)
    return y.transpose(0, 1).flatten(1) + layer.bias


@torch.no_grad()
@settings(max_examples=40)
@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    padding=st.one_of(st.tuples(st.integers(0, 2), st.integers(0, 2)), st.just("same")),
    mode=st.sampled_from(["zeros", "reflect", "circular"]),
    groups=st.sampled_from([1, 2]),
    count=st.integers(1, 400),
    seed=st.integers(0, 2**31),
)
def test_rows_times_weights_are_the_outputs_of_the_convolution(
    kernel, stride, dilation, padding, mode, groups, count, seed
):
    torch.manual_seed(seed)
    stride = 1 if padding == "same" else stride
    conv = nn.Conv2d(4, 6, kernel, stride, padding, dilation, groups, padding_mode=mode)
    layer, x = binary(conv), torch.randn(3, 4, 9, 8)
    y = layer(x)

    rows = draw(layer, x, y, count, torch.Generator().manual_seed(seed))

    assert len(rows.targets) <= max(count, 3)
    # 36 products of numbers below 4, summed in two orders
    torch.testing.assert_close(rebuilt(layer, rows), rows.targets, atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_rows_of_a_linear_layer_on_token_maps_are_its_outputs():
    layer, x = binary(nn.Linear(5, 3)), torch.randn(2, 7, 5)

    rows = draw(layer, x, layer(x), 1000, torch.Generator())

    assert len(rows.targets) == 14
    torch.testing.assert_close(rebuilt(layer, rows), rows.targets)


@torch.no_grad()
def test_every_output_is_drawn_once_when_there_are_few():
    layer, x = binary(nn.Conv2d(2, 3, 3, padding=1)), torch.randn(4, 2, 5, 5)
    y = layer(x)

    rows = draw(layer, x, y, 10_000, torch.Generator())

    assert torch.equal(rows.targets, y.permute(0, 2, 3, 1).reshape(-1, 3))


def test_batches_join_to_one_problem():
    layer, x = binary(nn.Linear(5, 3)), torch.randn(4, 5)
    y = torch.randn(4, 3)
    parts = [draw(layer, x[i : i + 2], y[i : i + 2], 2, torch.Generator()) for i in (0, 2)]

    joined = Rows.join(parts)

    assert torch.equal(joined.taps, x)
    assert torch.equal(joined.targets, y)


def test_large_layers_get_fewer_rows_but_never_too_few():
    counts = [row_count(k, 64) for k in (9, 576, 1152, 4608)]

    assert counts == sorted(counts, reverse=True)
    assert counts[-1] >= 4608


def test_drawn_values_are_values_of_the_tensor():
    x = torch.arange(1000.0).reshape(10, 100)

    drawn = values(x, 50, torch.Generator().manual_seed(1))

    assert len(drawn) == 50
    assert set(drawn.tolist()) <= set(x.flatten().tolist())
    assert torch.equal(values(x, 5000, torch.Generator()), x.flatten())
