"""The domain `binarize`: each operation with a body in standard operations, so that any runtime can run the file.

A runtime that knows the domain may take kernels of its own instead; `docs/onnx.md` is the specification. The bodies are
written for runtimes that fold constants: the weight then becomes one dense float tensor when the file is loaded, and a
layer costs one float convolution.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import FunctionProto, NodeProto

__all__ = ["DOMAIN", "OPERATIONS", "VERSION", "WITHOUT_KERNELS", "function_protos", "is_nd"]

DOMAIN = "binarize"
VERSION = 1

# The floor is there although ONNX casts by truncation, which is the same above 0: not every runtime does.
_PACK_UNIFORM = """
PackUniform <low, inverse_step, bits, groups, rows, work, x_inner, version> (x) => (codes) {
  low = Constant <value_float: float = @low> ()
  inverse = Constant <value_float: float = @inverse_step> ()
  half = Constant <value_float: float = 0.5> ()
  zero = Constant <value_float: float = 0.0> ()
  one = Constant <value_float: float = 1.0> ()
  two = Constant <value_float: float = 2.0> ()
  bits = Constant <value_int: int = @bits> ()
  digits = Cast <to: int = 1> (bits)
  levels = Pow (two, digits)
  largest = Sub (levels, one)
  from_low = Sub (x, low)
  steps = Mul (from_low, inverse)
  raised = Add (steps, half)
  clamped = Clip (raised, zero, largest)
  whole = Floor (clamped)
  codes = Cast <to: int = 2> (whole)
}
"""

_PACK_THRESHOLDS = """
PackThresholds <groups, rows, work, x_inner, version> (x, thresholds) => (codes) {
  below = Less (x, thresholds)
  reached = Not (below)
  codes = Cast <to: int = 2> (reached)
}
"""

# Stands between layers of this domain, which then need not lay their images out as the standard operation wants them.
_MAX_POOL = """
MaxPool2d <kernel_shape, strides, pads, dilations, x_inner, y_inner, version> (x) => (y) {
  y = MaxPool <kernel_shape: ints = @kernel_shape, strides: ints = @strides, pads: ints = @pads,
    dilations: ints = @dilations> (x)
}
"""

# Digit j of a code counts 2**j, whatever its term.
_PACK_TERMS = """
PackTerms <groups, bits, rows, work, x_inner, version> (x, thresholds) => (codes) {
  last = Constant <value_ints: ints = [-1]> ()
  i0 = Constant <value_int: int = 0> ()
  i1 = Constant <value_int: int = 1> ()
  bits = Constant <value_int: int = @bits> ()
  two = Constant <value_float: float = 2.0> ()
  places = Range (i0, bits, i1)
  exponents = Cast <to: int = 1> (places)
  powers = Pow (two, exponents)
  column = Unsqueeze (x, last)
  below = Less (column, thresholds)
  reached = Not (below)
  digits = Cast <to: int = 1> (reached)
  whole = MatMul (digits, powers)
  codes = Cast <to: int = 2> (whole)
}
"""

# Runtimes that fold constants keep every value made here until all layers are unpacked, so there are few of the
# weight's size: the signs of a byte are looked up in a table. The table is made in floating point, where numbers below
# 256 are exact: not every runtime shifts bytes right. Row t of `powers` holds 2**i at the planes of term t and 0
# elsewhere; sums of such products are whole numbers below 256, and exact too. A term without planes is the constant 1.
_UNPACK_WEIGHT = """
UnpackWeight <weight_shape, weight_terms> (bits, scale) => (weight) {
  shape = Constant <value_ints: ints = @weight_shape> ()
  terms = Constant <value_ints: ints = @weight_terms> ()
  axis_0 = Constant <value_ints: ints = [0]> ()
  axis_1 = Constant <value_ints: ints = [1]> ()
  axis_2 = Constant <value_ints: ints = [2]> ()
  i0 = Constant <value_int: int = 0> ()
  i1 = Constant <value_int: int = 1> ()
  i256 = Constant <value_int: int = 256> ()
  zero = Constant <value_float: float = 0.0> ()
  one = Constant <value_float: float = 1.0> ()
  two = Constant <value_float: float = 2.0> ()
  half = Constant <value_float: float = 0.5> ()
  places = Constant <value_floats: floats = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]> ()
  all_bytes = Range (i0, i256, i1)
  byte_values = Cast <to: int = 1> (all_bytes)
  byte_column = Unsqueeze (byte_values, axis_1)
  parts_of_byte = Div (byte_column, places)
  shifted = Floor (parts_of_byte)
  halves = Mul (shifted, half)
  above = Floor (halves)
  evens = Mul (above, two)
  digits = Sub (shifted, evens)
  twice = Mul (digits, two)
  signs_of_byte = Sub (one, twice)
  first_plane = CumSum <exclusive: int = 1> (terms, i0)
  planes = ReduceSum <keepdims: int = 0> (terms)
  plane = Range (i0, planes, i1)
  first_plane_column = Unsqueeze (first_plane, axis_1)
  terms_column = Unsqueeze (terms, axis_1)
  exponent = Sub (plane, first_plane_column)
  started = GreaterOrEqual (exponent, i0)
  unfinished = Less (exponent, terms_column)
  inside = And (started, unfinished)
  exponent_float = Cast <to: int = 1> (exponent)
  power = Pow (two, exponent_float)
  powers = Where (inside, power, zero)
  by_output = Transpose <perm: ints = [1, 0, 2]> (bits)
  which = Cast <to: int = 6> (by_output)
  signs_8 = Gather <axis: int = 0> (signs_of_byte, which)
  join_bytes = Constant <value_ints: ints = [0, 0, -1]> ()
  signs = Reshape (signs_8, join_bytes)
  odd = MatMul (powers, signs)
  scale_by_output = Transpose <perm: ints = [1, 0]> (scale)
  scale_rows = Unsqueeze (scale_by_output, axis_1)
  varying = MatMul (scale_rows, odd)
  no_planes = Equal (terms_column, i0)
  constant_terms = Cast <to: int = 1> (no_planes)
  constants = MatMul (scale_rows, constant_terms)
  spare = Add (varying, constants)
  last = Constant <value_ints: ints = [9223372036854775807]> ()
  tail = Slice (shape, axis_1, last)
  depth = ReduceProd <keepdims: int = 1> (tail)
  rows = Slice (spare, axis_0, depth, axis_2)
  weight = Reshape (rows, shape)
}
"""

# (code + low / step) * (scale * odd) is the value of the input times the value of the weight: `scale` holds the step.
# Zero padding of that sum is exact, because the convolution pads what is already a value.
_WHOLE = """
  whole = Cast <to: int = 1> (codes)
  weight = binarize.UnpackWeight <weight_shape: ints = @weight_shape, weight_terms: ints = @weight_terms> (bits, scale)
"""

# Of several terms, the sum of the digits, each as many times the main step as its own is: looked up for each code. The
# rows of `scale` that hold the main step are the weight's.
_WHOLE_OF_TERMS = """
  last = Constant <value_ints: ints = [-1]> ()
  i0 = Constant <value_int: int = 0> ()
  i1 = Constant <value_int: int = 1> ()
  planes = Constant <value_int: int = @activation_bits> ()
  half = Constant <value_float: float = 0.5> ()
  two = Constant <value_float: float = 2.0> ()
  places = Range (i0, planes, i1)
  exponents = Cast <to: int = 1> (places)
  powers = Pow (two, exponents)
  planes_float = Cast <to: int = 1> (planes)
  count_float = Pow (two, planes_float)
  count = Cast <to: int = 7> (count_float)
  all_codes = Range (i0, count, i1)
  code_values = Cast <to: int = 1> (all_codes)
  column = Unsqueeze (code_values, last)
  parts_of_code = Div (column, powers)
  shifted = Floor (parts_of_code)
  halves = Mul (shifted, half)
  above = Floor (halves)
  evens = Mul (above, two)
  digits = Sub (shifted, evens)
  steps = Constant <value_floats: floats = @steps> ()
  main_step = Constant <value_float: float = @step> ()
  multiples = Div (steps, main_step)
  value_of_code = MatMul (digits, multiples)
  which = Cast <to: int = 6> (codes)
  whole = Gather <axis: int = 0> (value_of_code, which)
  main_term = Constant <value_int: int = @main_term> ()
  row_axis = Constant <value_ints: ints = [0]> ()
  first_row = Unsqueeze (main_term, row_axis)
  row_step = Unsqueeze (planes, row_axis)
  end = Constant <value_ints: ints = [9223372036854775807]> ()
  main_scale = Slice (scale, first_row, end, row_axis, row_step)
  weight = binarize.UnpackWeight <weight_shape: ints = @weight_shape, weight_terms: ints = @weight_terms>
    (bits, main_scale)
"""

_INPUT = """
  low = Constant <value_float: float = @low> ()
  step = Constant <value_float: float = @step> ()
  minimum = Constant <value_float: float = @minimum> ()
  maximum = Constant <value_float: float = @maximum> ()
  offset = Div (low, step)
  value = Add (whole, offset)
"""

_CONVOLVE = (
    _INPUT
    + """
  product = Conv <strides: ints = @strides, pads: ints = @pads, dilations: ints = @dilations, group: int = @group>
    (value, weight, bias)
"""
)

# The weight has its outputs first; a transposed convolution wants its inputs there, group by group.
_SPREAD = (
    _INPUT
    + """
  by_group = Constant <value_ints: ints = @by_group> ()
  inputs_first = Constant <value_ints: ints = @inputs_first> ()
  split = Reshape (weight, by_group)
  turned = Transpose <perm: ints = @perm> (split)
  kernel = Reshape (turned, inputs_first)
  product = ConvTranspose <strides: ints = @strides, pads: ints = @pads, dilations: ints = @dilations,
    group: int = @group, output_padding: ints = @output_padding> (value, kernel, bias)
"""
)

_MULTIPLY = (
    _INPUT
    + """
  columns = Transpose <perm: ints = [1, 0]> (weight)
  unbiased = MatMul (value, columns)
  product = Add (unbiased, bias)
"""
)

_INPUT_ATTRIBUTES = "low, step, activation_bits, weight_shape, weight_terms, minimum, maximum, work, version"
_CONV_ATTRIBUTES = f"{_INPUT_ATTRIBUTES}, strides, pads, dilations, group, y_inner, residual_inner"

_SPREAD_ATTRIBUTES = f"{_CONV_ATTRIBUTES}, by_group, perm, inputs_first, output_padding"

_PACKED_CONV2D_THRESHOLD = f"""
PackedConv2dThreshold <{_CONV_ATTRIBUTES}, reader_work> (codes, bits, scale, bias, thresholds) => (digits) {{
{_WHOLE}{_CONVOLVE}
  y = Clip (product, minimum, maximum)
  below = Less (y, thresholds)
  reached = Not (below)
  digits = Cast <to: int = 2> (reached)
}}
"""

_PACKED_CONV2D_UNIFORM = f"""
PackedConv2dUniform <{_CONV_ATTRIBUTES}, reader_low, reader_inverse_step, reader_bits, reader_groups, reader_work>
    (codes, bits, scale, bias) => (answer) {{
{_WHOLE}{_CONVOLVE}
  y = Clip (product, minimum, maximum)
  answer = binarize.PackUniform <low: float = @reader_low, inverse_step: float = @reader_inverse_step,
    bits: int = @reader_bits, groups: int = @reader_groups, rows: int = 0, work: ints = @reader_work, x_inner: int = 0,
    version: int = @version> (y)
}}
"""


def _layer(name: str, attributes: str, product: str) -> dict[str, str]:
    """Return the bodies of a layer: with codes of one term and of several, without and with a residual."""
    made = {}
    for terms, more, whole in (("", "", _WHOLE), ("Terms", ", steps, main_term", _WHOLE_OF_TERMS)):
        for added in ("", "Add"):
            inputs = "codes, bits, scale, bias, residual" if added else "codes, bits, scale, bias"
            total, y = ("sum = Add (product, residual)", "sum") if added else ("", "product")
            made[f"{name}{terms}{added}"] = f"""
{name}{terms}{added} <{attributes}{more}> ({inputs}) => (y) {{
{whole}{product}
  {total}
  y = Clip ({y}, minimum, maximum)
}}
"""
    return made


_ND_BODIES: dict[str, str] = {
    "PackUniformNd": _PACK_UNIFORM.replace("PackUniform", "PackUniformNd"),
    "PackThresholdsNd": _PACK_THRESHOLDS.replace("PackThresholds", "PackThresholdsNd"),
    "PackTermsNd": _PACK_TERMS.replace("PackTerms", "PackTermsNd"),
    **_layer("PackedConvNd", _CONV_ATTRIBUTES, _CONVOLVE),
    **_layer("PackedConvTranspose", _SPREAD_ATTRIBUTES, _SPREAD),
}

# Those that others call come first.
_BODIES: dict[str, str] = {
    "UnpackWeight": _UNPACK_WEIGHT,
    "PackUniform": _PACK_UNIFORM,
    "PackThresholds": _PACK_THRESHOLDS,
    "PackTerms": _PACK_TERMS,
    "MaxPool2d": _MAX_POOL,
    "PackedConv2dThreshold": _PACKED_CONV2D_THRESHOLD,
    "PackedConv2dUniform": _PACKED_CONV2D_UNIFORM,
    **_layer("PackedConv2d", _CONV_ATTRIBUTES, _CONVOLVE),
    **_layer("PackedLinear", _INPUT_ATTRIBUTES, _MULTIPLY),
    **_ND_BODIES,
}

OPERATIONS = frozenset(_BODIES)
"""Names of all operations of the domain."""

WITHOUT_KERNELS = frozenset({"UnpackWeight", *_ND_BODIES})
"""Those that our library for ONNX Runtime leaves to their bodies: a file has to keep these."""


def is_nd(node: "NodeProto") -> bool:
    """Whether a node of the domain is of the family of other than two dimensions, and of transposed convolutions."""
    return node.domain == DOMAIN and node.op_type in _ND_BODIES


def function_protos(used: set[str], opset: int) -> "list[FunctionProto]":
    """Return the bodies of the operations in ``used``, and of those that they call.

    Args:
        used: names of operations of the domain.
        opset: version of the standard operations that the bodies are written in, at least 18.
    """
    import onnx.parser

    wanted = used | ({"UnpackWeight"} if any(name.startswith("Packed") for name in used) else set())
    wanted |= {"PackUniform"} if "PackedConv2dUniform" in used else set()
    header = f'<domain: "{DOMAIN}", opset_import: ["" : {opset}, "{DOMAIN}" : {VERSION}]>'
    return [onnx.parser.parse_function(header + body) for name, body in _BODIES.items() if name in wanted]
