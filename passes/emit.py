"""Operations of a packed graph as kernel calls of a schedule. `binarize.passes.match` finds them."""

import abc
import dataclasses
from math import inf, prod
from typing import final

import torch
from torch import fx, nn

from binarize.errors import ModelError
from binarize.kernels import steps
from binarize.kernels.problem import UniformCode
from binarize.kernels.schedule import Draft, Value
from binarize.layers.geometry import problem_of
from binarize.layers.pack_activation import PackActivation, route_of
from binarize.layers.packed import PackedConv2d, PackedLinear

__all__ = [
    "Addition",
    "Clamp",
    "Clamped",
    "Flatten",
    "FloatConvolution",
    "FloatRows",
    "Mean",
    "Operation",
    "PackedConvolution",
    "PackedRows",
    "Packing",
    "Pooling",
    "Same",
    "Values",
    "added",
    "image",
]

Values = dict[fx.Node, Value]


class Operation(abc.ABC):
    """What a node computes, apart from the sizes of its inputs.

    Attributes:
        node: the node of the graph.
        makes_new: whether its value has memory of its own, not that of its input.
    """

    node: fx.Node
    makes_new: bool = True

    @property
    def count(self) -> int:
        """How many nodes it computes."""
        return 1

    @abc.abstractmethod
    def emit(self, draft: Draft, values: Values) -> Value:
        """Add the kernel calls and return the node's value.

        Raises:
            ModelError: sizes or types do not fit.
        """

    @property
    def absorbed(self) -> fx.Node | None:
        """The node after it whose work it does too, or None."""
        return None


class Clamped(Operation):
    """What does the work of the clamp after it too, where there is one."""

    clamp: fx.Node | None
    limits: tuple[float, float]

    @property
    def absorbed(self) -> fx.Node | None:
        """The clamp."""
        return self.clamp


def image(value: Value, name: str) -> Value:
    """Return what is a float32 image ``(n, c, h, w)``.

    Raises:
        ModelError: it is something else.
    """
    if value.dtype != torch.float32 or len(value.shape) != 4:
        raise ModelError(f"cannot schedule {name!r}: it takes a float32 image (n, c, h, w), got {value}")
    return value


def _emit_packing(draft: Draft, packing: PackActivation, x: Value) -> Value:
    """Add what `PackActivation._pack` does."""
    packing.require_channels(x.shape[:2])
    bits = packing.terms[0] if packing.thresholds is None else len(packing.thresholds)
    return steps.pack(
        draft, x, codes=packing.route == "int8", bits=bits, groups=packing.groups, low=packing.low,
        inverse_step=packing.inverse_step, thresholds=packing.thresholds,
    )  # fmt: skip


def _as_image(rows: Value, name: str) -> Value:
    """Return rows ``(..., c)`` as the pixels of one image ``(1, c, rows, 1)`` in the same memory."""
    if len(rows.shape) == 4:  # whose memory may be in either order
        raise ModelError(f"cannot schedule {name!r}: its rows come from an image")
    return dataclasses.replace(rows, shape=(1, rows.shape[-1], prod(rows.shape[:-1]), 1), channels_last=True)


def _emit_packed_rows(draft: Draft, packing: PackActivation, rows: Value, name: str) -> Value:
    packed = _emit_packing(draft, packing, _as_image(rows, name))
    return dataclasses.replace(packed, shape=(*rows.shape[:-1], 1, *packed.shape[-2:]))


@final
@dataclasses.dataclass(frozen=True)
class Packing(Operation):
    """A `PackActivation` called by the graph."""

    node: fx.Node
    packing: PackActivation

    def emit(self, draft: Draft, values: Values) -> Value:
        """See `PackActivation.forward`."""
        x = values[self.node.args[0]]  # type: ignore[index]  # operation_of looked
        if self.packing.rows:
            return _emit_packed_rows(draft, self.packing, x, self.node.name)
        return _emit_packing(draft, self.packing, image(x, self.node.name))


@final
@dataclasses.dataclass(frozen=True)
class PackedConvolution(Operation):
    """A `PackedConv2d`, with the reader in whose form it answers."""

    node: fx.Node
    layer: PackedConv2d

    def emit(self, draft: Draft, values: Values) -> Value:
        """See `PackedConv2d.forward`."""
        layer, name = self.layer, self.node.name
        x = values[self.node.args[0]]  # type: ignore[index]
        if x.dtype == torch.float32:
            x = _emit_packing(draft, layer.activation, image(x, name))
        height, width = x.shape[1:3]
        held = layer.operands(x.dtype)
        problem = problem_of(held.geometry, route_of(x.dtype))
        if x.shape[3:] != problem.x_shape:
            raise ModelError(f"cannot schedule {name!r}: its input is {x}")
        table, row, column = layer.tables(height, width)
        reader = layer.reader
        if reader is not None and reader.route == "popcount" and layer.answers_in_thresholds():
            found = layer.thresholds(height, width)
            return steps.conv2d_threshold(draft, problem, x, held.weight, *found, (row, column))
        residual = None if len(self.node.args) < 2 else values[self.node.args[1]]  # type: ignore[index]
        shape = (x.shape[0], problem.out_channels, *problem.checked_size(height, width))
        if residual is not None and residual.shape != shape:
            raise ModelError(f"cannot schedule {name!r}: it adds {residual} to {shape}")
        code = None if reader is None else _code_of(reader, problem.out_channels)
        y = steps.conv2d(
            draft, problem, x, held.weight, held.scale, table, (row, column), residual, (layer.minimum, layer.maximum),
            code,
        )  # fmt: skip
        return y if reader is None or code is not None else _emit_packing(draft, reader, y)


def _code_of(reader: PackActivation, channels: int) -> UniformCode | None:
    """Return the code that the epilogue can make for ``reader``, or None."""
    fills_up = reader.groups > 1 and channels // reader.groups % 4
    if reader.route != "int8" or reader.thresholds is not None or fills_up:
        return None
    return UniformCode(reader.low, reader.inverse_step, reader.terms[0], reader.groups)


@final
@dataclasses.dataclass(frozen=True)
class PackedRows(Operation):
    """A `PackedLinear`."""

    node: fx.Node
    layer: PackedLinear

    def emit(self, draft: Draft, values: Values) -> Value:
        """See `PackedLinear.forward`."""
        layer, x = self.layer, values[self.node.args[0]]  # type: ignore[index]
        if x.dtype == torch.float32:
            x = _emit_packed_rows(draft, layer.activation, x, self.node.name)
        leading = x.shape[:-3]
        if 0 in leading:
            raise ModelError(f"cannot schedule {self.node.name!r}: it has no rows")
        held = layer.operands(x.dtype)
        planes = dataclasses.replace(x, shape=(1, 1, prod(leading), *x.shape[-3:]))
        problem, limits = problem_of(held.geometry, route_of(x.dtype)), (layer.minimum, layer.maximum)
        classes = None, None
        y = steps.conv2d(
            draft, problem, planes, held.weight, held.scale, layer.tables(1, 1)[0], classes, None, limits
        )  # fmt: skip
        return dataclasses.replace(y, shape=(*leading, layer.geometry.out_channels), channels_last=False)


@final
@dataclasses.dataclass(frozen=True)
class FloatConvolution(Clamped):
    """A convolution that stays in full precision, and the clamp after it."""

    node: fx.Node
    conv: nn.Conv2d
    clamp: fx.Node | None
    limits: tuple[float, float]

    def emit(self, draft: Draft, values: Values) -> Value:
        """Add the float kernel."""
        x = image(values[self.node.args[0]], self.node.name)  # type: ignore[index]
        if x.shape[1] != self.conv.in_channels:
            raise ModelError(f"cannot schedule {self.node.name!r}: its input is {x}")
        return steps.dense_conv2d(draft, self.conv, _padding(self.conv), x, self.limits)


def _padding(conv: nn.Conv2d) -> tuple[int, int]:
    if not isinstance(conv.padding, str):
        return int(conv.padding[0]), int(conv.padding[1])
    spans = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    return (0, 0) if conv.padding == "valid" else (spans[0] // 2, spans[1] // 2)


@final
@dataclasses.dataclass(frozen=True)
class FloatRows(Operation):
    """A linear layer that stays in full precision: a 1x1 convolution of as many pixels as there are rows."""

    node: fx.Node
    linear: nn.Linear

    def emit(self, draft: Draft, values: Values) -> Value:
        """Add the float kernel."""
        x, linear = values[self.node.args[0]], self.linear  # type: ignore[index]
        if x.dtype != torch.float32 or x.shape[-1] != linear.in_features:
            raise ModelError(f"cannot schedule {self.node.name!r}: its input is {x}")
        conv = nn.Conv2d(linear.in_features, linear.out_features, 1, bias=linear.bias is not None, device="meta")
        conv.weight = nn.Parameter(linear.weight.detach()[:, :, None, None], requires_grad=False)
        conv.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)
        y = steps.dense_conv2d(draft, conv, (0, 0), _as_image(x, self.node.name), (-inf, inf))
        return dataclasses.replace(y, shape=(*x.shape[:-1], linear.out_features), channels_last=False)


@final
@dataclasses.dataclass(frozen=True)
class Clamp(Operation):
    """ReLU and its kind."""

    node: fx.Node
    source: fx.Node
    limits: tuple[float, float]

    def emit(self, draft: Draft, values: Values) -> Value:
        """Add a pass over memory."""
        if values[self.source].dtype != torch.float32:
            raise ModelError(f"cannot schedule {self.node.name!r}: its input is {values[self.source]}")
        return draft.sum(values[self.source], None, *self.limits)


@final
@dataclasses.dataclass(frozen=True)
class Addition(Clamped):
    """The sum of two tensors of one shape."""

    node: fx.Node
    terms: tuple[fx.Node, fx.Node]
    clamp: fx.Node | None
    limits: tuple[float, float]

    def emit(self, draft: Draft, values: Values) -> Value:
        """Add a pass over memory."""
        a, b = (values[term] for term in self.terms)
        return added(draft, self.node.name, a, b, self.limits)


def added(
    draft: Draft, name: str, a: Value, b: Value, limits: tuple[float, float], shares: tuple[float, float] = (1.0, 1.0)
) -> Value:
    """Add the clamped sum of two float tensors of one shape, see `Draft.sum`.

    Raises:
        ModelError: they are no such tensors.
    """
    if a.shape != b.shape or {a.dtype, b.dtype} != {torch.float32}:
        raise ModelError(f"cannot schedule {name!r}: it adds {a} and {b}")
    if a.channels_last != b.channels_last:
        a, b = draft.channels_last(a), draft.channels_last(b)
    return draft.sum(a, b, *limits, shares)


@final
@dataclasses.dataclass(frozen=True)
class Pooling(Operation):
    """Max or average pooling."""

    node: fx.Node
    window: tuple[int, ...]
    largest: bool
    counts_padding: bool = True
    divisor: int | None = None

    def emit(self, draft: Draft, values: Values) -> Value:
        """Add the pooling kernel."""
        x = image(values[self.node.args[0]], self.node.name)  # type: ignore[index]
        taps = self.window[0] * self.window[1]
        divisor = self.divisor if self.divisor is not None else taps if self.counts_padding else 0
        return steps.pool(draft, x, self.window, largest=self.largest, divisor=divisor)


@final
@dataclasses.dataclass(frozen=True)
class Mean(Operation):
    """The mean over all pixels: adaptive pooling to one of them, or, flat, to rows ``(n, c)``."""

    node: fx.Node
    flat: bool = False

    def emit(self, draft: Draft, values: Values) -> Value:
        """Add the pooling kernel with the image as its window."""
        x = image(values[self.node.args[0]], self.node.name)  # type: ignore[index]
        window = (*x.shape[2:], 1, 1, 0, 0, 1, 1)
        y = steps.pool(draft, x, window, largest=False, size=(1, 1))
        return dataclasses.replace(y, shape=y.shape[:2], channels_last=False) if self.flat else y


@final
@dataclasses.dataclass(frozen=True)
class Flatten(Operation):
    """An image to rows."""

    node: fx.Node
    makes_new = False

    def emit(self, draft: Draft, values: Values) -> Value:
        """Reorder the memory where there is more than one pixel."""
        x = values[self.node.args[0]]  # type: ignore[index]
        if len(x.shape) == 4:
            x = draft.plain(image(x, self.node.name))
        return dataclasses.replace(x, shape=(x.shape[0], prod(x.shape[1:])), channels_last=False)


@final
@dataclasses.dataclass(frozen=True)
class Same(Operation):
    """What gives its input: dropout in evaluation, identity, a clamp that the node before does."""

    node: fx.Node
    makes_new = False

    def emit(self, draft: Draft, values: Values) -> Value:
        """Add nothing."""
        return values[self.node.args[0]]  # type: ignore[index]
