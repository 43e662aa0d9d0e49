"""Drafts and programs: every value has its place, every step computes what the op of its name does."""

import contextlib
import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
import torch
from conv_cases import as_codes, cases, epilogue, make_case
from hypothesis import given, settings
from hypothesis import strategies as st

from binarize.errors import ModelError, NoKernelError
from binarize.kernels import ops, steps
from binarize.kernels.dispatch import LEVELS
from binarize.kernels.problem import Conv2dProblem, UniformCode
from binarize.kernels.schedule import Draft, why_not_compiled

INFINITY = float("inf")
SPANS = ((1, 4), (1, 4), (1, 3), (1, 3), (0, 1), (0, 1), (1, 2), (1, 2))  # kernel, stride, padding, dilation

pytestmark = pytest.mark.skipif(why_not_compiled() is not None, reason="no kernels are compiled")


def compiled(form):
    return [
        pytest.param(level, form == "codes", id=f"{level.name}-{form}")
        for level in LEVELS[:-1]
        if form in level.forms
    ]  # fmt: skip


level_of = pytest.mark.parametrize(("level", "codes"), [*compiled("planes"), *compiled("codes")])


def forced(level, problem=None):
    if why := level.why_not(problem):
        pytest.skip(why)
    return mock.patch.dict(os.environ, BINARIZE_KERNEL=level.name)


@contextlib.contextmanager
def one_of(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(build, *tensors):
    """Run what ``build(draft, *values)`` adds, twice; the second time the arena holds what the first left there."""
    draft = Draft()
    values = [
        draft.value(x.shape, x.dtype, x.dim() == 4 and not x.is_contiguous() and x.dtype == torch.float32)
        for x in tensors
    ]
    program = draft.finish(values, [build(draft, *values)])
    (first,), (second,) = program.run(tensors), program.run(tensors)
    assert first.data_ptr() != second.data_ptr()
    assert torch.equal(first, second) or first.isnan().any()
    return second


@settings(max_examples=60)
@given(data=st.data(), sizes=st.lists(st.integers(1, 70), min_size=1, max_size=3))
def test_no_value_is_overwritten_while_somebody_still_reads_it(data, sizes):
    """Random graphs of sums over vectors of several lengths: a wrong place in the arena gives a wrong sum."""
    draft, tensors = Draft(), [torch.randn(size) for size in sizes]
    given_values = [draft.value(x.shape) for x in tensors]
    known = list(zip(given_values, tensors, strict=True))
    for _ in range(data.draw(st.integers(1, 25))):
        a, x = data.draw(st.sampled_from(known))
        b, y = data.draw(st.sampled_from([(b, y) for b, y in known if b.shape == a.shape]))
        known.append((draft.sum(a, b, -2.0, 2.0), (x + y).clamp(-2.0, 2.0)))
    made = known[len(tensors) :]
    outputs = data.draw(st.lists(st.sampled_from(range(len(made))), min_size=1, max_size=3, unique=True))

    program = draft.finish(given_values, [made[index][0] for index in outputs])

    for _ in range(2):
        seen = program.run(tensors)
        assert all(torch.equal(y, made[index][1]) for y, index in zip(seen, outputs, strict=True))


def test_a_long_chain_lives_in_two_places():
    draft = Draft()
    value = first = draft.value((1000,))
    for _ in range(20):
        value = draft.sum(value, first, -1e9, 1e9)

    program = draft.finish([first], [value])

    assert program.arena_bytes == 2 * 4032  # 4000 bytes, up to whole lines of 64
    assert torch.equal(program.run([torch.arange(1000.0)])[0], torch.arange(1000.0) * 21)


def test_an_output_that_is_an_input_or_another_output_is_refused():
    draft = Draft()
    x = draft.value((3,))
    y = draft.sum(x, None, 0.0, 1.0)

    for outputs in ([x], [y, y]):
        with pytest.raises(ModelError, match="an output is an input"):
            draft.finish([x], outputs)


def test_threads_run_one_program_at_the_same_time_each_with_its_own_memory():
    draft = Draft()
    x = draft.value((50000,))
    program = draft.finish([x], [draft.sum(draft.sum(x, x, -1e9, 1e9), x, -1e9, 1e9)])
    inputs = [torch.full((50000,), float(index)) for index in range(16)]

    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(lambda x: program.run([x])[0], inputs * 20))

    assert all(torch.equal(y, 3 * x) for x, y in zip(inputs * 20, seen, strict=True))
    assert len(program._arenas) <= 8


@level_of
@settings(max_examples=25)
@given(case=cases(), residual=st.booleans(), low=st.sampled_from((0.0, -INFINITY)))
def test_a_convolution_gives_the_bits_of_its_op(level, codes, case, residual, low):
    case = as_codes(case, codes)
    scale, bias, rows, columns, other = epilogue(case, residual)

    def build(draft, x, *added):
        limits = low, 1000.0
        return steps.conv2d(draft, case.problem, x, weight, scale, bias, (rows, columns), *(added or [None]), limits)

    with forced(level, case.problem):
        weight = case.weight
        seen = run(build, case.x, *([] if other is None else [other]))
        wanted = ops.conv2d(case.x, weight, scale, bias, rows, columns, other, *case.geometry, low, 1000.0)

    assert torch.equal(seen, wanted)


@level_of
@settings(max_examples=20)
@given(case=cases(), residual=st.booleans(), bits=st.integers(1, 8))
def test_codes_of_outputs_are_those_of_the_op(level, codes, case, residual, bits):
    case = as_codes(case, codes)
    p, (scale, bias, rows, columns, other) = case.problem, epilogue(case, residual)
    whole = p.out_channels // p.groups % 4 == 0  # else only one group of codes can be made in the epilogue
    code = UniformCode(-40.0, 0.37, bits, p.groups if whole else 1)

    def build(draft, x, *added):
        limits = -30.0, 1000.0
        tables = scale, bias, (rows, columns)
        return steps.conv2d(draft, p, x, weight, *tables, *(added or [None]), limits, code)

    with forced(level, p):
        weight = case.weight
        seen = run(build, case.x, *([] if other is None else [other]))
        arguments = case.x, weight, scale, bias, rows, columns, other, *case.geometry, -30.0, 1000.0
        wanted = ops.conv2d_codes(*arguments, code.low, code.inverse_step, code.bits, code.groups)

    assert torch.equal(seen, wanted)


@level_of
@settings(max_examples=20)
@given(case=cases(single=True))
def test_thresholds_give_the_planes_of_the_op(level, codes, case):
    case = as_codes(case, codes)
    p, (_, _, rows, columns, _) = case.problem, epilogue(case, residual=False)
    generator = torch.Generator().manual_seed(3)
    thresholds = torch.randint(-p.largest // 8, p.largest // 8 + 1, (6, p.out_channels), generator=generator).int()
    flip = torch.rand(p.out_channels, generator=generator) < 0.5

    with forced(level, p):
        weight = case.weight
        seen = run(lambda d, x: steps.conv2d_threshold(d, p, x, weight, thresholds, flip, (rows, columns)), case.x)
        wanted = ops.conv2d_threshold(case.x, weight, thresholds, flip, rows, columns, *case.geometry)

    assert torch.equal(seen, wanted)


@pytest.mark.parametrize("level", LEVELS[:-1], ids=lambda level: level.name)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@settings(max_examples=20)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(2, 9), st.integers(2, 9)),
    groups=st.integers(1, 3),
    bits=st.integers(1, 8),
    shared=st.booleans(),
)
def test_packing_gives_the_bits_of_its_op(level, layout, shape, groups, bits, shared):
    n, c, h, w = shape
    generator = torch.Generator().manual_seed(c)
    x = torch.randn(n, c * groups, h, w, generator=generator).contiguous(memory_format=layout)
    x[x > 1.5] = float("nan")
    thresholds = torch.randn(bits, 1 if shared else c * groups, generator=generator)
    with forced(level):
        for codes, uniform, by_threshold in (
            (False, ops.pack_uniform, ops.pack_thresholds),
            (True, ops.encode_uniform, ops.encode_thresholds),
        ):
            kind = {"codes": codes, "bits": bits, "groups": groups}
            seen = run(lambda d, v, kind=kind: steps.pack(d, v, **kind, low=-1.0, inverse_step=2.3), x)
            assert torch.equal(seen, uniform(x, -1.0, 2.3, bits, groups))
            seen = run(lambda d, v, kind=kind: steps.pack(d, v, **kind, thresholds=thresholds), x)
            assert torch.equal(seen, by_threshold(x, thresholds, groups))


@pytest.mark.parametrize("level", LEVELS[:-1], ids=lambda level: level.name)
@settings(max_examples=20)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 20), st.integers(1, 20)),
    window=st.tuples(*(st.integers(least, most) for least, most in SPANS)),
    groups=st.integers(1, 3),
    bits=st.integers(1, 8),
    codes=st.booleans(),
    by=st.booleans(),
    largest=st.booleans(),
)  # fmt: skip
def test_a_pooling_that_is_packed_by_the_next_call_gives_the_same_in_one(
    level, shape, window, groups, bits, codes, by, largest
):
    n, c, h, w = shape
    window = (
        *window[:4],
        *(min(pad, kernel // 2) for pad, kernel in zip(window[4:6], window, strict=False)),
        *window[6:],
    )
    reach = [dilation * (kernel - 1) + 1 for dilation, kernel in zip(window[6:], window[:2], strict=True)]
    x = torch.randn(n, c * groups, h + reach[0], w + reach[1], generator=torch.Generator().manual_seed(c))
    x = x.contiguous(memory_format=torch.channels_last)
    thresholds = torch.linspace(-1, 1, bits)[:, None] if by else None
    kind = {"codes": codes, "bits": bits, "groups": groups, "low": -1.0, "inverse_step": 2.3, "thresholds": thresholds}
    with forced(level):
        draft = Draft()
        value = draft.value(x.shape, channels_last=True)
        floats = steps.pool(draft, value, window, largest=largest)
        packed = steps.pack(draft, floats, **kind)
        program = draft.finish([value], [floats, packed])
        assert len(program.names) == 1
        wanted = run(lambda d, v: steps.pool(d, v, window, largest=largest), x)
        for threads in (1, 2):
            with one_of(threads):
                y, seen = program.run([x])
            assert torch.equal(y, wanted)
            assert torch.equal(seen, run(lambda d, v: steps.pack(d, v, **kind), wanted))


def test_passes_over_memory_are_shared_out_without_changing_a_bit():
    """Enough numbers for several threads, and not a multiple of them."""
    a, b = torch.randn(2, 3, 37, 149, 67).unbind()
    a, b = (x.contiguous(memory_format=torch.channels_last) for x in (a, b))
    scale, shift, slope = torch.randn(3, 37)

    def passes(draft, x, y):
        return draft.channelwise(draft.sum(x, y, -1.0, 2.0, (0.3, 0.7)), scale, shift, slope, -1.5, 1.5)

    found = []
    for threads in (1, 3):
        with one_of(threads):
            found.append(run(passes, a, b))

    assert torch.equal(*found)
    y = (0.3 * a + 0.7 * b).clamp(-1, 2) * scale[:, None, None] + shift[:, None, None]
    wanted = torch.where(y > 0, y, slope[:, None, None] * y).clamp(-1.5, 1.5)
    assert torch.allclose(found[0], wanted, atol=8 * 2.0**-24 * 8)  # eight roundings of numbers below 8


HALVING = (2, 2, 2, 2, 0, 0, 1, 1)


@pytest.mark.parametrize("packs", ["what lies between", "the pooling"])
def test_what_lies_between_a_pooling_and_its_packing_keeps_them_apart(packs):
    """Else the planes would be of another tensor, or what lies between would not be made."""
    x = torch.randn(1, 8, 6, 6).contiguous(memory_format=torch.channels_last)

    def build(draft, value):
        floats = steps.pool(draft, value, HALVING, largest=True)
        between = draft.channelwise(floats, -torch.ones(8), torch.zeros(8), None, -INFINITY, INFINITY)
        chosen = between if packs == "what lies between" else floats
        return steps.pack(draft, chosen, codes=False, bits=1, groups=1, low=0.0, inverse_step=1.0)

    pooled = torch.nn.functional.max_pool2d(x, 2)
    wanted = ops.pack_uniform(-pooled if packs == "what lies between" else pooled, 0.0, 1.0, 1, 1)
    assert torch.equal(run(build, x), wanted)


def test_what_is_made_between_a_pooling_and_its_packing_is_still_made():
    x = torch.randn(1, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    draft = Draft()
    value = draft.value(x.shape, channels_last=True)
    floats = steps.pool(draft, value, HALVING, largest=True)
    between = draft.channelwise(floats, -torch.ones(8), torch.zeros(8), None, -INFINITY, INFINITY)
    packed = steps.pack(draft, floats, codes=False, bits=1, groups=1, low=0.0, inverse_step=1.0)

    seen, planes = draft.finish([value], [between, packed]).run([x])

    pooled = torch.nn.functional.max_pool2d(x, 2)
    assert torch.equal(seen, -pooled)
    assert torch.equal(planes, ops.pack_uniform(pooled, 0.0, 1.0, 1, 1))


def test_pixels_that_are_packed_as_channels_are_packed_by_a_call_of_their_own():
    """Of one channel the memory of an image is that of rows: the same tensor by another name."""
    draft = Draft()
    value = draft.value((3, 1, 8, 8), channels_last=True)
    floats = draft.plain(steps.pool(draft, value, HALVING, largest=True))
    rows = dataclasses.replace(floats, shape=(1, 16, 3, 1), channels_last=True)
    packed = steps.pack(draft, rows, codes=False, bits=2, groups=1, low=-1.0, inverse_step=2.0)
    x = torch.randn(3, 1, 8, 8)

    (seen,) = draft.finish([value], [packed]).run([x])

    as_rows = torch.nn.functional.max_pool2d(x, 2).reshape(1, 1, 3, 16).permute(0, 3, 2, 1)
    assert torch.equal(seen, ops.pack_uniform(as_rows, -1.0, 2.0, 2, 1))


def test_an_image_too_small_to_be_pooled_is_refused():
    draft = Draft()
    with pytest.raises(ModelError, match="cannot pool an image of 3x3"):
        steps.pool(draft, draft.value((1, 8, 3, 3)), (4, 4, 4, 4, 0, 0, 1, 1), largest=True)


def test_a_problem_that_only_the_reference_runs_is_no_step():
    many = Conv2dProblem(8, 8, (1, 1), (1, 1), (0, 0), (1, 1), 1, (8,) * 5, (1,))

    assert "plain torch" in str(steps.why_not_conv2d(many))
    case = make_case(many, 1, 2, 2, seed=0)
    draft = Draft()
    with pytest.raises(NoKernelError, match="plain torch"):
        steps.conv2d(
            draft, many, draft.value(case.x.shape, torch.int32), case.weight, torch.ones(5, 8), torch.zeros(1, 8),
            (None, None), None, (0.0, 1.0),
        )  # fmt: skip


def test_the_calls_are_timed_by_name():
    draft = Draft()
    value = draft.value((2, 3, 8, 8))
    draft.name = "first"
    y = steps.pool(draft, value, (2, 2, 2, 2, 0, 0, 1, 1), largest=True)
    draft.name = "second"
    program = draft.finish([value], [draft.sum(y, y, -1.0, 1.0)])
    x = torch.randn(2, 3, 8, 8)
    (seen,), times = program.run_timed([x])

    assert torch.equal(seen, program.run([x])[0])
    assert [name for name, _ in times] == ["first", "first", "second"]  # the first reorders its input
    assert all(nanoseconds >= 0 for _, nanoseconds in times)
