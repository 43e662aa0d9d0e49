"""Packed convolutions of any geometry with operands in both forms, for the tests of every kernel."""

import dataclasses
import itertools

import torch
from hypothesis import strategies as st
from torch.nn import functional as F

from binarize.kernels.codes import fold_weight, pack_codes
from binarize.kernels.format import pack_digits, pack_signs, prepare_weight
from binarize.kernels.problem import Conv2dProblem


def as_codes(case, codes):
    return dataclasses.replace(case, problem=dataclasses.replace(case.problem, codes=codes))


@dataclasses.dataclass(frozen=True)
class Case:
    problem: Conv2dProblem
    signs: torch.Tensor  # (planes, o, c / groups, kh, kw)
    codes: tuple[torch.Tensor, ...]  # one (n, c, h, w) per activation term
    narrow: bool = False  # of codes: whether the weight comes in fields

    @property
    def x(self):
        if self.problem.codes:
            return pack_codes(torch.stack(self.codes), self.problem.groups)
        terms = zip(self.codes, self.problem.activation_terms, strict=True)
        return torch.cat([pack_digits(code, planes, self.problem.groups) for code, planes in terms], 4)

    @property
    def weight(self):
        p = self.problem
        layout = {"out_channels": p.out_channels, "channels_per_group": p.channels_per_group, "kernel": p.kernel}
        if p.codes:
            narrow = self.narrow
            return fold_weight(pack_signs(self.signs), p.weight_terms, **layout, groups=p.groups, narrow=narrow)
        return prepare_weight(pack_signs(self.signs), **layout, groups=p.groups)

    @property
    def geometry(self):
        p = self.problem
        window = [list(pair) for pair in (p.kernel, p.stride, p.padding, p.dilation)]
        return p.channels, p.out_channels, *window, p.groups, list(p.weight_terms), list(p.activation_terms)

    def sums(self):
        """The integers by their meaning alone: (n, h', w', terms, o)."""
        p = self.problem
        terms = self.signs.double().split(list(p.weight_terms))
        one = torch.ones_like(self.signs[0]).double()
        odd = [sum(2**i * plane for i, plane in enumerate(term)) if len(term) else one for term in terms]
        pairs = itertools.product(odd, self.codes)
        window = p.stride, p.padding, p.dilation, p.groups
        return torch.stack([F.conv2d(code.double(), w, None, *window) for w, code in pairs], 1).permute(0, 3, 4, 1, 2)


def make_case(problem, n, h, w, seed, fill=None):
    generator = torch.Generator().manual_seed(seed)
    shape = (sum(problem.weight_terms), problem.out_channels, problem.channels_per_group, *problem.kernel)
    signs = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    size = (n, problem.channels, h, w)
    codes = [torch.randint(0, 2**planes, size, generator=generator) for planes in problem.activation_terms]
    if fill is not None:
        signs.fill_(fill)
        codes = [torch.full(size, 2**planes - 1) for planes in problem.activation_terms]
    return Case(problem, signs, tuple(codes))


@st.composite
def cases(draw, single=False, narrow=False):
    def pair(low, high):
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    def terms(least=1):
        most, planes = 1 if single else 3, draw(st.sampled_from((1, 2, 4, 8)))
        return tuple(draw(st.lists(st.integers(least, planes), min_size=1, max_size=most).filter(any)))

    kernel, stride, dilation, padding = pair(1, 7), pair(1, 3), pair(1, 3), pair(0, 4)
    if draw(st.booleans()):  # square windows without holes are what networks have
        kernel, stride, dilation, padding = ((a, a) for a in (kernel[0], stride[0], 1, kernel[0] // 2))
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    channels, outputs = draw(st.integers(1, 130 // groups)), draw(st.integers(1, 40))
    sizes = [
        max(1, d * (k - 1) + 1 - 2 * p) + draw(st.integers(0, 6))
        for k, d, p in zip(kernel, dilation, padding, strict=True)
    ]
    problem = Conv2dProblem(
        channels * groups,
        outputs * groups,
        kernel,
        stride,
        padding,
        dilation,
        groups,
        terms(1 if single else 0),
        terms(),
    )
    made = make_case(problem, draw(st.integers(1, 3)), *sizes, draw(st.integers(0, 2**31 - 1)))
    return dataclasses.replace(made, narrow=narrow and draw(st.booleans()))


def epilogue(case, residual):
    """Float tables with a border class for each output row and column."""
    p, generator = case.problem, torch.Generator().manual_seed(7)
    oh, ow = p.out_size(*case.codes[0].shape[2:])
    rows, columns = torch.arange(oh) % 3, torch.arange(ow) % 2
    shape = (case.codes[0].shape[0], p.out_channels, oh, ow)
    return (
        torch.randn(p.products, p.out_channels, generator=generator),
        torch.randn(6, p.out_channels, generator=generator) * 100,
        (rows * 2).int(),
        columns.int(),
        torch.randn(shape, generator=generator) * 100 if residual else None,
    )
