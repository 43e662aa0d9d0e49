import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from binarize.kernels import codes
from binarize.kernels import format as layout


def test_words_are_even_and_hold_every_channel():
    assert [layout.words(channels) for channels in (1, 32, 64, 65, 128, 129)] == [2, 2, 2, 4, 4, 6]


@settings(max_examples=30)
@given(
    groups=st.integers(1, 3), per_group=st.integers(1, 130), planes=st.integers(1, 8), seed=st.integers(0, 2**31 - 1)
)
def test_digit_planes_give_their_codes_back(groups, per_group, planes, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**planes, (2, groups * per_group, 3, 2), generator=generator)

    packed = layout.pack_digits(codes, planes, groups)

    assert packed.dtype == torch.int32
    assert packed.shape == (2, 3, 2, groups, planes, layout.words(per_group))
    assert torch.equal(layout.unpack_digits(packed, groups * per_group), codes)


def test_channel_33_is_bit_1_of_word_1_and_spare_bits_are_zero():
    codes = torch.zeros(1, 40, 1, 1, dtype=torch.int64)
    codes[0, 33] = 2

    packed = layout.pack_digits(codes, 2)

    assert packed[0, 0, 0, 0].tolist() == [[0, 0], [0, 2]]


@settings(max_examples=30)
@given(planes=st.integers(1, 4), outputs=st.integers(1, 5), k=st.integers(1, 70), seed=st.integers(0, 2**31 - 1))
def test_stored_bits_give_their_signs_back(planes, outputs, k, seed):
    signs = torch.randn(planes, outputs, k, generator=torch.Generator().manual_seed(seed))

    bits = layout.pack_signs(signs)

    assert bits.dtype == torch.uint8
    assert bits.shape == (planes, outputs, -(-k // 8))
    assert torch.equal(layout.unpack_signs(bits, k), torch.where(signs < 0, -1, 1).to(torch.int8))


def test_only_what_is_below_zero_is_stored_as_minus_one():
    signs = torch.tensor([[[0.0, -0.0, float("nan"), -1e-30, 1.0]]])

    assert layout.pack_signs(signs).tolist() == [[[0b01000]]]


@settings(max_examples=30)
@given(
    groups=st.integers(1, 3),
    outputs=st.integers(1, 70),
    per_group=st.integers(1, 130),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    seed=st.integers(0, 2**31 - 1),
)
def test_a_prepared_weight_holds_every_stored_sign_and_nothing_else(groups, outputs, per_group, kernel, seed):
    taps, out_channels = kernel[0] * kernel[1], groups * outputs
    signs = torch.randn(2, out_channels, per_group * taps, generator=torch.Generator().manual_seed(seed))
    stored = layout.pack_signs(signs)

    prepared = layout.prepare_weight(
        stored, out_channels=out_channels, channels_per_group=per_group, kernel=kernel, groups=groups
    )

    read = layout.unpack_prepared(prepared, out_channels=out_channels, channels_per_group=per_group)
    assert torch.equal(read.flatten(2), layout.unpack_signs(stored, per_group * taps))
    set_bits = sum(int(prepared.view(torch.uint8).bitwise_right_shift(i).bitwise_and(1).sum()) for i in range(8))
    assert set_bits == int((signs < 0).sum())


@settings(max_examples=40)
@given(
    field=st.sampled_from((1, 2, 4)), terms=st.lists(st.integers(0, 4), min_size=1, max_size=3).filter(any),
    outputs=st.integers(1, 70), channels=st.integers(1, 9), seed=st.integers(0, 2**31 - 1),
)  # fmt: skip
def test_a_narrow_weight_holds_the_folded_one_in_the_fewest_bits(field, terms, outputs, channels, seed):
    terms = tuple(min(planes, field) for planes in terms)
    shape = (sum(terms), outputs, channels * 6)
    bits = layout.pack_signs(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
    sizes = {"out_channels": outputs, "channels_per_group": channels, "kernel": (2, 3)}
    folded = codes.fold_weight(bits, terms, **sizes)

    narrow = codes.fold_weight(bits, terms, **sizes, narrow=True)

    fewest = {1: 1, 2: 2, 3: 4, 4: 4}[max(terms)]
    assert narrow.dtype == torch.uint8
    assert narrow.numel() * 8 == folded.numel() * fewest
    assert torch.equal(codes.widen_weight(narrow), folded)


def test_weights_of_more_than_four_planes_stay_bytes():
    bits = layout.pack_signs(torch.randn(5, 4, 8))

    made = codes.fold_weight(bits, (5,), out_channels=4, channels_per_group=8, kernel=(1, 1), narrow=True)

    assert made.dtype == torch.int8


@pytest.mark.parametrize("groups", [1, 3])
def test_weights_are_the_same_in_whatever_parts_they_are_put_in_order(groups, monkeypatch):
    bits = layout.pack_signs(torch.randn(2, 100 * groups, 45, generator=torch.Generator().manual_seed(2)))
    sizes = {"out_channels": 100 * groups, "channels_per_group": 5, "kernel": (3, 3), "groups": groups}
    whole = layout.prepare_weight(bits, **sizes), codes.fold_weight(bits, (2,), **sizes, narrow=True)

    monkeypatch.setattr(layout, "_MOST_UNPACKED", 1)
    parts = layout.prepare_weight(bits, **sizes), codes.fold_weight(bits, (2,), **sizes, narrow=True)

    assert len(list(layout.parts_of(bits, groups))) == 4
    assert torch.equal(whole[0], parts[0])
    assert torch.equal(whole[1], parts[1])
