import dataclasses
import os
from unittest import mock

import pytest
import torch
from conv_cases import as_codes, cases, epilogue, make_case
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from binarize.errors import ModelError
from binarize.kernels import ops, reference
from binarize.kernels.dispatch import LEVELS
from binarize.kernels.format import pack_digits, unpack_digits
from binarize.kernels.problem import Conv2dProblem, UniformCode


def each(levels):
    """Every level with every form of operands that it multiplies."""
    pairs = [
        pytest.param(level, form == "codes", id=f"{level.name}-{form}") for level in levels for form in level.forms
    ]
    return pytest.mark.parametrize(("level", "codes"), pairs)


level_of = each(LEVELS)
faster_of = each(LEVELS[:-1])  # all but the reference itself


def forced(level, problem=None):
    if why := level.why_not(problem):
        pytest.skip(why)
    return mock.patch.dict(os.environ, BINARIZE_KERNEL=level.name)


@level_of
@settings(max_examples=80)
@given(case=cases(narrow=True))
def test_accumulators_are_the_exact_convolutions_of_codes_with_odd_weights(level, codes, case):
    """Checks 2 and 3 of docs/methods.md: any number of channels, window, stride, dilation, zero padding."""
    case = as_codes(case, codes)
    with forced(level, case.problem):
        seen = ops.conv2d_integer(case.x, case.weight, *case.geometry)

    assert seen.dtype == torch.int32
    assert torch.equal(seen.double(), case.sums())


@level_of
@pytest.mark.parametrize("terms", [(0, 1), (1, 0, 0, 8), (0, 2), (3, 0)])
def test_a_term_without_planes_sums_the_codes_of_the_window(level, codes, terms):
    """docs/methods.md: the offset of a weight meets every activation plane in its window sum alone."""
    case = make_case(Conv2dProblem(70, 40, (3, 2), (2, 1), (1, 3), (1, 2), 2, terms, (3, 1), codes), 2, 7, 6, seed=1)
    case = dataclasses.replace(case, narrow=True)
    with forced(level):
        seen = ops.conv2d_integer(case.x, case.weight, *case.geometry).double()

    ones = torch.ones(40, 35, 3, 2, dtype=torch.float64)
    wanted = [F.conv2d(code.double(), ones, None, (2, 1), (1, 3), (1, 2), 2) for code in case.codes]
    first = 2 * terms.index(0)
    assert torch.equal(seen[..., first : first + 2, :], torch.stack(wanted, 1).permute(0, 3, 4, 1, 2))
    assert torch.equal(seen, case.sums())


@faster_of
@settings(max_examples=40)
@given(case=cases(narrow=True), residual=st.booleans(), low=st.sampled_from((0.0, -float("inf"), -50.0)))
def test_the_float_epilogue_equals_the_reference_bit_for_bit(level, codes, case, residual, low):
    case = as_codes(case, codes)
    scale, bias, rows, columns, other = epilogue(case, residual)
    with forced(level, case.problem):
        seen = ops.conv2d(case.x, case.weight, scale, bias, rows, columns, other, *case.geometry, low, 1000.0)

    wanted = reference.conv2d(case.problem, case.x, case.weight, scale, bias, rows, columns, other, low, 1000.0)
    assert seen.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(seen, wanted)


@faster_of
@settings(max_examples=25)
@given(case=cases(narrow=True), residual=st.booleans(), bits=st.integers(1, 8), grouped=st.booleans())
def test_codes_of_outputs_are_the_codes_of_the_float_epilogue(level, codes, case, residual, bits, grouped):
    case = as_codes(case, codes)
    p, tables = case.problem, epilogue(case, residual)
    code = (-40.0, 0.37, bits, p.groups if grouped else 1)
    with forced(level, p):
        seen = ops.conv2d_codes(case.x, case.weight, *tables, *case.geometry, -30.0, 1000.0, *code)
        y = ops.conv2d(case.x, case.weight, *tables, *case.geometry, -30.0, 1000.0)

    assert torch.equal(seen, ops.encode_uniform(y, *code))
    assert torch.equal(seen, reference.conv2d_codes(p, case.x, case.weight, *tables, -30.0, 1000.0, UniformCode(*code)))


@settings(max_examples=15)
@given(case=cases(narrow=True), residual=st.booleans())
def test_the_reference_epilogue_is_scales_bias_residual_and_clamp(case, residual):
    scale, bias, rows, columns, other = epilogue(case, residual)

    seen = reference.conv2d(case.problem, case.x, case.weight, scale, bias, rows, columns, other, -50.0, 1e9)

    y = (case.sums() * scale.double()).sum(3) + bias.double()[rows.long()[:, None] + columns.long()]
    y = y.permute(0, 3, 1, 2) + (0 if other is None else other.double())
    # At most 11 float32 roundings, each of half an ulp of a partial sum no larger than the sum of magnitudes.
    size = (case.sums().abs() * scale.double().abs()).sum(3).max() + bias.abs().max() + 500
    torch.testing.assert_close(seen.double(), y.clamp(min=-50.0), rtol=0, atol=float(size) * 12 * 2**-24)


@level_of
@settings(max_examples=40)
@given(case=cases(single=True, narrow=True))
def test_thresholds_compare_the_exact_sums(level, codes, case):
    case = as_codes(case, codes)
    p, sums = case.problem, case.sums()[:, :, :, 0]
    _, _, rows, columns, _ = epilogue(case, residual=False)
    generator = torch.Generator().manual_seed(3)
    picked = torch.randint(0, sums.shape[1] * sums.shape[2], (6, p.out_channels), generator=generator)
    thresholds = sums[0].flatten(0, 1).gather(0, picked).int()  # values that occur, so that >= and > differ
    flip = torch.rand(p.out_channels, generator=generator) < 0.5

    with forced(level, p):
        seen = ops.conv2d_threshold(case.x, case.weight, thresholds, flip, rows, columns, *case.geometry)

    wanted = (sums >= thresholds[rows.long()[:, None] + columns.long()]) ^ flip
    assert torch.equal(unpack_digits(seen, p.out_channels).bool(), wanted.permute(0, 3, 1, 2))
    assert torch.equal(seen, pack_digits(wanted.permute(0, 3, 1, 2), 1))  # spare bits are 0


@level_of
@pytest.mark.parametrize("fill", [-1, 1])
@pytest.mark.parametrize(
    ("weight_terms", "activation_terms"),
    [((1,), (1,)), ((8,), (8,)), ((4, 4), (4, 4)), ((7,), (8,)), ((8,), (7,)),  # the last two: just within 16 bits
     ((2,), (8,)), ((4,), (8,))],
)  # fmt: skip
@pytest.mark.parametrize("narrow", [False, True])
def test_equal_operands_do_not_overflow_any_narrow_counter(level, codes, fill, weight_terms, activation_terms, narrow):
    window = (3, 3), (1, 1), (1, 1), (1, 1)
    problem = Conv2dProblem(512, 33, *window, 1, weight_terms, activation_terms, codes)
    case = dataclasses.replace(make_case(problem, 1, 4, 5, seed=0, fill=fill), narrow=narrow)
    with forced(level):
        assert torch.equal(ops.conv2d_integer(case.x, case.weight, *case.geometry).double(), case.sums())


@level_of
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("groups", [1, 5])
def test_any_number_of_threads_gives_the_same_bits(level, codes, kernel, groups):
    problem = Conv2dProblem(320, 90, (kernel,) * 2, (1, 1), (kernel // 2,) * 2, (1, 1), groups, (2,), (2,), codes)
    case = dataclasses.replace(make_case(problem, 2, 19, 17, seed=0), narrow=True)
    thresholds, flip = torch.zeros(1, 90, dtype=torch.int32), torch.zeros(90, dtype=torch.bool)
    seen = []
    with forced(level, problem):
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            sums = ops.conv2d_integer(case.x, case.weight, *case.geometry)
            bits = ops.conv2d_threshold(case.x, case.weight, thresholds, flip, None, None, *case.geometry)
            seen.append((sums, bits))

    assert torch.equal(seen[0][0].double(), case.sums())
    assert all(torch.equal(a, b) for other in seen[1:] for a, b in zip(seen[0], other, strict=True))


@level_of
def test_an_empty_batch_gives_an_empty_batch(level, codes):
    case = make_case(Conv2dProblem(6, 5, (3, 3), (1, 1), (1, 1), (1, 1), 1, (1,), (2,), codes), 0, 4, 4, seed=0)
    tables = torch.zeros(1, 5), torch.zeros(1, 5), None, None, None
    with forced(level):
        assert ops.conv2d_integer(case.x, case.weight, *case.geometry).shape == (0, 4, 4, 1, 5)
        assert ops.conv2d(case.x, case.weight, *tables, *case.geometry, 0.0, 1.0).shape == (0, 5, 4, 4)


def small_case(codes=False):
    return make_case(Conv2dProblem(6, 5, (3, 3), (1, 1), (1, 1), (1, 1), 1, (1,), (2,), codes), 2, 4, 4, seed=0)


def small_calls():
    case, folded = small_case(), small_case(codes=True)
    x, weight = case.x, case.weight
    thresholds, flip = torch.zeros(6, 5, dtype=torch.int32), torch.zeros(5, dtype=torch.bool)
    scale, bias, rows, columns, residual = epilogue(case, residual=True)
    floats, slope = torch.randn(2, 6, 4, 4), torch.rand(5)
    beside = x, weight, scale, bias, rows, columns, residual, *case.geometry, -9.0, 9.0
    return [
        (ops.conv2d_integer, (x, weight, *case.geometry)),
        (ops.conv2d, (x, weight, scale, bias, rows, columns, residual, *case.geometry, 0.0, 9.0)),
        (ops.conv2d, (x, weight, scale, bias, None, None, None, *case.geometry, 0.0, 9.0)),
        (ops.conv2d_threshold, (x, weight, thresholds, flip, rows, columns, *case.geometry)),
        (ops.conv2d_integer, (folded.x, folded.weight, *case.geometry)),
        (ops.conv2d, (folded.x, folded.weight, scale, bias, rows, columns, residual, *case.geometry, 0.0, 9.0)),
        (ops.conv2d_threshold, (folded.x, folded.weight, thresholds, flip, rows, columns, *case.geometry)),
        (
            ops.conv2d_codes,
            (x, weight, scale, bias, rows, columns, residual, *case.geometry, 0.0, 9.0, 0.0, 3.0, 2, 1),
        ),
        (
            ops.conv2d,
            (x, weight, scale, bias, rows, columns, residual.half(), *case.geometry, -9.0, 9.0, slope, torch.bfloat16),
        ),
        (ops.conv2d_and_pack, (*beside, slope, torch.float16, False, 3, 0.0, 3.0, None, 1)),
        (ops.conv2d_and_pack, (*beside, None, torch.float32, True, 3, 0.0, 3.0, None, 1)),
        (ops.conv2d_and_pack, (*beside, slope, torch.bfloat16, False, 1, 0.0, 0.0, torch.zeros(2, 5), 1)),
        (ops.conv2d_and_pack, (*beside, slope, torch.float32, True, 1, 0.0, 0.0, torch.zeros(2, 1), 5)),
        (ops.encode_uniform, (floats, 0.0, 3.0, 4, 2)),
        (ops.encode_thresholds, (floats, torch.zeros(2, 6), 1)),
        (ops.pack_uniform, (floats, 0.0, 3.0, 4, 2)),
        (ops.pack_thresholds, (floats, torch.zeros(2, 6), 1)),
    ]


@pytest.mark.parametrize(("op", "arguments"), small_calls(), ids=lambda part: getattr(part, "__name__", ""))
def test_schema_fake_and_dispatch_of_each_op_hold(op, arguments):
    torch.library.opcheck(op, arguments)


@pytest.mark.parametrize(("op", "arguments"), small_calls(), ids=lambda part: getattr(part, "__name__", ""))
def test_compiled_graphs_hold_each_op_whole(op, arguments):
    torch.compiler.reset()  # else the ops share one limit of recompilations
    compiled = torch.compile(lambda *inputs: op(*inputs), fullgraph=True, backend="aot_eager")

    seen, wanted = compiled(*arguments), op(*arguments)

    assert all(map(torch.equal, *((x,) if isinstance(x, torch.Tensor) else x for x in (seen, wanted))))


def refused(changes):
    case = small_case()
    scale, bias, rows, columns, residual = epilogue(case, residual=True)
    named = {"x": case.x, "weight": case.weight, "scale": scale, "bias": bias, "row_class": rows}
    named |= {"column_class": columns, "residual": residual}
    fields = [field.name for field in dataclasses.fields(Conv2dProblem) if field.name != "codes"]
    named |= dict(zip(fields, case.geometry, strict=True)) | {"minimum": 0.0, "maximum": 1.0}
    return ops.conv2d(**(named | changes))


@pytest.mark.parametrize("level", [level for level in LEVELS if "planes" in level.forms], ids=lambda level: level.name)
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"x": torch.zeros(2, 4, 4, 1, 2, 2)}, "x must be int32 digit planes"),
        ({"x": torch.zeros(2, 4, 4, 1, 3, 2, dtype=torch.int32)}, "x must be int32 digit planes"),
        ({"weight": torch.zeros(3, dtype=torch.int32)}, "weight must be"),
        ({"scale": torch.zeros(2, 5)}, "scale must be"),
        ({"bias": torch.zeros(6, 4)}, "bias must be"),
        ({"bias": torch.tensor(1.0)}, "bias must be"),
        ({"bias": torch.zeros(2, 5)}, "a border class lies outside the 2 rows"),
        ({"row_class": None}, "both given or both None"),
        ({"row_class": torch.zeros(4, dtype=torch.int64)}, "row_class must be"),
        ({"column_class": torch.full((4,), -1, dtype=torch.int32)}, "a border class lies outside"),
        ({"residual": torch.zeros(2, 5, 4, 3)}, "residual must be"),
        ({"residual": torch.zeros(2, 5, 4, 4).double()}, "no float64: call .float"),
        ({"slope": torch.zeros(4)}, "slope must be"),
        ({"dtype": torch.int8}, "dtype must be float32, float16 or bfloat16"),
        ({"padding": [0, 0], "kernel": [3, 3], "dilation": [9, 9]}, "too small"),
        ({"groups": 4}, "groups must divide"),
        ({"kernel": [0, 3]}, "sizes must be at least 1"),
        ({"weight_terms": []}, "every weight term needs 0 to 8 planes, and one of them at least 1"),
        ({"weight_terms": [0]}, "every weight term needs 0 to 8 planes, and one of them at least 1"),
        ({"activation_terms": [9]}, "every activation term needs 1 to 8 planes"),
        ({"padding": [2**30, 2**30]}, "2\\^31 words or more"),
    ],
)
def test_bad_arguments_are_refused_by_name_and_crash_nothing(level, changes, said):
    with forced(level), pytest.raises(ModelError, match=said):
        refused(changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"x": torch.zeros(2, 4, 4, 1, 2, 8, dtype=torch.uint8)}, "x must be uint8 codes"),
        ({"weight": torch.zeros(3, dtype=torch.int8)}, "weight must be torch.int8"),
        ({"weight": small_case().weight}, "weight must be torch.int8"),
    ],
)
def test_codes_want_folded_weights(changes, said):
    folded = small_case(codes=True)
    with pytest.raises(ModelError, match=said):
        refused({"x": folded.x, "weight": folded.weight} | changes)


@pytest.mark.parametrize(("bits", "groups", "said"), [(9, 1, "bits must be 1 to 8"), (2, 2, "a divisor of 5 channels")])
def test_codes_of_outputs_refuse_what_no_code_is(bits, groups, said):
    case = small_case()
    tables = *epilogue(case, residual=False), *case.geometry
    with pytest.raises(ModelError, match=said):
        ops.conv2d_codes(case.x, case.weight, *tables, 0.0, 1.0, 0.0, 1.0, bits, groups)


def test_thresholds_refuse_more_than_one_accumulator():
    case = make_case(Conv2dProblem(6, 5, (1, 1), (1, 1), (0, 0), (1, 1), 1, (1, 1), (2,)), 1, 2, 2, seed=0)
    thresholds, flip = torch.zeros(1, 5, dtype=torch.int32), torch.zeros(5, dtype=torch.bool)

    with pytest.raises(ModelError, match="number of accumulators must be 1, got 2"):
        ops.conv2d_threshold(case.x, case.weight, thresholds, flip, None, None, *case.geometry)
