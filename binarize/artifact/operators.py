"""What a saved graph may call: the whole allow-list. A name that is not here is refused, on saving and on loading.

Functions are pure tensor arithmetic. Nothing here opens a file, imports, evaluates text or reads
an arbitrary attribute.
"""

import builtins
import functools
import importlib
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from binarize.layers.attention import attend
from binarize.passes.capture import require_default

__all__ = ["ATTRIBUTES", "METHODS", "function_named", "is_wrapped", "name_of"]

_ARITHMETIC = """
abs absolute acos acosh add addcdiv addcmul addmm all amax amin aminmax any argmax argmin argsort asin asinh atan
atan2 atanh baddbmm bernoulli bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor
bmm broadcast_to ceil chunk clamp clamp_max clamp_min clip clone conj cos cosh count_nonzero cross cummax cummin
cumprod cumsum deg2rad detach diag diag_embed diagonal diff div divide dot eq erf erfc erfinv exp exp2 expm1 flatten
flip fliplr flipud floor floor_divide fmax fmin fmod frac gather ge greater greater_equal gt hardshrink hsplit hypot
index_add index_copy index_fill index_put index_select inner inverse is_floating_point isclose isfinite isinf isnan
kthvalue le lerp less less_equal log log10 log1p log2 log_softmax logaddexp logical_and logical_not logical_or
logical_xor logit logsumexp lt masked_fill masked_scatter masked_select matmul max maximum mean median min minimum
mm movedim moveaxis mul multiply mv nan_to_num nanmean nansum narrow ne neg negative nonzero norm not_equal numel
outer permute positive pow prelu prod quantile rad2deg ravel reciprocal relu relu_ remainder renorm
repeat_interleave reshape rms_norm roll rot90 round rsqrt rsub scatter scatter_add select select_scatter sgn sigmoid
sigmoid_ sign signbit sin sinc sinh slice_scatter softmax sort split sqrt square squeeze std sub subtract sum
swapaxes swapdims t take take_along_dim tan tanh tanh_ tensor_split tile topk transpose tril triu true_divide trunc
unbind unflatten unique unsqueeze var vsplit where xlogy
"""

_TORCH = """
adaptive_avg_pool1d alpha_dropout arange avg_pool1d batch_norm bilinear broadcast_tensors cat celu channel_shuffle
column_stack complex concat concatenate conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
cosine_similarity dropout dstack einsum empty empty_like eye feature_dropout full full_like group_norm heaviside
hstack instance_norm is_tensor kron layer_norm linspace logspace max_pool1d max_pool2d max_pool3d meshgrid
native_norm ones ones_like pixel_shuffle pixel_unshuffle polar rand rand_like randn randn_like row_stack rrelu
scalar_tensor selu stack std_mean tensordot threshold tril_indices triu_indices vander var_mean view_as_complex
view_as_real vstack zeros zeros_like _assert sym_float sym_int sym_ite sym_max sym_min sym_not sym_sqrt
"""

_FUNCTIONAL = """
adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
adaptive_max_pool3d affine_grid alpha_dropout avg_pool1d avg_pool2d avg_pool3d batch_norm bilinear celu celu_ conv1d
conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d cosine_similarity dropout dropout1d dropout2d
dropout3d elu elu_ embedding feature_alpha_dropout fold gelu glu grid_sample group_norm gumbel_softmax hardshrink
hardsigmoid hardswish hardtanh hardtanh_ instance_norm interpolate layer_norm leaky_relu leaky_relu_ linear
local_response_norm log_softmax logsigmoid lp_pool1d lp_pool2d lp_pool3d max_pool1d max_pool2d max_pool3d
max_unpool1d max_unpool2d max_unpool3d mish multi_head_attention_forward normalize one_hot pad pairwise_distance
pixel_shuffle pixel_unshuffle prelu relu relu6 relu_ rms_norm rrelu rrelu_ scaled_dot_product_attention selu selu_
sigmoid silu softmax softmin softplus softshrink softsign tanh tanhshrink threshold threshold_ unfold upsample
upsample_bilinear upsample_nearest
"""

_OPERATORS = """
abs add and_ contains eq floordiv ge getitem gt iadd iand ifloordiv ilshift imatmul imod imul index invert ior ipow
irshift is_ is_not isub itruediv ixor le lshift lt matmul mod mul ne neg not_ or_ pos pow rshift setitem sub truediv
truth xor
"""

_BUILTINS = "abs bool divmod float getattr int len list max min range round slice sum tuple"
_MATH = "ceil exp fabs floor fmod hypot isfinite isinf isnan log log10 log2 pow prod sqrt trunc"

# Beside the names above, without and with a trailing underscore: what torch.export leaves of a program.
_ATEN = """
_adaptive_avg_pool2d _adaptive_avg_pool3d _assert_tensor_metadata _conj _log_softmax _softmax _to_copy _unsafe_view
_native_batch_norm_legit_no_training alias as_strided constant_pad_nd contiguous convolution copy embedding expand
expand_as fill grid_sampler grid_sampler_2d grid_sampler_3d im2col index lift_fresh lift_fresh_copy linalg_norm
linalg_vector_norm max_pool2d_with_indices max_pool3d_with_indices native_batch_norm native_dropout
native_group_norm native_layer_norm new_empty new_full new_ones new_zeros pad reflection_pad1d reflection_pad2d
reflection_pad3d repeat replication_pad1d replication_pad2d replication_pad3d split_with_sizes sum_to_size sym_numel
sym_size sym_storage_offset sym_stride size slice stride to type_as unsafe_chunk unsafe_split
unsafe_split_with_sizes upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d
upsample_nearest2d upsample_nearest3d upsample_trilinear3d view view_as zero
"""

_VISION_OPERATORS = ("deform_conv2d", "nms", "ps_roi_align", "ps_roi_pool", "roi_align", "roi_pool")

# Functions of torchvision that it wraps, so that tracing leaves them whole; imported only where a graph calls one.
_TORCHVISION = frozenset(
    {
        "torchvision.models.swin_transformer._get_relative_position_bias",
        "torchvision.models.swin_transformer._patch_merging_pad",
        "torchvision.models.swin_transformer.shifted_window_attention",
        "torchvision.models.video.mvit._add_rel_pos",
        "torchvision.models.video.mvit._add_shortcut",
        "torchvision.models.video.mvit._interpolate",
        "torchvision.models.video.mvit._squeeze",
        "torchvision.models.video.mvit._unsqueeze",
        "torchvision.models.video.swin_transformer._compute_attention_mask_3d",
        "torchvision.models.video.swin_transformer._compute_pad_size_3d",
        "torchvision.models.video.swin_transformer._get_relative_position_bias",
        "torchvision.models.video.swin_transformer._get_window_and_shift_size",
        "torchvision.models.video.swin_transformer.shifted_window_attention_3d",
        "torchvision.ops.boxes.nms",
        "torchvision.ops.deform_conv.deform_conv2d",
        "torchvision.ops.roi_align.roi_align",
        "torchvision.ops.roi_pool.roi_pool",
        "torchvision.ops.stochastic_depth.stochastic_depth",
    }
)

_WRITING = """
add addcdiv addcmul clamp clamp_max clamp_min clip copy div exp fill floor index_add index_copy index_fill index_put
leaky_relu masked_fill masked_scatter mul neg pow relu scatter scatter_add sigmoid sqrt squeeze sub tanh transpose
tril triu unsqueeze zero
"""

METHODS = frozenset(
    f"""
{_ARITHMETIC} bfloat16 bool byte char contiguous cpu dim double element_size expand expand_as float get half int
is_complex is_contiguous item items keys long ndimension new_empty new_full new_ones new_tensor new_zeros repeat
short size split_with_sizes stride sum_to_size to tolist type_as unfold values view view_as __add__ __and__ __eq__
__floordiv__ __ge__ __getitem__ __gt__ __iadd__ __iand__ __imul__ __invert__ __ior__ __isub__ __itruediv__ __le__
__lt__ __matmul__ __mod__ __mul__ __ne__ __neg__ __or__ __pow__ __radd__ __rmul__ __rpow__ __rsub__ __rtruediv__
__setitem__ __sub__ __truediv__ __xor__
""".split()
) | frozenset(f"{name}_" for name in _WRITING.split())
"""Methods that a saved graph may call: those of tensors, and reading from dicts."""

ATTRIBUTES = frozenset({"shape", "dtype", "device", "layout", "ndim", "T", "mT", "H", "mH", "real", "imag", "data"})
"""Attributes that a saved graph may read by ``getattr``: those of tensors."""

_ATEN_NAMES = frozenset((_ARITHMETIC + _TORCH + _FUNCTIONAL + _ATEN).split()) | METHODS
_ATEN_WRITING = frozenset(f"{name}_" for name in (_WRITING + _FUNCTIONAL).split())
_HOMES: tuple[tuple[str, Any, str], ...] = (
    ("torch", torch, _ARITHMETIC + _TORCH),
    ("torch.nn.functional", F, _FUNCTIONAL),
    ("operator", operator, _OPERATORS),
    ("builtins", builtins, _BUILTINS),
    ("math", math, _MATH),
)


@functools.cache
def _plain() -> dict[str, Callable[..., Any]]:
    """Return the functions of torch and Python by name; a name that this torch lacks is left out."""
    found = {
        f"{prefix}.{name}": getattr(home, name)
        for prefix, home, names in _HOMES
        for name in names.split()
        if hasattr(home, name)
    }
    return {**found, "binarize.require_default": require_default, "binarize.attend": attend}


@functools.cache
def _names() -> dict[Callable[..., Any], str]:
    return {function: name for name, function in reversed(_plain().items())}


def name_of(function: Any) -> str | None:
    """Return the name under which ``function`` is saved, or None if no file may hold it."""
    if isinstance(function, torch._ops.OpOverload):
        name = f"torch.ops.{function}"
        return name if _is_operator(name) else None
    plain = _names().get(function)
    if plain is not None:
        return plain
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"
    return name if name in _TORCHVISION and function_named(name) is function else None


def function_named(name: str) -> Callable[..., Any] | None:
    """Return the function that a file calls ``name``, or None if it is not on the list or not in this version."""
    if name in _TORCHVISION:
        home, _, leaf = name.rpartition(".")
        try:
            found: Callable[..., Any] | None = getattr(importlib.import_module(home), leaf, None)
        except ImportError:
            found = None
        return found
    return _operator_named(name) if _is_operator(name) else _plain().get(name)


def is_wrapped(name: str) -> bool:
    """Return whether ``name`` is a function of Python that its library asks tracers to leave whole."""
    return name in _TORCHVISION or name == "binarize.attend"


def _is_operator(name: str) -> bool:
    parts = name.split(".")
    if len(parts) != 5 or parts[:2] != ["torch", "ops"]:
        return False
    space, operation, overload = parts[2:]
    if space == "torchvision":
        return operation in _VISION_OPERATORS and overload == "default"
    known = operation in _ATEN_NAMES or operation in _ATEN_WRITING
    return space == "aten" and known and overload.isidentifier() and not overload.startswith("__")


def _operator_named(name: str) -> Callable[..., Any] | None:
    _, _, space, operation, overload = name.split(".")
    if space == "torchvision":
        importlib.import_module("torchvision")  # its operators are registered on import
    packet = getattr(getattr(torch.ops, space), operation, None)
    found = getattr(packet, overload, None)
    return found if isinstance(found, torch._ops.OpOverload) else None
