import os
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from binarize.errors import ModelError
from binarize.kernels import ops, reference
from binarize.kernels.codes import pack_codes, unpack_codes
from binarize.kernels.dispatch import LEVELS
from binarize.kernels.format import unpack_digits

SPECIAL = (0.0, -0.0, float("nan"), float("inf"), -float("inf"), 0.5, 1.5, 2.5, 0.49999997, 1e30, -1e-45)
LAYOUTS = {"channels last": torch.channels_last, "channels first": torch.contiguous_format}


@pytest.fixture(params=LEVELS, ids=lambda level: level.name)
def level(request):
    if why := request.param.why_not():
        pytest.skip(why)
    with mock.patch.dict(os.environ, BINARIZE_KERNEL=request.param.name):
        yield request.param.name


def images(seed, shape, layout):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * 4
    special = torch.rand(shape, generator=generator) < 0.3
    chosen = torch.randint(0, len(SPECIAL), shape, generator=generator)
    return torch.where(special, torch.tensor(SPECIAL)[chosen], x).contiguous(memory_format=layout)


shapes = st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 9), st.integers(1, 9))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@settings(max_examples=25)
@given(
    shape=shapes,
    groups=st.integers(1, 3),
    bits=st.integers(1, 8),
    low=st.sampled_from((0.0, -1.1, -3.0)),
    inverse_step=st.sampled_from((1.0, 0.3, 17.7)),
    seed=st.integers(0, 2**31 - 1),
)
def test_uniform_codes_follow_their_formula(layout, shape, groups, bits, low, inverse_step, seed):
    n, c, h, w = shape
    x = images(seed, (n, c * groups, h, w), layout)
    low32, inverse32 = torch.tensor(low), torch.tensor(inverse_step)
    exact = torch.floor((x - low32) * inverse32 + 0.5)
    codes = torch.where(x.isnan(), 0.0, exact).clamp(0, 2**bits - 1).long()

    for level in LEVELS:
        if level.why_not() is None:
            with mock.patch.dict(os.environ, BINARIZE_KERNEL=level.name):
                packed = ops.pack_uniform(x, low, inverse_step, bits, groups)
                encoded = ops.encode_uniform(x, low, inverse_step, bits, groups)
            assert torch.equal(unpack_digits(packed, c * groups), codes), level.name
            assert torch.equal(packed, reference.pack_uniform(x, low, inverse_step, bits, groups)), level.name
            assert torch.equal(unpack_codes(encoded, c * groups)[0], codes), level.name
            assert torch.equal(encoded, pack_codes(codes[None], groups)), level.name  # spare bytes are 0


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@settings(max_examples=25)
@given(
    shape=shapes,
    groups=st.integers(1, 3),
    planes=st.integers(1, 4),
    shared=st.booleans(),
    seed=st.integers(0, 2**31 - 1),
)
def test_a_digit_is_set_unless_the_value_is_below_its_threshold(layout, shape, groups, planes, shared, seed):
    n, c, h, w = shape
    x = images(seed, (n, c * groups, h, w), layout)
    thresholds = torch.randint(-2, 3, (planes, 1 if shared else c * groups)).float()
    digits = ~(x[:, None] < thresholds[None, :, :, None, None])
    codes = (digits.long() << torch.arange(planes).view(1, -1, 1, 1, 1)).sum(1)

    for level in LEVELS:
        if level.why_not() is None:
            with mock.patch.dict(os.environ, BINARIZE_KERNEL=level.name):
                packed = ops.pack_thresholds(x, thresholds, groups)
                encoded = ops.encode_thresholds(x, thresholds, groups)
            assert torch.equal(unpack_digits(packed, c * groups), codes), level.name
            assert torch.equal(packed, reference.pack_thresholds(x, thresholds, groups)), level.name
            assert torch.equal(encoded, pack_codes(digits.long().transpose(0, 1), groups)), level.name


def test_nan_is_code_zero_and_above_every_threshold(level):
    x = torch.full((1, 40, 1, 1), float("nan"))

    assert not unpack_digits(ops.pack_uniform(x, -1.0, 3.0, 4, 1), 40).any()
    assert (unpack_digits(ops.pack_thresholds(x, torch.zeros(1, 1), 1), 40) == 1).all()


def test_strided_and_half_precision_images_pack_like_their_float_copies(level):
    x = torch.randn(4, 12, 10, 9).permute(0, 1, 3, 2)[:, ::2, 1:]

    assert torch.equal(ops.pack_uniform(x, -2.0, 3.0, 3, 2), ops.pack_uniform(x.contiguous(), -2.0, 3.0, 3, 2))
    half = x.to(torch.bfloat16)
    assert torch.equal(ops.pack_uniform(half, -2.0, 3.0, 3, 2), ops.pack_uniform(half.float(), -2.0, 3.0, 3, 2))


def test_a_large_image_packs_alike_on_one_thread_and_on_all(level):
    x = torch.randn(2, 64, 40, 40)
    alone = ops.pack_uniform(x, -2.0, 3.0, 2, 1)
    torch.set_num_threads(3)
    assert torch.equal(ops.pack_uniform(x, -2.0, 3.0, 2, 1), alone)


def test_an_empty_batch_packs_to_an_empty_batch(level):
    assert ops.pack_uniform(torch.empty(0, 5, 3, 3), 0.0, 1.0, 2, 1).shape == (0, 3, 3, 1, 2, 2)
    assert ops.pack_thresholds(torch.empty(0, 5, 3, 3), torch.zeros(1, 1), 1).shape == (0, 3, 3, 1, 1, 2)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((torch.zeros(1, 4, 2, 2, dtype=torch.int64), 0.0, 1.0, 2, 1), "x must be floating point"),
        ((torch.zeros(4, 2, 2), 0.0, 1.0, 2, 1), "x must be floating point"),
        ((torch.zeros(1, 4, 2, 2), 0.0, 1.0, 9, 1), "bits must be 1 to 8"),
        ((torch.zeros(1, 4, 2, 2), 0.0, 1.0, 2, 3), "groups must be a divisor of 4"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, named):
    with pytest.raises(ModelError, match=named):
        ops.pack_uniform(*arguments)


def test_thresholds_of_the_wrong_width_are_refused():
    with pytest.raises(ModelError, match="thresholds must be"):
        ops.pack_thresholds(torch.zeros(1, 4, 2, 2), torch.zeros(1, 3), 1)
