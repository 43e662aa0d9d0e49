"""The CUDA kernels themselves, on an emulated thread block, against the reference."""

import pytest
import torch
from conv_cases import as_codes, cases, epilogue, make_case
from cuda_emulator import Emulator
from hypothesis import given, settings
from hypothesis import strategies as st

from binarize.errors import ModelError, NoKernelError
from binarize.kernels import reference
from binarize.kernels.cuda.kernels import CudaKernels
from binarize.kernels.cuda.specialise import Tile
from binarize.kernels.finish import Finish, Packing
from binarize.kernels.problem import Conv2dProblem, UniformCode

SMALL, NARROW, LARGE = Tile(32, 16, (2, 1), 8, 2), Tile(32, 32, (1, 2), 16, 4), Tile(64, 64, (2, 2), 32, 3)
TOGETHER, NARROW_TOGETHER = Tile(128, 64, (4, 1), 32, 3, True), Tile(64, 128, (4, 1), 8, 2, True)
KERNELS = {
    "direct": None, "32x16": SMALL, "32x32": NARROW, "64x64": LARGE,
    "128x64 together": TOGETHER, "64x128 together": NARROW_TOGETHER,
}  # fmt: skip
AMPERE, TURING, HOPPER = (8, 0), (7, 5), (9, 0)
kernels_of = st.sampled_from(list(KERNELS.values()))
capabilities = st.sampled_from((AMPERE, TURING))
SPECIAL = (0.0, -0.0, float("nan"), float("inf"), -float("inf"), 0.5, 1.5, 2.5, 0.49999997, 1e30, -1e-45)


class OneTile:
    """Tiles of one size for everything."""

    def __init__(self, tile):
        self.one = tile

    def tile(self, problem, epilogue, pixels, seconds):
        return self.one


def emulated(case, tile, capability=AMPERE, seed=0):
    x, weight = case.x, case.weight
    if tile is not None and tile.together:
        capability = HOPPER  # no other GPU multiplies by four warps
    return CudaKernels(Emulator(capability, seed).readable(x, weight), OneTile(tile)), x, weight


@settings(max_examples=25)
@given(case=cases(), codes=st.booleans(), tile=kernels_of, capability=capabilities, seed=st.integers(0, 9))
def test_accumulators_are_the_exact_convolutions(case, codes, tile, capability, seed):
    case = as_codes(case, codes)
    kernels, x, weight = emulated(case, tile, capability, seed)

    assert torch.equal(kernels.conv2d_integer(case.problem, x, weight).double(), case.sums())


@settings(max_examples=15)
@given(case=cases(), codes=st.booleans(), tile=kernels_of, capability=capabilities, residual=st.booleans())
def test_the_float_epilogue_equals_the_reference_bit_for_bit(case, codes, tile, capability, residual):
    case = as_codes(case, codes)
    kernels, x, weight = emulated(case, tile, capability)
    arguments = (case.problem, x, weight, *epilogue(case, residual), -50.0, 1000.0)

    seen = kernels.conv2d(*arguments)

    assert seen.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(seen, reference.conv2d(*arguments))


@settings(max_examples=15)
@given(case=cases(), codes=st.booleans(), tile=kernels_of, bits=st.integers(1, 8), grouped=st.booleans())
def test_codes_of_outputs_are_those_of_the_reference(case, codes, tile, bits, grouped):
    case = as_codes(case, codes)
    kernels, x, weight = emulated(case, tile)
    code = UniformCode(-40.0, 0.37, bits, case.problem.groups if grouped else 1)
    arguments = (case.problem, x, weight, *epilogue(case, residual=True), -30.0, 1000.0, code)

    assert torch.equal(kernels.conv2d_codes(*arguments), reference.conv2d_codes(*arguments))


FLOATS = st.sampled_from((torch.float32, torch.float16, torch.bfloat16))


@settings(max_examples=25)
@given(
    case=cases(), codes=st.booleans(), tile=kernels_of, dtype=FLOATS, added=FLOATS, slopes=st.booleans(),
    packs=st.sampled_from(("nothing", "planes", "codes")), columns=st.sampled_from((None, 1, -1)),
    bits=st.integers(1, 8), grouped=st.booleans(),
)  # fmt: skip
def test_what_follows_the_floats_equals_the_reference(
    case, codes, tile, dtype, added, slopes, packs, columns, bits, grouped
):
    case = as_codes(case, codes)
    kernels, x, weight = emulated(case, tile)
    outputs, generator = case.problem.out_channels, torch.Generator().manual_seed(5)
    *tables, residual = epilogue(case, residual=True)
    width = {None: None, 1: 1, -1: outputs}[columns]
    thresholds = None if width is None else torch.randn(bits, width, generator=generator) * 50
    packing = Packing(packs == "codes", bits, -40.0, 0.037, thresholds, case.problem.groups if grouped else 1)
    slope = torch.randn(outputs, generator=generator) if slopes else None
    finish = Finish(slope, dtype, None if packs == "nothing" else packing)
    arguments = (case.problem, x, weight, *tables, residual.to(added), -300.0, 900.0, finish)

    seen, packed = kernels.conv2d_finished(*arguments)

    wanted, planes = reference.conv2d_finished(*arguments)
    assert seen.dtype == dtype
    assert torch.equal(seen, wanted)
    assert (packed is None) == (packs == "nothing")
    assert packed is None or torch.equal(packed, planes)


def test_a_packing_beside_the_floats_is_one_kernel_where_words_are_whole():
    case = make_case(Conv2dProblem(64, 40, (3, 3), (1, 1), (1, 1), (1, 1), 1, (1,), (1,)), 1, 4, 4, seed=2)
    kernels, x, weight = emulated(case, SMALL)
    arguments = (case.problem, x, weight, *epilogue(case, residual=True), -300.0, 900.0)
    kernels.launcher.readable()
    for codes, groups, launches in ((False, 1, 1), (True, 1, 1), (True, 2, 1), (False, 2, 2)):
        before = len(kernels.launcher.launched)
        kernels.conv2d_finished(*arguments, Finish(packing=Packing(codes, 2, -40.0, 0.37, None, groups)))
        assert len(kernels.launcher.launched) - before == launches


@settings(max_examples=15)
@given(case=cases(single=True), codes=st.booleans(), tile=kernels_of, capability=capabilities)
def test_thresholds_compare_the_exact_sums(case, codes, tile, capability):
    case = as_codes(case, codes)
    kernels, x, weight = emulated(case, tile, capability)
    p, sums = case.problem, case.sums()[0, :, :, 0].flatten(0, 1)
    _, _, rows, columns, _ = epilogue(case, residual=False)
    picked = torch.randint(0, len(sums), (6, p.out_channels), generator=torch.Generator().manual_seed(3))
    flip = torch.arange(p.out_channels) % 3 == 0
    arguments = (p, x, weight, sums.gather(0, picked).int(), flip, rows, columns)

    assert torch.equal(kernels.conv2d_threshold(*arguments), reference.conv2d_threshold(*arguments))


@pytest.mark.parametrize("capability", [AMPERE, TURING], ids=str)
@pytest.mark.parametrize("tile", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("codes", [False, True], ids=["planes", "codes"])
def test_a_layer_of_a_network_with_several_terms_and_tiles(codes, tile, capability):
    """More blocks of outputs than one, a constant weight term, more turns than stages, odd tails everywhere."""
    problem = Conv2dProblem(288, 150, (3, 3), (2, 1), (1, 1), (1, 1), 2, (2, 0), (1, 2), codes)
    case = make_case(problem, 2, 9, 7, seed=4)
    kernels, x, weight = emulated(case, tile, capability)

    assert torch.equal(kernels.conv2d_integer(problem, x, weight).double(), case.sums())


@pytest.mark.parametrize("tile", [None, SMALL], ids=["direct", "32x16"])
@pytest.mark.parametrize("fill", [-1, 1])
@pytest.mark.parametrize("codes", [False, True], ids=["planes", "codes"])
def test_equal_operands_of_eight_planes_do_not_overflow(codes, fill, tile):
    case = make_case(Conv2dProblem(320, 33, (1, 1), (1, 1), (0, 0), (1, 1), 1, (8,), (8,), codes), 1, 3, 3, 0, fill)
    kernels, x, weight = emulated(case, tile)

    assert torch.equal(kernels.conv2d_integer(case.problem, x, weight).double(), case.sums())


@settings(max_examples=25)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 6), st.integers(1, 6)),
    groups=st.integers(1, 3),
    bits=st.integers(1, 8),
    layout=st.sampled_from((torch.channels_last, torch.contiguous_format)),
    seed=st.integers(0, 2**31 - 1),
)
def test_packing_gives_the_planes_and_codes_of_the_reference(shape, groups, bits, layout, seed):
    n, c, h, w = shape
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((n, c * groups, h, w), generator=generator) * 4
    chosen = torch.randint(0, len(SPECIAL), x.shape, generator=generator)
    x = torch.where(torch.rand(x.shape, generator=generator) < 0.3, torch.tensor(SPECIAL)[chosen], x)
    x = x.contiguous(memory_format=layout)
    kernels = CudaKernels(Emulator())
    for dtype in (torch.float16, torch.bfloat16):
        narrow = x.to(dtype)
        seen = kernels.pack_uniform(narrow, -1.1, 0.7, bits, groups)
        assert torch.equal(seen, reference.pack_uniform(narrow.float(), -1.1, 0.7, bits, groups))
    for op in ("pack_uniform", "encode_uniform"):
        arguments = (x, -1.1, 0.7, bits, groups)
        assert torch.equal(getattr(kernels, op)(*arguments), getattr(reference, op)(*arguments)), op
    for columns in (1, c * groups):
        thresholds = torch.randn(bits, columns, generator=generator)
        for op in ("pack_thresholds", "encode_thresholds"):
            seen = getattr(kernels, op)(x, thresholds, groups)
            assert torch.equal(seen, getattr(reference, op)(x, thresholds, groups)), op


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_float_of_16_bits_is_read_and_rounded_to_as_torch_does(dtype):
    """Each of them as residual; as sums they, what lies halfway between two, and what is next to either."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    exact, least = every.float(), torch.tensor(-float("inf"))
    halfway = exact[:-1] / 2 + exact[1:] / 2
    sums = torch.cat([exact, halfway, halfway.nextafter(least), halfway.nextafter(-least)])
    for residual, bias in ((every, torch.full((2**16,), -0.0)), (torch.full(sums.shape, -0.0, dtype=dtype), sums)):
        outputs = bias.numel()
        problem = Conv2dProblem(1, outputs, (1, 1), (1, 1), (0, 0), (1, 1), 1, (1,), (1,), True)
        x, weight = torch.zeros(1, 1, 1, *problem.x_shape, dtype=torch.uint8), torch.zeros(problem.weight_shape)
        seen, _ = CudaKernels(Emulator(), OneTile(None)).conv2d_finished(
            problem, x, weight.to(torch.int8), torch.full((1, outputs), -0.0), bias[None], None, None,
            residual.reshape(1, -1, 1, 1), -float("inf"), float("inf"), Finish(dtype=dtype),
        )  # fmt: skip
        wanted = (bias + residual.float()).to(dtype)
        assert torch.equal(seen.flatten().isnan(), wanted.isnan())
        assert torch.equal(seen.flatten().nan_to_num(7.0).view(torch.int16), wanted.nan_to_num(7.0).view(torch.int16))


def small(codes=False, tile=SMALL):
    case = make_case(Conv2dProblem(6, 5, (3, 3), (1, 1), (1, 1), (1, 1), 1, (1,), (2,), codes), 2, 4, 4, seed=0)
    return case, *emulated(case, tile)


def test_border_classes_outside_the_table_are_refused_and_looked_at_once():
    case, kernels, x, weight = small()
    scale, bias, rows, columns, _ = epilogue(case, residual=False)
    with pytest.raises(ModelError, match="a border class lies outside the 2 rows given"):
        kernels.conv2d(case.problem, x, weight, scale, bias[:2], rows, columns, None, 0.0, 1.0)
    with pytest.raises(ModelError, match="a border class lies outside the 6 rows given"):
        kernels.conv2d(case.problem, x, weight, scale, bias, rows - 1, columns, None, 0.0, 1.0)

    kernels.conv2d(case.problem, x, weight, scale, bias, rows, columns, None, 0.0, 1.0)
    rows.add_(100)  # changed in place: looked at again
    with pytest.raises(ModelError, match="a border class lies outside"):
        kernels.conv2d(case.problem, x, weight, scale, bias, rows, columns, None, 0.0, 1.0)


def test_a_class_nobody_could_look_at_reads_no_memory_outside_the_table(monkeypatch):
    case, kernels, x, weight = small()
    scale, bias, rows, columns, _ = epilogue(case, residual=False)
    monkeypatch.setattr(kernels.launcher, "may_wait", lambda: False)

    seen = kernels.conv2d(case.problem, x, weight, scale, bias, rows + 10**9, columns, None, -1e9, 1e9)

    wanted = reference.conv2d(case.problem, x, weight, scale, bias, None, None, None, -1e9, 1e9)
    assert torch.equal(seen, wanted)  # the first row stands in


def test_operands_that_do_not_begin_at_sixteen_bytes_are_copied():
    case, kernels, x, weight = small()
    shifted = torch.zeros(x.numel() + 1, dtype=torch.int32)[1:].view(x.shape).copy_(x)
    kernels.launcher.readable()  # the copies lie elsewhere
    assert shifted.data_ptr() % 16 == 4

    assert torch.equal(kernels.conv2d_integer(case.problem, shifted, weight).double(), case.sums())


def test_an_empty_batch_launches_nothing():
    case, kernels, x, weight = small()
    thresholds, flip = torch.zeros(1, 5, dtype=torch.int32), torch.zeros(5, dtype=torch.bool)

    assert kernels.conv2d_integer(case.problem, x[:0], weight).shape == (0, 4, 4, 1, 5)
    assert kernels.conv2d_threshold(case.problem, x[:0], weight, thresholds, flip, None, None).shape[0] == 0
    assert kernels.pack_uniform(torch.empty(0, 5, 3, 3), 0.0, 1.0, 2, 1).shape == (0, 3, 3, 1, 2, 2)
    assert kernels.launcher.launched == []


def test_images_of_too_many_pixels_are_refused():
    case, kernels, _, weight = small()
    many = torch.empty((2**27, 4, 4, 1, 2, 2), dtype=torch.int32, device="meta")
    with pytest.raises(ModelError, match="2\\^31 pixels or more"):
        kernels.conv2d_integer(case.problem, many, weight)


def test_planes_past_int32_are_refused_with_the_reason():
    wide = Conv2dProblem(40000, 8, (1, 1), (1, 1), (0, 0), (1, 1), 1, (8,), (8,))

    assert "int32 limit" in str(CudaKernels(Emulator()).why_not(wide))


def test_binary_tensor_cores_are_missed_where_there_are_none(monkeypatch):
    problem = Conv2dProblem(64, 64, (3, 3), (1, 1), (1, 1), (1, 1), 1, (1,), (1,))
    blackwell = CudaKernels(Emulator((10, 0)))
    assert blackwell.why_not(problem) is None  # plain cores run it

    monkeypatch.setenv("BINARIZE_CUDA_KERNEL", "tensor")
    assert "no binary tensor cores" in str(blackwell.why_not(problem))
    assert CudaKernels(Emulator()).why_not(problem) is None
    monkeypatch.setenv("BINARIZE_CUDA_KERNEL", "tensors")
    with pytest.raises(ModelError, match="did you mean 'tensor'"):
        blackwell.why_not(problem)
    assert issubclass(NoKernelError, NotImplementedError)
