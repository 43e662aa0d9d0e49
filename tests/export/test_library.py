"""ONNX Runtime with our library: the same bits as the packed form, in every form of operands and by every level."""

import dataclasses
import gc
import itertools
import threading

import numpy as np
import onnx.helper
import onnxruntime
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from packed_layers import arrays_of, geometries, image, layer_of, layer_of_terms, levels, several, stand_in

import binarize
from binarize.export.functions import DOMAIN, VERSION, function_protos
from binarize.export.hints import add_hints
from binarize.kernels.dispatch import LEVELS
from binarize.layers.packed import Geometry, PackActivation, PackedLinear

WAYS = [
    (level.name, route)
    for level in LEVELS
    for route, form in {"popcount": "planes", "int8": "codes"}.items()
    if level.missing is None and form in level.forms and level.name != "reference"
]
WAYS.append(("neon,scalar", "int8"))


@pytest.fixture(params=WAYS, ids="-".join)
def way(request, monkeypatch):
    """Force a level and a route in the library; the packed form next to it takes its own way."""

    def force(on):
        for variable, value in zip(("BINARIZE_KERNEL", "BINARIZE_ROUTE"), request.param, strict=True):
            if on:
                monkeypatch.setenv(variable, value)
            else:
                monkeypatch.delenv(variable, raising=False)

    return force, request.param[1]


def options(threads=1):
    made = onnxruntime.SessionOptions()
    made.register_custom_ops_library(binarize.onnxruntime_library())
    made.log_severity_level, made.intra_op_num_threads = 4, threads
    return made


def model_of(nodes, stored, fed, output):
    """A model of nodes (operation, inputs, output, attributes) whose last output is of type ``output``."""
    made = [onnx.helper.make_node(kind, names, [y], y, domain=DOMAIN, **given) for kind, names, y, given in nodes]
    slots = [onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * x.ndim) for name, x in fed.items()]
    answer = onnx.helper.make_tensor_value_info(nodes[-1][2], output, None)
    held = [onnx.numpy_helper.from_array(x, name) for name, x in stored.items()]
    graph = onnx.helper.make_graph(made, "some", slots, [answer], held)
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid(DOMAIN, VERSION)]
    functions = function_protos({node.op_type for node in made}, 18)
    return onnx.helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)


def open_session(model, threads=1):
    return onnxruntime.InferenceSession(model.SerializeToString(), options(threads), providers=["CPUExecutionProvider"])


def run(nodes, stored, fed, output=TensorProto.FLOAT, hints=True):
    model = model_of(nodes, stored, fed, output)
    if hints:
        add_hints(model)
    (y,) = open_session(model).run(None, fed)
    return torch.from_numpy(y)


def layer_model(layer, x, residual=None):
    """The nodes of a layer on floats with what they hold and are fed; of a residual, if there is one."""
    node = stand_in(layer)
    stored = {name: value for name, value in arrays_of(layer, codes=torch.empty(0)).items() if name != "codes"}
    packing = ["x"]
    if node.pack.thresholds is not None:
        stored["levels"] = node.pack.thresholds.numpy()
        packing.append("levels")
    kinds = {True: "PackThresholds", False: "PackUniform"}
    pack_kind = "PackTerms" if node.terms else kinds[node.pack.thresholds is not None]
    name = f"Packed{'Linear' if isinstance(layer, PackedLinear) else 'Conv2d'}{node.terms}"
    fed = {"x": x.numpy()}
    reads = ["c", "bits", "scale", "bias"]
    if residual is not None:
        fed["residual"] = residual.contiguous().numpy()
        name, reads = f"{name}Add", [*reads, "residual"]
    nodes = [(pack_kind, packing, "c", node.pack.attributes), (name, reads, "y", node.attributes)]
    return nodes, stored, fed


def same(seen, wanted):
    return seen.shape == wanted.shape and torch.equal(seen, wanted.contiguous())


def with_own_thresholds(layer):
    columns = layer.geometry.channels
    layer.activation = PackActivation((1,), levels(-1.0, 2.0, torch.randn(1, columns)), groups=layer.geometry.groups)


@settings(max_examples=12)
@given(geometries(), st.floats(-2, 2, width=32), st.floats(2**-6, 2, width=32), st.integers(0, 2**31))
def check_convolution(way, geometry, low, step, seed):
    force, _ = way
    torch.manual_seed(seed)
    several_terms = seed % 3 == 0
    if several_terms:
        geometry = dataclasses.replace(geometry, activation_terms=(1,) * (seed % 5 + 2))
        layer = layer_of_terms(geometry)[0]
    elif seed % 3 == 1:
        layer = layer_of(dataclasses.replace(geometry, activation_terms=(1,)), -1.0, 2.0)
        with_own_thresholds(layer)
    else:
        layer = layer_of(geometry, low, step)
    x = image(layer.geometry, low, step)
    wanted = layer(x)
    residual = torch.randn(wanted.shape)
    added = layer(x, residual)

    force(True)
    assert same(run(*layer_model(layer, x)), wanted)
    assert same(run(*layer_model(layer, x, residual)), added)
    force(False)


def test_a_convolution_gives_the_bits_of_the_packed_form(way):
    check_convolution(way)


@settings(max_examples=8)
@given(geometries(linear=True), st.floats(-2, 2, width=32), st.floats(2**-6, 2, width=32), st.integers(0, 2**31))
def check_linear(way, geometry, low, step, seed):
    force, _ = way
    torch.manual_seed(seed)
    if seed % 2:
        layer = layer_of_terms(dataclasses.replace(geometry, activation_terms=(1,) * (seed % 5 + 2)), PackedLinear)[0]
    else:
        layer = layer_of(geometry, low, step, PackedLinear)
        layer.activation.rows = True
    for leading in [(3,), (2, 3), (1, 2, 2)]:
        x = torch.randn(*leading, geometry.channels)
        wanted = layer(x)
        residual = torch.randn(wanted.shape)
        added = layer(x, residual)
        force(True)
        assert same(run(*layer_model(layer, x)), wanted)
        assert same(run(*layer_model(layer, x, residual)), added)
        force(False)


def test_a_linear_layer_gives_the_bits_of_the_packed_form(way):
    check_linear(way)


@settings(max_examples=12)
@given(geometries(), st.sampled_from(["one plane", "own thresholds", "codes", "grouped codes"]), st.integers(0, 2**31))
def check_reader(way, geometry, reader, seed):
    force, route = way
    torch.manual_seed(seed)
    low, step = [(0.0, 0.25), (-1.5, 0.125)][seed % 2]
    layer = layer_of(geometry, low, step)
    outputs = geometry.out_channels
    layer.reader = {
        "one plane": lambda: PackActivation((1,), levels(-5.0, 10.0)),
        "own thresholds": lambda: PackActivation((1,), levels(-5.0, 10.0, torch.randn(1, outputs) * 10)),
        "codes": lambda: PackActivation((3,), levels(-3.0, 2.5)),
        "grouped codes": lambda: PackActivation((5,), levels(0.0, 0.7), groups=geometry.groups),
    }[reader]()
    layer.reader.route = route
    x = image(geometry, low, step)
    wanted = layer(x).flatten().view(torch.uint8)

    nodes, stored, fed = layer_model(layer, x)
    node = stand_in(layer)
    if node.encodes:
        code = {f"reader_{name}": node.reader.attributes[name] for name in ("low", "inverse_step", "bits", "groups")}
        nodes[-1] = ("PackedConv2dUniform", nodes[-1][1], "y", {**node.attributes, **code, "reader_work": [1, 1]})
    else:
        stored["thresholds"] = node.thresholds.numpy()
        given = {**node.attributes, "reader_work": [1, 1]}
        nodes[-1] = ("PackedConv2dThreshold", [*nodes[-1][1], "thresholds"], "y", given)
    force(True)
    seen = run(nodes, stored, fed, TensorProto.UINT8, hints=False)
    force(False)

    assert torch.equal(seen.flatten(), wanted)


def test_a_convolution_answers_in_the_very_codes_of_its_reader(way):
    check_reader(way)


@pytest.mark.parametrize("columns", [1, 6])
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("kind", ["uniform", "thresholds", "terms"])
def test_packing_gives_the_bytes_of_the_packed_form(way, kind, rows, columns):
    force, route = way
    pack = {
        "uniform": lambda: PackActivation((4,), levels(-1.0, 0.2), rows=rows, groups=1 if rows else 3),
        "thresholds": lambda: PackActivation((1,), levels(-1.0, 2.0, torch.randn(1, columns)), rows=rows),
        "terms": lambda: several(5, rows, columns),
    }[kind]()
    pack.route = route
    x = torch.randn(*((4, 5, 6) if rows else (2, 6, 4, 5)))
    wanted = pack(x).flatten().view(torch.uint8)
    node = stand_in(pack)

    stored = {} if node.thresholds is None else {"levels": node.thresholds.numpy()}
    name = {"uniform": "PackUniform", "thresholds": "PackThresholds", "terms": "PackTerms"}[kind]
    force(True)
    seen = run([(name, ["x", *stored], "y", node.attributes)], stored, {"x": x.numpy()}, TensorProto.UINT8, hints=False)

    assert torch.equal(seen.flatten(), wanted)


def chain():
    """Two convolutions and a residual between them: floats that pass only between our own nodes."""
    first = layer_of(Geometry(12, 20, (3, 3), padding=(1, 1), weight_terms=(3,), activation_terms=(4,)), -0.5, 0.25)
    second = layer_of(Geometry(20, 20, (3, 3), padding=(1, 1), weight_terms=(2,), activation_terms=(4,)), 0.0, 0.5)
    nodes, stored, fed = layer_model(first, torch.randn(3, 12, 9, 7))
    node = stand_in(second)
    names = [f"{name}2" for name in ("bits", "scale", "bias")]
    stored |= dict(zip(names, (getattr(second, name[:-1]).numpy() for name in names), strict=True))
    nodes += [
        ("PackUniform", ["y"], "c2", node.pack.attributes),
        ("PackedConv2dAdd", ["c2", *names, "y"], "z", node.attributes),
    ]
    x = torch.from_numpy(fed["x"])
    return nodes, stored, fed, second(first(x), first(x))


def test_floats_between_our_own_nodes_stay_in_the_kernels_layout(way):
    force, _ = way
    nodes, stored, fed, wanted = chain()
    model = model_of(nodes, stored, fed, TensorProto.FLOAT)
    add_hints(model)
    given = {
        node.name: {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        for node in model.graph.node
    }
    assert (given["y"]["y_inner"], given["c2"]["x_inner"], given["z"]["residual_inner"]) == (1, 1, 1)
    assert (given["z"]["y_inner"], given["c"]["x_inner"]) == (0, 0)
    assert given["c"]["work"] == given["y"]["work"] != given["c2"]["work"] == given["z"]["work"]

    force(True)
    assert same(torch.from_numpy(open_session(model, 2).run(None, fed)[0]), wanted)


def test_eight_threads_on_two_sessions_give_the_same_bits_and_memory_stays_constant():
    nodes, stored, fed, wanted = chain()
    model = model_of(nodes, stored, fed, TensorProto.FLOAT)
    add_hints(model)
    sessions = [open_session(model, threads) for threads in (1, 2)]
    wrong = []

    def work(number, turns):
        session = sessions[number % 2]
        for _ in range(turns):
            (y,) = session.run(None, fed)
            if not np.array_equal(y, wanted.numpy()):
                wrong.append(number)

    def round_of(turns):
        threads = [threading.Thread(target=work, args=(number, turns)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        gc.collect()
        return psutil.Process().memory_info().rss

    held = [round_of(50), *(round_of(250) for _ in range(3))]

    assert wrong == []
    # A leak of one output a run would be 30 MB in every round; what the allocator keeps for new threads comes once.
    assert min(after - before for before, after in itertools.pairwise(held)) < 8 * 2**20
