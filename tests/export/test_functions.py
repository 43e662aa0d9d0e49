"""The operations' bodies against the contract of the packed form, layer by layer, in ONNX Runtime and onnx itself."""

import dataclasses

import numpy as np
import onnx.checker
import onnx.helper
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from packed_layers import arrays_of, geometries, image, layer_of, layer_of_terms, levels, several, stand_in
from torch.nn import functional as F

import binarize
from binarize.export.functions import DOMAIN, OPERATIONS, VERSION, WITHOUT_KERNELS, function_protos
from binarize.export.stand_ins import digit_threshold
from binarize.layers.packed import Geometry, PackActivation, PackedConv2d, PackedLinear

ROUNDING = 2.0**-24
OPSET = 18


def model_of(kind, attributes, arrays, output=TensorProto.FLOAT, opset=OPSET):
    """One node of the domain on the given inputs; what is called codes and x comes at run time, the rest is stored."""
    fed = {"x", "codes", "residual"} & set(arrays)
    slots = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(arrays[name].dtype), arrays[name].shape
        )
        for name in arrays
        if name in fed
    ]
    node = onnx.helper.make_node(kind, list(arrays), ["y"], domain=DOMAIN, **attributes)
    stored = [onnx.numpy_helper.from_array(arrays[name], name) for name in arrays if name not in fed]
    answer = onnx.helper.make_tensor_value_info("y", output, [None] * next(iter(arrays.values())).ndim)
    graph = onnx.helper.make_graph([node], "one", slots, [answer], stored)
    opsets = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid(DOMAIN, VERSION)]
    functions = function_protos({kind}, opset)
    model = onnx.helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model, {name: arrays[name] for name in fed}


def run(kind, attributes, arrays, output=TensorProto.FLOAT):
    model, feed = model_of(kind, attributes, arrays, output)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, feed)[0])


def contract(layer, codes, convolve):
    """The packed form's definition in float64: value of the input times value of the weight, and the rounding allowed.

    Every product takes part in at most k + 1 additions and carries the roundings of offset, input and weight (one per
    term and two more), and the result takes three more (residual, scale, bias): k + t + 8 of 2**-24 each, relative to
    the same sum of absolute values, in which low counts apart because code + low / step may cancel.
    """
    geometry, activation = layer.geometry, layer.activation
    unit = (layer.scale.double() / activation.step[0]).reshape(-1, geometry.out_channels, 1, 1, 1)
    odd = layer.odd().double()
    value = activation.low + activation.step[0] * codes.double()
    sizes = abs(activation.low) + activation.step[0] * codes.double()
    wanted = convolve(value, (unit * odd).sum(0)) + per_output(layer, layer.bias)
    size = convolve(sizes, (unit * odd).abs().sum(0)) + per_output(layer, layer.bias.abs())
    return wanted, size * ROUNDING * (geometry.depth + len(odd) + 8)


def per_output(layer, values):
    return values.double().reshape(-1, 1, 1) if isinstance(layer, PackedConv2d) else values.double()


def convolution(geometry):
    return lambda x, weight: F.conv2d(
        x, weight, None, geometry.stride, geometry.padding, geometry.dilation, geometry.groups
    )


@settings(max_examples=40)
@given(geometries(), st.floats(-2, 2, width=32), st.floats(2**-6, 2, width=32), st.integers(0, 2**31))
def test_a_convolution_is_that_of_the_values_for_any_geometry(geometry, low, step, seed):
    torch.manual_seed(seed)
    layer = layer_of(geometry, low, step)
    x = image(geometry, low, step)
    node = stand_in(layer)

    codes = run("PackUniform", node.pack.attributes, {"x": x.numpy()}, TensorProto.UINT8)
    wanted, rounding = contract(layer, codes, convolution(geometry))
    residual = torch.randn(wanted.shape)
    plain = run("PackedConv2d", node.attributes, arrays_of(layer, codes=codes))
    added = run("PackedConv2dAdd", node.attributes, arrays_of(layer, codes=codes, residual=residual))

    assert torch.equal(codes.float(), layer.activation.codes(x)[0])
    assert ((plain - wanted.clamp(-3, 40)).abs() <= rounding).all()
    assert ((added - (wanted + residual).clamp(-3, 40)).abs() <= rounding + residual.abs() * 4 * ROUNDING).all()


@settings(max_examples=10)
@given(geometries(linear=True), st.floats(-2, 2, width=32), st.floats(2**-6, 2, width=32), st.integers(0, 2**31))
def test_a_linear_layer_is_the_product_of_the_values_over_the_last_axis(geometry, low, step, seed):
    torch.manual_seed(seed)
    layer = layer_of(geometry, low, step, PackedLinear)
    node = stand_in(layer)

    for leading in [(3,), (2, 3), (1, 2, 2)]:
        codes = torch.randint(0, 2 ** geometry.activation_terms[0], (*leading, geometry.channels), dtype=torch.uint8)
        wanted, rounding = contract(layer, codes, lambda x, weight: F.linear(x, weight.flatten(1)))
        residual = torch.randn(wanted.shape)
        plain = run("PackedLinear", node.attributes, arrays_of(layer, codes=codes))
        added = run("PackedLinearAdd", node.attributes, arrays_of(layer, codes=codes, residual=residual))

        assert ((plain - wanted.clamp(-3, 40)).abs() <= rounding).all()
        assert ((added - (wanted + residual).clamp(-3, 40)).abs() <= rounding + residual.abs() * 4 * ROUNDING).all()


@settings(max_examples=25)
@given(geometries(), st.floats(-2, 2, width=32), st.floats(2**-6, 2, width=32), st.booleans(), st.integers(0, 2**31))
def test_a_convolution_with_a_reader_answers_in_its_digits(geometry, low, step, uniform, seed):
    torch.manual_seed(seed)
    layer = layer_of(geometry, low, step)
    own = torch.randn(1, geometry.out_channels) * 10
    layer.reader = PackActivation((1,), levels(-5.0, 10.0, None if uniform else own))
    codes = torch.randint(0, 2 ** geometry.activation_terms[0], image(geometry, low, step).shape, dtype=torch.uint8)
    node = stand_in(layer)

    wanted, rounding = contract(layer, codes, convolution(geometry))
    threshold = digit_threshold(layer.reader).reshape(-1, 1, 1)
    arrays = arrays_of(layer, codes=codes, thresholds=node.thresholds)
    digits = run("PackedConv2dThreshold", {**node.attributes, "reader_work": [1, 1]}, arrays, TensorProto.UINT8)

    decided = (wanted.clamp(-3, 40) - threshold).abs() > rounding
    assert torch.equal(digits[decided] > 0, layer.reader.codes(wanted.clamp(-3, 40).float())[0][decided] > 0)


@given(st.floats(-4, 4, width=32), st.floats(2**-20, 8, width=32), st.integers(-3, 3))
def test_the_threshold_of_a_one_bit_code_gives_its_very_digits(low, step, offset):
    reader = PackActivation((1,), levels(low, step))
    threshold = digit_threshold(reader)
    x = threshold.clone()
    for _ in range(abs(offset)):
        x = torch.nextafter(x, torch.tensor(float("inf") if offset > 0 else -float("inf")))

    assert (reader.codes(x)[0] > 0).equal(~(x < threshold))


@pytest.mark.parametrize("columns", [1, 6])
@pytest.mark.parametrize("rows", [False, True])
def test_thresholds_decide_per_tensor_or_per_channel_and_nan_is_above(columns, rows):
    pack = PackActivation((1,), levels(-1.0, 2.0, torch.randn(1, columns)), rows=rows)
    node = stand_in(pack)
    x = torch.randn(*((4, 5, 6) if rows else (2, 6, 4, 5)))
    x.flatten()[3] = float("nan")

    codes = run(
        "PackThresholds", node.attributes, {"x": x.numpy(), "thresholds": node.thresholds.numpy()}, TensorProto.UINT8
    )

    assert torch.equal(codes.float(), pack.codes(x, axis=-1 if rows else 1)[0])


@pytest.mark.parametrize("opset", [18, 21, 23])
def test_onnx_reference_evaluator_runs_the_same_bodies(opset):
    geometry = Geometry(6, 4, (3, 2), (2, 1), (1, 2), (1, 2), 2, (3, 0, 2), (5,))
    layer = layer_of(geometry, -0.5, 0.25)
    codes = torch.randint(0, 32, (2, 6, 7, 8), dtype=torch.uint8)
    wanted, rounding = contract(layer, codes, convolution(geometry))

    model, feed = model_of("PackedConv2d", stand_in(layer).attributes, arrays_of(layer, codes=codes), opset=opset)
    (y,) = ReferenceEvaluator(model).run(None, feed)

    assert ((torch.from_numpy(y) - wanted.clamp(-3, 40)).abs() <= rounding).all()
    assert y.dtype == np.float32


def test_a_runtime_that_folds_constants_is_left_with_one_convolution(tmp_path):
    layer = layer_of(Geometry(8, 8, (3, 3), padding=(1, 1), weight_terms=(4,), activation_terms=(4,)), 0.0, 0.25)
    codes = torch.zeros(1, 8, 5, 5, dtype=torch.uint8)
    model, _ = model_of("PackedConv2d", stand_in(layer).attributes, arrays_of(layer, codes=codes))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "folded.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    assert [node.op_type for node in onnx.load(tmp_path / "folded.onnx").graph.node] == ["Cast", "Conv", "Clip"]


@pytest.mark.parametrize("columns", [1, 6])
@pytest.mark.parametrize("rows", [False, True])
def test_codes_of_several_terms_hold_the_digit_of_each(columns, rows):
    pack = several(5, rows, columns)
    x = torch.randn(*((4, 5, 6) if rows else (2, 6, 4, 5)))
    x.flatten()[3] = float("nan")
    node = stand_in(pack)

    arrays = {"x": x.numpy(), "thresholds": node.thresholds.numpy()}
    codes = run("PackTerms", node.attributes, arrays, TensorProto.UINT8)

    digits = pack.codes(x, axis=-1 if rows else 1)
    assert torch.equal(codes.float(), (digits * 2.0 ** torch.arange(5).reshape(-1, *[1] * x.dim())).sum(0))


@settings(max_examples=15)
@given(geometries(), st.integers(2, 8), st.booleans(), st.integers(0, 2**31))
def test_a_layer_of_several_terms_is_that_of_the_values(geometry, count, linear, seed):
    torch.manual_seed(seed)
    if linear:
        geometry = Geometry(geometry.channels, geometry.out_channels, weight_terms=geometry.weight_terms)
    geometry = dataclasses.replace(geometry, activation_terms=(1,) * count)
    layer, unit, odd = layer_of_terms(geometry, PackedLinear if linear else PackedConv2d)
    step = torch.tensor(layer.activation.step)
    x = torch.randn(3, geometry.channels) if linear else image(geometry, 0.0, 1.0)
    node = stand_in(layer)

    names = {"x": x.numpy(), "thresholds": node.pack.thresholds.numpy()}
    codes = run("PackTerms", node.pack.attributes, names, TensorProto.UINT8)
    residual = torch.randn(layer(x).shape)
    name = f"Packed{'Linear' if linear else 'Conv2d'}Terms"
    plain = run(name, node.attributes, arrays_of(layer, codes=codes))
    added = run(f"{name}Add", node.attributes, arrays_of(layer, codes=codes, residual=residual))

    # Both sums take k products of t terms; each term of both sums carries at most k + 2 t + 8 roundings of its size.
    sizes = float(
        (unit.abs().unsqueeze(2) * odd.flatten(2).abs()).sum() * (step.abs().sum() + abs(layer.activation.low))
    )
    bound = (geometry.depth + 2 * count * len(odd) + 8) * ROUNDING * (2 * sizes + 10.0)
    assert ((plain - layer(x)).abs() <= bound).all()
    assert ((added - layer(x) - residual).abs() <= bound).all()


def test_the_library_has_kernels_for_all_operations_but_those_that_are_said_to_run_their_bodies():
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(binarize.onnxruntime_library())
    missing = set()
    for kind in OPERATIONS:
        node = onnx.helper.make_node(kind, ["x"], ["y"], domain=DOMAIN)
        slots = [onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
        graph = onnx.helper.make_graph([node], "one", slots[:1], slots[1:])
        opsets = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(DOMAIN, VERSION)]
        model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
        with pytest.raises(Exception, match="ONNXRuntimeError") as refused:  # the node lacks inputs and attributes
            onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        if f"{DOMAIN}:{kind}(-1) is not a registered" in str(refused.value):
            missing.add(kind)
    assert missing == WITHOUT_KERNELS
