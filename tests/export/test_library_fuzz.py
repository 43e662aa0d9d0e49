"""Random attributes, sizes of initializers and inputs of every layer of the library: refused by a status, or run.

    python tests/export/test_library_fuzz.py 20000 1     # so many turns from a seed, and what was seen

Under AddressSanitizer: `make sanitize SANITIZED=tests/export/test_library_fuzz.py`.
"""

import random
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx.helper
import onnxruntime
import torch
from onnx import TensorProto

sys.path.insert(0, str(Path(__file__).parents[1]))  # where it is no test

from packed_layers import arrays_of, layer_of, layer_of_terms, stand_in

import binarize
from binarize.export.functions import DOMAIN
from binarize.layers.packed import Geometry, PackedConv2d, PackedLinear

KINDS = [
    *(f"PackedConv2d{terms}{added}" for terms in ("", "Terms") for added in ("", "Add")),
    *(f"PackedLinear{terms}{added}" for terms in ("", "Terms") for added in ("", "Add")),
    *("PackedConv2dThreshold", "PackedConv2dUniform"),
]
NUMBERS = [-(2**63), -1, 0, 1, 2, 3, 4, 7, 8, 9, 12, 31, 32, 33, 64, 2**31 - 1, 2**31, 2**62, 2**63 - 1]
FLOATS = [0.0, -1.0, float("inf"), float("nan"), 1e-45]
READER = {"reader_low": 0.0, "reader_inverse_step": 2.0, "reader_bits": 4, "reader_groups": 2, "reader_work": [1, 1]}


def sound(kind):
    """Attributes of the packing and of the layer, and what they hold: a file that loads."""
    torch.manual_seed(0)
    linear, terms = "Linear" in kind, "Terms" in kind
    sizes = {"groups": 1} if linear else {"kernel": (3, 3), "padding": (1, 1), "groups": 1 if terms else 2}
    bits = {"weight_terms": (2,) if terms else (3, 1), "activation_terms": (1, 1, 1) if terms else (4,)}
    geometry = Geometry(8, 12, **({"kernel": (1, 1)} | sizes), **bits)
    layer_kind = PackedLinear if linear else PackedConv2d
    layer = layer_of_terms(geometry, layer_kind)[0] if terms else layer_of(geometry, -0.5, 0.25, layer_kind)
    layer.activation.rows = linear
    node = stand_in(layer)
    stored = {name: value for name, value in arrays_of(layer, codes=torch.empty(0)).items() if name != "codes"}
    attributes, pack = dict(node.attributes), dict(node.pack.attributes)
    if node.pack.thresholds is not None:
        stored["levels"] = node.pack.thresholds.numpy()
    if kind.endswith("Threshold"):
        stored["thresholds"] = np.zeros((12, 1, 1), np.float32)
        attributes["reader_work"] = [1, 1]
    return pack, attributes | (READER if kind.endswith("Uniform") else {}), stored


def open_layer(kind, pack, attributes, stored):
    packing = ["x", "levels"] if "levels" in stored else ["x"]
    reads = ["c", "bits", "scale", "bias", *(["thresholds"] if "thresholds" in stored else [])]
    floats = ["x", *(["residual"] if kind.endswith("Add") else [])]
    make, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    nodes = [
        make("PackTerms" if "levels" in stored else "PackUniform", packing, ["c"], "pack", domain=DOMAIN, **pack),
        make(kind, [*reads, *floats[1:]], ["y"], "layer", domain=DOMAIN, **attributes),
    ]
    slots = [info(name, TensorProto.FLOAT, None) for name in floats]
    answer = info("y", TensorProto.UINT8 if kind.endswith(("Threshold", "Uniform")) else TensorProto.FLOAT, None)
    held = [onnx.numpy_helper.from_array(x, name) for name, x in stored.items()]
    graph = onnx.helper.make_graph(nodes, "some", slots, [answer], held)
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid(DOMAIN, 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(binarize.onnxruntime_library())
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def damage(chance, given):
    name = chance.choice(sorted(given))
    value = given[name]
    if isinstance(value, np.ndarray):
        shape = [chance.choice([0, 1, size, size, size + 1, 3]) for size in value.shape]
        given[name] = np.resize(value, shape).astype(value.dtype)
    elif isinstance(value, list) and not isinstance(value[0], float):
        given[name] = [chance.choice([*NUMBERS, *value, *value]) for _ in range(chance.randint(1, len(value) + 1))]
    elif isinstance(value, list):
        given[name] = [chance.choice(FLOATS) for _ in range(chance.randint(1, 4))]
    else:
        given[name] = chance.choice(NUMBERS if isinstance(value, int) else FLOATS)


def inputs(chance, kind):
    """An image or rows, mostly of sizes that fit, and a residual of a shape that may."""
    count, channels = chance.randint(0, 2), chance.choice([8, 8, 8, 7, 0])
    room = [] if "Linear" in kind else [chance.randint(0, 9), chance.randint(1, 9)]
    fed = {"x": np.ones((count, channels, *room), np.float32)}
    if kind.endswith("Add"):
        fed["residual"] = np.ones((count, chance.choice([12, 12, 12, 1]), *room), np.float32)
    return fed


def try_damaged(chance, kind):
    """Return the exception that refused a damaged file or an input; None where it ran."""
    parts = sound(kind)
    for _ in range(chance.randint(0, 3)):
        damage(chance, chance.choice(parts))
    fed = inputs(chance, kind)
    try:
        open_layer(kind, *parts).run(None, fed)
    except Exception as refusal:  # onnxruntime has a class for each kind of status
        return refusal
    return None


def try_all(turns, seed):
    """Return how often files ran and were refused; whatever is no status of the runtime or of ours is an error."""
    chance, seen = random.Random(seed), Counter()
    for turn in range(turns):
        refusal = try_damaged(chance, KINDS[turn % len(KINDS)])
        assert refusal is None or "binarize" in str(refusal) or "onnx" in type(refusal).__module__.lower()
        seen["ran" if refusal is None else "refused"] += 1
    return seen


def test_random_attributes_sizes_and_inputs_never_crash():
    seen = try_all(200, seed=0)

    assert min(seen["ran"], seen["refused"]) >= 20


def test_what_is_damaged_here_is_sound_before():
    for kind in KINDS:
        room = () if "Linear" in kind else (5, 4)
        fed = {"x": np.ones((2, 8, *room), np.float32)}
        if kind.endswith("Add"):
            fed["residual"] = np.ones((2, 12, *room), np.float32)
        assert open_layer(kind, *sound(kind)).run(None, fed)[0].shape[0] == 2


if __name__ == "__main__":
    print(dict(try_all(int(sys.argv[1]), int(sys.argv[2]))))
