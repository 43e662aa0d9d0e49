"""What a network costs: multiply-accumulates and bytes, layer by layer.

Conventions, the same wherever a figure is printed:

* One MAC is one multiplication and one addition of the original layer. A layer of M weight planes and N activation
  planes does M x N binary products for each; `binary_macs` counts those products, `float_macs` the MACs of the layers
  that stayed in full precision. Published operation counts are ``float_macs + binary_macs / 64`` (Bi-Real convention).
* Of branches that a router chooses, only as many count as run for one image; the layers of the router count as float.
* Only layers with weights count. Normalisation, activation functions, pooling and products of two activations do not.
* The bytes of a layer are those of its weight: sign planes and scales, or 4 per float. Biases, normalisation and
  activation levels are in the total, not in the rows.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, final

import torch
from torch import Tensor, nn

from binarize.errors import ModelError, NoKernelError
from binarize.layers.binary import BinaryConv2d, BinaryLayer, BinaryLinear
from binarize.layers.binary_nd import BinaryConvNd
from binarize.layers.branches import branch_groups
from binarize.layers.halves import as_taken
from binarize.layers.packed import PackedConv2d, PackedLayer, PackedLinear
from binarize.layers.packed_nd import PackedConvNd
from binarize.passes.capture import capture
from binarize.passes.select import Rules, sites, why_not
from binarize.schemes.presets import Scheme

__all__ = [
    "Split",
    "example_arguments",
    "measure_macs",
    "packed_bytes",
    "split_of",
    "tensor_bytes",
    "weight_bytes",
    "weight_shape",
]

WORD_BYTES = 4


def _dense(module: Any, _: Tensor, output: Tensor) -> int:
    return output.numel() * int(module.weight[0].numel())


def _transposed(module: Any, image: Tensor, _: Tensor) -> int:
    return image.numel() * int(module.weight[0].numel())


def _packed(module: Any, _: Tensor, output: Tensor) -> int:
    geometry = module.geometry
    if output.is_floating_point():
        return output.numel() * int(geometry.depth)
    return output.shape[:3].numel() * int(geometry.out_channels * geometry.depth)  # digit planes (n, h, w, ...)


def _of_space(module: Any, image: Tensor, output: Tensor) -> int:
    space, weights = module.space, math.prod(module.weight_shape)
    if not space.transposed:
        return int(output.shape[0] * output.shape[2:].numel() * weights)
    places = image.shape[2:] if image.is_floating_point() else image.shape[1:-3]  # or planes (n, ..., groups, m, words)
    return int(image.shape[0] * places.numel() * weights)


def _of_latent(module: Any, image: Tensor, output: Tensor) -> int:
    places = image if module.geometry.transposed else output
    return places.shape[0] * places.shape[2:].numel() * int(module.weight.numel())


_Count = Callable[[Any, Tensor, Tensor], int]
# From layer to its MACs, given what went in and what came out; the first class that fits counts.
MACS: dict[type[nn.Module], _Count] = {
    PackedConvNd: _of_space,
    PackedConv2d: _packed,
    BinaryConvNd: _of_latent,
    PackedLinear: _packed,
    BinaryConv2d: _dense,
    BinaryLinear: _dense,
    nn.modules.conv._ConvTransposeNd: _transposed,
    nn.modules.conv._ConvNd: _dense,
    nn.Linear: _dense,
}


@torch.inference_mode()
def measure_macs(net: nn.Module, arguments: tuple[Any, ...]) -> dict[str, int]:
    """Return the MACs of every weighted layer that one forward calls, by module path, all calls added up.

    In either form only the branches that a router chose are called. Which they are is a matter of the image, the sum
    over the branches of a group is not.

    Args:
        net: any form of a network; it is run once in evaluation mode.
        arguments: those of ``forward``, for one image.

    Raises:
        ModelError: the network does not run on them.
    """
    macs: dict[str, int] = {}
    hooks = []
    for name, module in net.named_modules():
        count = next((count for kind, count in MACS.items() if isinstance(module, kind)), None)
        if count is not None:
            hooks.append(module.register_forward_hook(_adding(macs, name, count)))
    try:
        with _only_chosen(net):
            _run(net, arguments)
    finally:
        for hook in hooks:
            hook.remove()
    return macs


@contextlib.contextmanager
def _only_chosen(net: nn.Module) -> Iterator[None]:
    """Let routed groups run what was chosen alone, as the packed form does."""
    dense = [group for _, group in branch_groups(net) if group.router is not None and not group.sparse]
    for group in dense:
        group.sparse = True
    try:
        yield
    finally:
        for group in dense:
            group.sparse = False


def _adding(macs: dict[str, int], name: str, count: _Count) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        macs[name] = macs.get(name, 0) + count(module, inputs[0], output)

    return hook


def _run(net: nn.Module, arguments: tuple[Any, ...]) -> None:
    modes = {module: module.training for module in net.modules()}
    try:
        net.eval()(*arguments)
    except NoKernelError:  # says itself what was tried, and is not about the images
        raise
    except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as cause:
        shapes = ", ".join(_shape(argument) for argument in arguments)
        said = str(cause).strip().partition("\n")[0] or type(cause).__name__
        raise ModelError(
            f"cannot run the network on {shapes}: {said}; give the --input-shape it was made for"
        ) from cause
    finally:
        for module, mode in modes.items():
            module.training = mode


def _shape(argument: Any) -> str:
    if isinstance(argument, list):
        return f"a list of {_shape(argument[0])}"
    return "x".join(map(str, argument.shape)) if isinstance(argument, Tensor) else type(argument).__name__


@torch.inference_mode()
def example_arguments(model: nn.Module, images: Tensor) -> tuple[Any, ...]:
    """Return ``images`` ``(n, c, h, w)`` as ``model`` takes them: a batch, a list (detection) or a pair (flow).

    Raises:
        ModelError: it takes none of these; the message is about the plain batch.
    """
    images = as_taken(model, images)
    one = images[:1]
    if _takes(model, (one,)):
        return (images,)
    if _takes(model, ([one[0]],)):
        return (list(images),)
    if not _takes(model, (one, one)):
        _run(model, (one,))  # raises
    return (images, images)


def _takes(model: nn.Module, arguments: tuple[Any, ...]) -> bool:
    try:
        _run(model, arguments)
    except ModelError:
        return False
    return True


@final
@dataclasses.dataclass(frozen=True)
class Split:
    """The weights and MACs of a network, split into what stays in full precision and what becomes binary.

    Attributes:
        float_weights: weights of the layers that stay.
        binary_weights: weights of the others.
        float_macs: MACs of the layers that stay.
        binary_macs: MACs of the others.
    """

    float_weights: int
    binary_weights: int
    float_macs: int
    binary_macs: int

    def memory(self, bits: int) -> int:
        """Return the bits of all weights, ``bits`` for a binary one: the published convention, without scales."""
        return 32 * self.float_weights + bits * self.binary_weights

    def operations(self, products: int) -> float:
        """Return the published operation count with ``products`` binary products for each MAC of a binary layer."""
        return self.float_macs + self.binary_macs * products / 64


def split_of(model: nn.Module, images: Tensor, rules: Rules) -> Split:
    """Return how ``rules`` split a network; it may live on the meta device. The model is used up, as by `capture`.

    Args:
        model: a network that can be traced whole.
        images: ``(1, c, h, w)``.
        rules: which layers stay in full precision.
    """
    macs = measure_macs(model, (images,))
    counts = [0, 0, 0, 0]
    for site in sites(capture(model)):
        binary = why_not(site, rules) is None
        counts[binary] += site.module.weight.numel()  # type: ignore[operator]
        counts[2 + binary] += macs.get(site.name, 0)
    return Split(*counts)


def tensor_bytes(net: nn.Module) -> int:
    """Return the bytes of all parameters and buffers that are saved, shared ones once."""
    tensors = {id(tensor): tensor for tensor in net.state_dict(keep_vars=True).values() if isinstance(tensor, Tensor)}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def weight_shape(layer: nn.Module) -> torch.Size:
    """Return the shape of a layer's weight, outputs first: a transposed convolution of torch has its inputs there."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if not isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return weight.shape
    return torch.Size((weight.shape[1] * layer.groups, weight.shape[0] // layer.groups, *weight.shape[2:]))


def packed_bytes(weight: torch.Size, scheme: Scheme) -> int:
    """Return the bytes that a weight ``(o, ...)`` takes in packed form: sign planes and one scale per pair of terms."""
    outputs, depth = weight[0], weight[1:].numel()
    pairs = len(scheme.weight.terms) * len(scheme.activation.terms)
    return scheme.weight.count * outputs * -(-depth // 8) + pairs * outputs * WORD_BYTES


def weight_bytes(module: nn.Module) -> int:
    """Return the bytes of a layer's weight as it would be deployed."""
    if isinstance(module, PackedLayer):
        return module.bits.numel() + module.scale.numel() * WORD_BYTES
    if isinstance(module, BinaryLayer):
        return packed_bytes(module.weight.shape, module.scheme)
    tensors = [parameter for name, parameter in module.named_parameters(recurse=False) if "bias" not in name]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
