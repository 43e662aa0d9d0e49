"""What every basis is: one tensor written as an affine sum of binary planes.

    value = offset + sum_j scale_j * H_j,    H_j in {-1,+1}                                (design, equation 1)

Weights are ``sum_t unit[t] * odd[t]`` where ``odd[t]`` is an odd integer, itself a sum of power-of-two sign planes.
Activations are ``low + sum_t step[t] * code[t]`` where ``code[t]`` is a whole number, a sum of power-of-two digit
planes. `Planes` is the common form that both unfold into.

Shape letters of the whole package: n batch, c input channels, o output channels, k inputs per output
(c / groups x kernel height x kernel width), m planes, t terms, h and w image.
"""

import abc
import dataclasses
from typing import final

import torch
from torch import Tensor

__all__ = ["ActivationBasis", "Levels", "Planes", "WeightBasis", "sign"]


def sign(x: Tensor) -> Tensor:
    """Return +1 where ``x >= 0`` and -1 elsewhere; never 0. NaN and -0.0 give +1."""
    return below(x, torch.zeros((), dtype=x.dtype, device=x.device)).mul_(-2).add_(1)


def below(x: Tensor, at: Tensor, out: Tensor | None = None) -> Tensor:
    """Return 1 where ``x < at`` and 0 elsewhere, NaN included, in the dtype of ``x`` or in ``out``; no gradients.

    Compared straight into that dtype: a `where` of two numbers takes many times as long on a processor.
    """
    x, at = x.detach(), at.detach()
    if torch.compiler.is_compiling():  # which fuses the two, and cannot trace an output that is given
        found = torch.lt(x, at).to(x.dtype)
        return found if out is None else out.copy_(found)
    return torch.lt(x, at, out=torch.empty_like(x) if out is None else out)


def power_digits(values: Tensor, bits: int) -> Tensor:
    """Binary digits of whole numbers in ``[0, 2**bits)``: shape ``(bits, *values.shape)``, lowest digit first."""
    shifts = torch.arange(bits, device=values.device).reshape(-1, *[1] * values.dim())
    return (values.to(torch.int64).unsqueeze(0) >> shifts) & 1


@final
@dataclasses.dataclass(frozen=True)
class Planes:
    """A tensor as planes: ``offset + sum_j scales[j] * signs[j]``.

    Attributes:
        signs: ``(m, *shape)``, every element -1 or +1.
        scales: ``(m, ...)``, broadcastable against ``signs``.
        offset: broadcastable against ``shape``.
    """

    signs: Tensor
    scales: Tensor
    offset: Tensor

    def value(self) -> Tensor:
        """Rebuild the tensor, shape ``shape``."""
        return self.offset + (self.scales * self.signs).sum(0)


@final
@dataclasses.dataclass(frozen=True)
class Levels:
    """The learnt numbers of an activation basis: ``value = low + sum_t step[t] * code[t]``.

    Attributes:
        low: ``()``, the value of code 0.
        step: ``(t,)``, the value of one unit of each term's code.
        threshold: ``(m, 1)`` or ``(m, c)``, where each digit turns 1; None where the codes are uniform.
    """

    low: Tensor
    step: Tensor
    threshold: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class WeightBasis(abc.ABC):
    """How a weight becomes planes. Options are the fields of the subclass."""

    @property
    @abc.abstractmethod
    def terms(self) -> tuple[int, ...]:
        """Planes of each term: within a term they are weighted by powers of two, each term has its own unit.

        A term of 0 planes is the constant +1: its unit is an offset of all weights of an output.
        """

    @abc.abstractmethod
    def fit(self, weight: Tensor) -> Tensor:
        """Return the units ``(t, o)`` in closed form for ``weight`` ``(o, ...)``, by least squares per output."""

    @abc.abstractmethod
    def odd(self, weight: Tensor, unit: Tensor) -> Tensor:
        """Return the odd integers ``(t, *weight.shape)``, in the weight's dtype.

        Those of an output follow from its own weights and units: training asks for some outputs at a time.
        """

    @abc.abstractmethod
    def __call__(self, weight: Tensor, unit: Tensor) -> Tensor:
        """Return the weight's value in this basis, shape of ``weight``, with straight-through gradients."""

    @final
    @property
    def count(self) -> int:
        """Number of planes, m; also the bits that one weight takes when packed."""
        return sum(self.terms)

    @property
    def steps(self) -> int:
        """From the lowest to the highest level of an output: the terms turn one after the other unless a basis says."""
        return sum(2**bits - 1 for bits in self.terms)

    @final
    def planes(self, weight: Tensor, unit: Tensor) -> Planes:
        """Unfold into sign planes: within a term of b planes, plane i has scale ``unit * 2**i``."""
        odd = self.odd(weight, unit)
        shape = (-1, *[1] * (weight.dim() - 1))
        signs: list[Tensor] = []
        scales: list[Tensor] = []
        offset = weight.new_zeros(())
        for term, bits in enumerate(self.terms):
            if bits == 0:
                offset = offset + unit[term].reshape(shape)
                continue
            code = (odd[term] + (2**bits - 1)) / 2
            signs.append(2 * power_digits(code, bits).to(weight.dtype) - 1)
            scales.extend(unit[term].reshape(shape) * 2.0**i for i in range(bits))
        return Planes(torch.cat(signs), torch.stack(scales), offset)


@dataclasses.dataclass(frozen=True)
class ActivationBasis(abc.ABC):
    """How an activation becomes planes. Options are the fields of the subclass."""

    @property
    @abc.abstractmethod
    def terms(self) -> tuple[int, ...]:
        """Digit planes of each term: powers of two within a term, each term has its own step."""

    @abc.abstractmethod
    def fit(self, samples: Tensor) -> Levels:
        """Return the levels of least squared error on ``samples``, a tensor of any shape of finite values."""

    @abc.abstractmethod
    def codes(self, x: Tensor, levels: Levels) -> Tensor:
        """Return whole numbers ``(t, *x.shape)``, term t in ``[0, 2**terms[t] - 1]``, in the dtype of ``x``."""

    @abc.abstractmethod
    def __call__(self, x: Tensor, levels: Levels) -> Tensor:
        """Return the activation's value in this basis, shape of ``x``, with straight-through gradients."""

    @property
    def is_per_channel(self) -> bool:
        """Whether thresholds are learnt for each channel by itself."""
        return False

    @final
    @property
    def count(self) -> int:
        """Number of digit planes, which is the bits that one activation takes when packed."""
        return sum(self.terms)

    @final
    def planes(self, x: Tensor, levels: Levels) -> Planes:
        """Unfold into sign planes: a digit d of weight s is ``s/2 + s/2 * (2 d - 1)``."""
        codes = self.codes(x, levels)
        signs: list[Tensor] = []
        scales: list[Tensor] = []
        for term, bits in enumerate(self.terms):
            signs.append(2 * power_digits(codes[term], bits).to(x.dtype) - 1)
            scales.extend(levels.step[term] * 2.0 ** (i - 1) for i in range(bits))
        stacked = torch.stack(scales)
        return Planes(torch.cat(signs), stacked.reshape(-1, *[1] * x.dim()), levels.low + stacked.sum())


def check_bits(what: str, bits: int, most: int = 8) -> None:
    """Raise ValueError unless ``1 <= bits <= most``."""
    if not 1 <= bits <= most:
        raise ValueError(f"{what} must be from 1 to {most}, got {bits}")


def per_output(values: Tensor, like: Tensor) -> Tensor:
    """Reshape ``(..., o)`` so that it multiplies ``like`` ``(..., o, *rest)`` along its output axis."""
    return values.reshape(*values.shape, *[1] * (like.dim() - values.dim()))


def rows(weight: Tensor) -> Tensor:
    """View a weight ``(o, ...)`` as ``(o, k)``."""
    return weight.flatten(1) if weight.dim() > 1 else weight.unsqueeze(1)


def even_sample(samples: Tensor, most: int) -> Tensor:
    """Return at most ``most`` finite values of ``samples``, evenly spread, as a flat float32 tensor."""
    flat = samples.detach().flatten().float()
    flat = flat[flat.isfinite()]
    stride = -(-flat.numel() // most) if flat.numel() > most else 1
    return flat[::stride]
