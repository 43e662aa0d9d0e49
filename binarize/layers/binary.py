"""Training form: layers whose weight and input are sums of binary planes, held as floats with gradients."""

import abc
import dataclasses
from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from binarize.schemes.base import ActivationBasis, Levels, WeightBasis
from binarize.schemes.presets import Scheme
from binarize.schemes.thermometer import ThermometerActivation

__all__ = ["BinaryActivation", "BinaryConv2d", "BinaryLayer", "BinaryLinear", "binary_layers", "set_temperature"]


@final
class BinaryActivation(nn.Module):
    """A tensor's activation basis with its learnt levels. Layers that read the same tensor share one.

    Attributes:
        basis: how the tensor becomes planes.
        low: ``()``, value of code 0.
        step: ``(t,)``, value of one unit of each term's code.
        threshold: ``(m, 1)`` or ``(m, c)``, or None for uniform codes.
        fitted: whether the levels were fitted to samples; until then they are a guess.
    """

    def __init__(self, basis: ActivationBasis) -> None:
        super().__init__()
        self.basis = basis
        guess = basis.fit(torch.linspace(0.0, 1.0, 257))
        self.low = nn.Parameter(guess.low)
        self.step = nn.Parameter(guess.step)
        self.threshold = None if guess.threshold is None else nn.Parameter(guess.threshold)
        self.fitted = False

    @property
    def levels(self) -> Levels:
        """The learnt numbers, as the basis takes them."""
        return Levels(self.low, self.step, self.threshold)

    @torch.no_grad()
    def set_levels(self, levels: Levels) -> None:
        """Take over fitted levels; thresholds per tensor hold for every channel where channels have their own."""
        self.low.copy_(levels.low)
        self.step.copy_(levels.step)
        if self.threshold is not None and levels.threshold is not None:
            columns = max(self.threshold.shape[1], levels.threshold.shape[1])
            self.threshold.data = levels.threshold.to(self.threshold).expand(-1, columns).clone()
        self.fitted = True

    @torch.no_grad()
    def set_channels(self, channels: int) -> None:
        """Give each channel thresholds of its own, if the basis has them."""
        if self.basis.is_per_channel and self.threshold is not None and self.threshold.shape[1] == 1:
            self.threshold.data = self.threshold.expand(-1, channels).clone()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, c, ...)`` to the nearest level of each element, same shape."""
        value: Tensor = self.basis(x, self.levels)
        return value

    def codes(self, x: Tensor) -> Tensor:
        """Return whole numbers ``(t, n, c, ...)``."""
        return self.basis.codes(x, self.levels)

    def extra_repr(self) -> str:
        """Name the basis."""
        return repr(self.basis)


class BinaryLayer(nn.Module, abc.ABC):
    """What binary layers share: a latent weight ``(o, ...)``, units ``(t, o)`` and an optional bias ``(o,)``.

    Attributes:
        groups: that the input channels fall into.
        exactness: what the packed form allows its kernels, see `binarize.layers.merged`.
    """

    groups: int = 1
    exactness: str = "exact"

    def __init__(
        self,
        float_layer: nn.modules.conv._ConvNd | nn.Linear,
        scheme: Scheme,
        activation: BinaryActivation,
        weight: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.scheme = scheme
        self.activation = activation
        activation.set_channels(
            float_layer.in_features if isinstance(float_layer, nn.Linear) else float_layer.in_channels
        )
        self.weight = nn.Parameter((float_layer.weight if weight is None else weight).detach().clone())
        self.unit = nn.Parameter(scheme.weight.fit(self.weight.detach()))
        bias = float_layer.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    @abc.abstractmethod
    def original(self, x: Tensor) -> Tensor:
        """Return what the layer gave before it was binarised, as long as its weight is still the trained one."""

    @final
    @property
    def weight_basis(self) -> WeightBasis:
        """How the weight becomes planes."""
        return self.scheme.weight

    @final
    def weight_value(self) -> Tensor:
        """Return the weight that the planes add up to, shape of ``weight``, with straight-through gradients."""
        return self.scheme.weight(self.weight, self.unit)

    @final
    def odd(self) -> Tensor:
        """Return the weight's odd integers ``(t, *weight.shape)``."""
        return self.scheme.weight.odd(self.weight.detach(), self.unit.detach())

    @final
    def ensure_bias(self) -> nn.Parameter:
        """Return the bias, made of zeros where the layer had none."""
        if self.bias is None:
            self.bias = nn.Parameter(self.weight.new_zeros(self.weight.shape[0]))
        return self.bias


@final
class BinaryConv2d(BinaryLayer):
    """Convolution of a binarised input with a binarised weight; geometry as in `torch.nn.Conv2d`.

    Zero padding is exact: a tap outside the image contributes 0, as `F.conv2d` on the quantised activation does.
    ``padding="same"`` with an uneven total is computed with the larger half on both sides, and ``crop`` then drops the
    first row or column that this adds.
    """

    def __init__(self, conv: nn.Conv2d, scheme: Scheme, activation: BinaryActivation) -> None:
        super().__init__(conv, scheme, activation)
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size = _pair(conv.kernel_size)
        self.stride, self.dilation, self.groups = _pair(conv.stride), _pair(conv.dilation), conv.groups
        self.padding, self.crop = _resolve_padding(conv)
        self.padding_mode = conv.padding_mode

    @classmethod
    def from_float(cls, conv: nn.Conv2d, scheme: Scheme, activation: BinaryActivation) -> "BinaryConv2d":
        """Build from a trained convolution: its weight becomes the latent weight, units are fitted in closed form."""
        return cls(conv, scheme, activation).train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, c, h, w)`` to ``(n, o, h', w')``."""
        return self.convolve(x, self.weight_value())

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """Convolve the binarised ``x`` with any ``weight`` ``(o, c / groups, kh, kw)``."""
        x, padding = self.padded(x)
        y = F.conv2d(self.activation(x), weight, self.bias, self.stride, padding, self.dilation, self.groups)
        return y[..., self.crop[0] :, self.crop[1] :] if any(self.crop) else y

    def original(self, x: Tensor) -> Tensor:
        """Return what the layer gave before it was binarised, as long as its weight is still the trained one."""
        x, padding = self.padded(x)
        y = F.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)
        return y[..., self.crop[0] :, self.crop[1] :]

    def padded(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return ``x`` with any padding that is not zeros, and the zero padding that is left to the convolution."""
        if self.padding_mode == "zeros":
            return x, self.padding
        ph, pw = self.padding
        return F.pad(x, (pw, pw, ph, ph), mode=self.padding_mode), (0, 0)

    def extra_repr(self) -> str:
        """Name the scheme and the geometry."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, scheme={self.scheme.spec!r}"
        )


@final
class BinaryLinear(BinaryLayer):
    """Matrix product of a binarised input with a binarised weight ``(o, c)``, over the last axis."""

    def __init__(self, linear: nn.Linear, scheme: Scheme, activation: BinaryActivation) -> None:
        super().__init__(linear, scheme, activation)
        self.in_features, self.out_features = linear.in_features, linear.out_features

    @classmethod
    def from_float(cls, linear: nn.Linear, scheme: Scheme, activation: BinaryActivation) -> "BinaryLinear":
        """Build from a trained linear layer: its weight becomes the latent weight, units are fitted in closed form."""
        return cls(linear, scheme, activation).train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., c)`` to ``(..., o)``."""
        value = self.activation(x.reshape(-1, x.shape[-1])).reshape(x.shape)  # rows: channels are the second axis
        return F.linear(value, self.weight_value(), self.bias)

    def original(self, x: Tensor) -> Tensor:
        """Return what the layer gave before it was binarised, as long as its weight is still the trained one."""
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Name the scheme and the sizes."""
        return f"{self.in_features}, {self.out_features}, scheme={self.scheme.spec!r}"


def binary_layers(net: nn.Module) -> Iterable[tuple[str, BinaryLayer]]:
    """Yield every binary layer of ``net`` with its module path, each once."""
    for name, module in net.named_modules():
        if isinstance(module, BinaryLayer):
            yield name, module


def set_temperature(net: nn.Module, temperature: float) -> int:
    """Set the temperature of every activation whose estimator has one, ``tanh``; return how many there are.

    Called with falling temperatures while training, it anneals the estimator from the identity towards the jump.
    """
    found = 0
    for module in net.modules():
        if isinstance(module, BinaryActivation):
            basis = module.basis
            if isinstance(basis, ThermometerActivation) and basis.ste == "tanh":
                module.basis = dataclasses.replace(basis, temperature=temperature)
                found += 1
    return found


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _resolve_padding(conv: nn.Conv2d) -> tuple[tuple[int, int], tuple[int, int]]:
    if conv.padding == "valid":
        return (0, 0), (0, 0)
    if isinstance(conv.padding, str):
        kernel, dilation = _pair(conv.kernel_size), _pair(conv.dilation)
        total = [dilation[axis] * (kernel[axis] - 1) for axis in (0, 1)]
        larger = ((total[0] + 1) // 2, (total[1] + 1) // 2)
        return larger, (total[0] % 2, total[1] % 2)
    return _pair(conv.padding), (0, 0)
