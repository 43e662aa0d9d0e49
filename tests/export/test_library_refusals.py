"""What does not fit is refused by a clear status of ONNX Runtime, never by a crash."""

import ctypes
import shutil

import numpy as np
import onnx.helper
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from packed_layers import arrays_of, layer_of, layer_of_terms, stand_in

import binarize
from binarize.errors import ExportError
from binarize.export.functions import DOMAIN
from binarize.layers.packed import Geometry

GEOMETRY = Geometry(8, 12, (3, 3), padding=(1, 1), groups=2, weight_terms=(3, 1), activation_terms=(4,))


def options():
    made = onnxruntime.SessionOptions()
    made.register_custom_ops_library(binarize.onnxruntime_library())
    made.log_severity_level, made.intra_op_num_threads = 4, 1
    return made


def layer_parts(terms=False):
    torch.manual_seed(0)
    if terms:
        layer = layer_of_terms(Geometry(8, 12, (3, 3), weight_terms=(2,), activation_terms=(1, 1, 1)))[0]
    else:
        layer = layer_of(GEOMETRY, -0.5, 0.25)
    node = stand_in(layer)
    stored = {name: value for name, value in arrays_of(layer, codes=torch.empty(0)).items() if name != "codes"}
    attributes = dict(node.attributes)
    pack = dict(node.pack.attributes)
    if node.pack.thresholds is not None:
        stored["levels"] = node.pack.thresholds.numpy()
    return pack, attributes, stored


def open_layer(pack, attributes, stored, kind="PackedConv2d", between=(), element=TensorProto.FLOAT, given=None):
    packing = ["x", "levels"] if "levels" in stored else ["x"]
    reads = ["c", "bits", "scale", "bias"]
    make = onnx.helper.make_node
    nodes = [
        make("PackTerms" if "levels" in stored else "PackUniform", packing, ["c"], "pack", domain=DOMAIN, **pack),
        *between,
        make(kind, [between[-1].output[0], *reads[1:]] if between else reads, ["y"], "layer1.conv", domain=DOMAIN,
             **attributes),
    ]  # fmt: skip
    slot = onnx.helper.make_tensor_value_info("x", element, [None, None, None, None])
    answer = onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    held = [onnx.numpy_helper.from_array(x, name) for name, x in stored.items() if x is not None]
    graph = onnx.helper.make_graph(nodes, "some", [slot], [answer], held)
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid(DOMAIN, 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), given or options(), providers=["CPUExecutionProvider"]
    )


def test_a_sound_file_loads_and_runs():
    session = open_layer(*layer_parts())

    assert session.run(None, {"x": np.zeros((2, 8, 5, 4), np.float32)})[0].shape == (2, 12, 5, 4)


def test_a_file_of_a_newer_version_of_the_domain_is_refused_with_the_remedy():
    pack, attributes, stored = layer_parts()

    with pytest.raises(
        Exception, match=r"binarize.PackedConv2d 'layer1.conv'.*version 2 of the domain.*newer binarize"
    ):
        open_layer(pack, attributes | {"version": 2}, stored)
    with pytest.raises(Exception, match="version 7 of the domain"):
        open_layer(pack | {"version": 7}, attributes, stored)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_shape": [12, 4, 3]}, r"weight_shape is \(12, 4, 3\)"),
        ({"weight_shape": [12, 5, 3, 3]}, r"bits have the shape \(4, 12, 5\), not \(4, 12, 6\)"),
        ({"weight_shape": [12, 2**40, 3, 3]}, "weight_shape is"),
        ({"weight_shape": [12, 2**30, 3, 3]}, "too large"),
        ({"weight_terms": [3, 9]}, "a weight term has 9 planes"),
        ({"weight_terms": [0, 0]}, "its weight has 0 planes"),
        ({"weight_terms": [3, 1, 1]}, r"scale have the shape|bits have the shape"),
        ({"activation_bits": 9}, "activation_bits is 9, not 1 to 8"),
        ({"strides": [0, 1]}, r"strides are \(0, 1\)"),
        ({"pads": [1, 1, 0, 1]}, r"pads are \(1, 1, 0, 1\), which differ by side"),
        ({"pads": [-1, 0, -1, 0]}, "pads are"),
        ({"dilations": [2**40, 1]}, "dilations are"),
        ({"group": 5}, "groups do not divide"),
        ({"group": 2**31}, "group is 2147483648"),
        ({"work": [1]}, r"work is \(1\)"),
        ({"work": [0, -3]}, r"work is \(0, -3\)"),
        ({"low": None}, "no number 'low'"),
        ({"pads": None}, "no whole numbers 'pads'"),
    ],
)
def test_attributes_that_do_not_fit_are_refused_by_name(changes, message):
    pack, attributes, stored = layer_parts()
    changed = {name: value for name, value in (attributes | changes).items() if value is not None}

    with pytest.raises(Exception, match=rf"cannot load binarize.PackedConv2d 'layer1.conv': .*({message})"):
        open_layer(pack, changed, stored)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("bits", np.zeros((4, 12, 4), np.uint8), r"bits have the shape \(4, 12, 4\), not \(4, 12, 5\)"),
        ("bits", np.zeros((0,), np.uint8), r"bits have the shape \(0\)"),
        ("bits", np.zeros((4, 12, 5), np.int8), r"tensor\(int8\)"),
        ("scale", np.zeros((2, 11), np.float32), r"scale have the shape \(2, 11\), not \(2, 12\)"),
        ("scale", np.zeros((2, 12), np.float64), r"tensor\(double\)"),
        ("bias", np.zeros((), np.float32), r"bias have the shape \(\), not \(12\)"),
    ],
)
def test_damaged_initializers_are_refused(name, value, message):
    pack, attributes, stored = layer_parts()

    with pytest.raises(Exception, match=message):
        open_layer(pack, attributes, stored | {name: value})


def test_a_weight_that_is_no_initializer_is_refused():
    pack, attributes, stored = layer_parts()
    twice = onnx.helper.make_node("Identity", ["x"], ["bias"])

    with pytest.raises(Exception, match="its bias are not stored in the file"):
        open_layer(
            pack, attributes, stored | {"bias": None}, between=[twice, onnx.helper.make_node("Identity", ["c"], ["d"])]
        )


def test_thresholds_that_do_not_fit_are_refused():
    pack, attributes, stored = layer_parts(terms=True)
    kind = "PackedConv2dTerms"
    assert open_layer(pack, attributes, stored, kind) is not None

    with pytest.raises(Exception, match="thresholds have the shape"):
        open_layer(pack, attributes, stored | {"levels": np.zeros((2, 2, 1, 3), np.float32)}, kind)
    with pytest.raises(Exception, match="it has 2 steps"):
        open_layer(pack, attributes | {"steps": [1.0, 2.0]}, stored, kind)
    with pytest.raises(Exception, match="main_term is 3, not 0 to 2"):
        open_layer(pack, attributes | {"main_term": 3}, stored, kind)


def test_sums_that_32_bits_do_not_hold_are_refused():
    pack, attributes, _ = layer_parts()
    shape = [1, 70000, 1, 1]
    stored = {
        "bits": np.zeros((8, 1, 8750), np.uint8), "scale": np.ones((1, 1), np.float32), "bias": np.ones(1, np.float32),
    }  # fmt: skip
    wide = attributes | {"weight_shape": shape, "weight_terms": [8], "activation_bits": 8, "group": 1}

    with pytest.raises(Exception, match="its sums pass 32 bits; run the file without this library"):
        open_layer(pack | {"groups": 1, "bits": 8}, wide, stored)


def test_images_and_types_that_do_not_fit_are_refused_when_run():
    session = open_layer(*layer_parts())

    wrong = {9: "9 channels fit neither", 320: "which no producer of the same file", 0: "0 channels"}
    for channels, message in wrong.items():
        with pytest.raises(Exception, match=message):
            session.run(None, {"x": np.zeros((2, channels, 5, 4), np.float32)})
    with pytest.raises(Exception, match="Unexpected input data type"):
        session.run(None, {"x": np.zeros((2, 8, 5, 4), np.float64)})
    pack, attributes, stored = layer_parts()
    narrow = open_layer(pack, attributes | {"pads": [0, 0, 0, 0]}, stored)
    with pytest.raises(Exception, match="image of 2x2 is too small"):
        narrow.run(None, {"x": np.zeros((1, 8, 2, 2), np.float32)})
    with pytest.raises(Exception, match="Type"):
        open_layer(pack, attributes, stored, element=TensorProto.DOUBLE)
    assert session.run(None, {"x": np.zeros((0, 8, 5, 4), np.float32)})[0].shape == (0, 12, 5, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel_shape": [3]}, "kernel_shape are \\(3\\)"),
        ({"strides": [0, 1]}, "strides are \\(0, 1\\)"),
        ({"pads": [1, 1, 0, 1]}, "differ by side"),
        ({"pads": [3, 3, 3, 3]}, "a window lies outside the image"),
        ({"dilations": [1 << 19, 1]}, "its window is too large"),
    ],
    ids=str,
)
def test_a_damaged_pool_is_refused(changes, message):
    sound = {
        "kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4, "dilations": [1, 1], "x_inner": 1, "y_inner": 1,
        "version": 1,
    }  # fmt: skip
    node = onnx.helper.make_node("MaxPool2d", ["x"], ["y"], "pool", domain="binarize", **(sound | changes))
    x, y = (onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy")
    imports = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("binarize", 1)]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y]), opset_imports=imports, ir_version=8)

    with pytest.raises(Exception, match=message):
        onnxruntime.InferenceSession(model.SerializeToString(), options(), providers=["CPUExecutionProvider"])


def test_codes_that_another_operation_touched_are_refused():
    flat = onnx.helper.make_node("Flatten", ["c"], ["d"])

    session = open_layer(*layer_parts(), between=[flat])

    with pytest.raises(Exception, match=r"its codes have the shape \(.*\), which no producer"):
        session.run(None, {"x": np.zeros((2, 8, 5, 4), np.float32)})


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [("BINARIZE_KERNEL", "sse1", "BINARIZE_KERNEL is sse1; this library has .*scalar"),
     ("BINARIZE_ROUTE", "bus", "BINARIZE_ROUTE is neither popcount nor int8")],
)  # fmt: skip
def test_a_kernel_or_route_that_is_not_there_is_refused(variable, value, message, monkeypatch):
    monkeypatch.setenv(variable, value)

    with pytest.raises(Exception, match=message):
        open_layer(*layer_parts())


def test_the_library_may_be_registered_twice():
    pack, attributes, stored = layer_parts()
    made = options()
    made.register_custom_ops_library(binarize.onnxruntime_library())
    assert made.get_session_config_entry("binarize.operations") == "1"

    for _ in range(3):
        assert open_layer(pack, attributes, stored).run(None, {"x": np.zeros((1, 8, 5, 4), np.float32)})


def test_two_copies_of_the_library_in_one_process_do_not_disturb_each_other(tmp_path):
    copy = shutil.copy(binarize.onnxruntime_library(), tmp_path)
    both = options()
    both.register_custom_ops_library(copy)
    alone = onnxruntime.SessionOptions()
    alone.register_custom_ops_library(copy)
    x = np.random.default_rng(0).standard_normal((1, 8, 5, 4), dtype=np.float32)

    wanted = open_layer(*layer_parts()).run(None, {"x": x})[0]
    for given in (both, alone):
        assert np.array_equal(open_layer(*layer_parts(), given=given).run(None, {"x": x})[0], wanted)


def test_a_runtime_that_is_too_old_gets_a_status_that_says_so():
    messages = []
    create = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)(
        lambda code, message: messages.append(message.decode()) or 4711
    )
    table = (ctypes.c_void_p * 1)(ctypes.cast(create, ctypes.c_void_p))
    get = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)(
        lambda version: ctypes.addressof(table) if version == 1 else 0
    )
    told = ctypes.CFUNCTYPE(ctypes.c_void_p)(lambda: ctypes.cast(name, ctypes.c_void_p).value)
    name = ctypes.c_char_p(b"1.15.1")
    base = (ctypes.c_void_p * 2)(ctypes.cast(get, ctypes.c_void_p), ctypes.cast(told, ctypes.c_void_p))
    register = ctypes.CDLL(binarize.onnxruntime_library()).RegisterCustomOps
    register.restype = ctypes.c_void_p

    assert register(None, base) == 4711
    remedy = "and they need 1.16 or later; install a newer one"
    assert messages == [f"cannot register the operations of binarize: this is ONNX Runtime 1.15.1, {remedy}"]


def test_an_installation_without_kernels_says_so(monkeypatch):
    monkeypatch.setattr("binarize.export.library._NAME", "libnothing.so")

    with pytest.raises(ExportError, match="no compiled kernels are installed"):
        binarize.onnxruntime_library()
