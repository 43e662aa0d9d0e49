"""Time one packed 3x3 layer in the forms in which networks use it, beside the same convolution in its peers.

Usage: python benchmarks/layers.py --threads 1 [--rounds 20]

Ours are schedules, as packed networks run them. Peers: fp32 of oneDNN (through torch) with weights reordered
beforehand, QLinearConv of ONNX Runtime on bytes, and BinaryConvolution of OpenVINO with the quantisation of its input.
Every contender is checked against torch first.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rows import summary
from torch import Tensor
from torch.nn import functional as F

from binarize.benchmark import interleave
from binarize.kernels import fold_weight, pack_codes, pack_digits, pack_signs, prepare_weight, steps, unpack_digits
from binarize.kernels.problem import Conv2dProblem
from binarize.kernels.schedule import Draft
from binarize.kernels.speeds import speeds

SHAPES = ((64, 56), (128, 28), (256, 14), (512, 7))
INFINITY = float("inf")
WINDOW = (3, 3), (1, 1), (1, 1), (1, 1)
Call = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    for channels, size in SHAPES:
        calls = {**ours(channels, size), **peers(channels, size, options.threads)}
        times = interleave(calls, options.rounds, 60.0)
        sizes = {"channels": channels, "size": size, "threads": options.threads}
        print(json.dumps({**sizes, **summary(times)}), flush=True)


@torch.inference_mode()
def ours(channels: int, size: int) -> dict[str, Call]:
    """Return our forms of the layer: digits in, and digits, floats and digits, or the sum of four planes out."""
    signs = torch.randint(0, 2, (4, channels, channels, 3, 3)) * 2 - 1
    digit = torch.randint(0, 2, (1, channels, size, size))
    sums = F.conv2d(digit.float(), signs[0].float(), padding=1)
    problem = Conv2dProblem(channels, channels, *WINDOW, 1, (1,), (1,))
    x, weight = pack_digits(digit, 1), _weight(signs[:1], channels)
    threshold, flip = sums.mean((0, 2, 3)).round().int()[None], torch.zeros(channels, dtype=torch.bool)

    def to_bits(draft: Draft, value: Any) -> Any:
        return steps.conv2d_threshold(draft, problem, value, weight, threshold, flip, (None, None))

    bits = _program(to_bits, x)
    assert torch.equal(unpack_digits(bits()[0], channels).bool(), sums >= threshold[0][None, :, None, None])

    scale, bias, residual = torch.rand(1, channels), torch.randn(1, channels), torch.randn(1, channels, size, size)
    residual = residual.contiguous(memory_format=torch.channels_last)

    def to_floats(draft: Draft, value: Any, added: Any) -> Any:
        y = steps.conv2d(draft, problem, value, weight, scale, bias, (None, None), added, (0.0, INFINITY))
        return y, steps.pack(draft, y, codes=False, bits=1, groups=1, low=0.0, inverse_step=1.0)

    floats = _program(to_floats, x, residual)
    wanted = (sums * scale[0][:, None, None] + bias[0][:, None, None] + residual).relu()
    # Three roundings of values below 2^13.
    torch.testing.assert_close(floats()[0], wanted, rtol=0, atol=3 * 2.0**-11)
    return {"bits": bits, "floats + residual + relu + bits": floats, "k=4": _four(signs, digit, channels)}


def _four(signs: Tensor, digit: Tensor, channels: int) -> Call:
    """Return four planes of scales of their own on one input, by the route that the cost model takes."""
    problem = Conv2dProblem(channels, channels, *WINDOW, 1, (1,) * 4, (1,))
    folded = Conv2dProblem(channels, channels, *WINDOW, 1, (1,) * 4, (1,), codes=True)
    rates, scale, bias = speeds(), torch.rand(4, channels), torch.zeros(1, channels)
    if rates.nanoseconds(folded) < rates.nanoseconds(problem):
        sizes = {"out_channels": channels, "channels_per_group": channels, "kernel": (3, 3)}
        problem, x = folded, pack_codes(digit[None])
        weight = fold_weight(pack_signs(signs), (1,) * 4, **sizes, narrow=True)
    else:
        x, weight = pack_digits(digit, 1), _weight(signs, channels)

    def build(draft: Draft, value: Any) -> Any:
        return steps.conv2d(draft, problem, value, weight, scale, bias, (None, None), None, (-INFINITY, INFINITY))

    call = _program(build, x)
    whole = torch.einsum("ko,koiyx->oiyx", scale, signs.float())
    # Four products and sums of magnitudes below 2^13, and the float32 sums of the definition itself.
    torch.testing.assert_close(call()[0], F.conv2d(digit.float(), whole, padding=1), rtol=1e-5, atol=2e-2)
    return call


def _weight(signs: Tensor, channels: int) -> Tensor:
    return prepare_weight(pack_signs(signs), out_channels=channels, channels_per_group=channels, kernel=(3, 3))


def _program(build: Callable[..., Any], *inputs: Tensor) -> Call:
    draft = Draft()
    values = [draft.value(x.shape, x.dtype, x.dtype == torch.float32) for x in inputs]
    made = build(draft, *values)
    program = draft.finish(values, list(made) if isinstance(made, tuple) else [made])
    return lambda: program.run(list(inputs))


@torch.inference_mode()
def peers(channels: int, size: int, threads: int) -> dict[str, Call]:
    """Return the same convolution by oneDNN, ONNX Runtime and, where it is installed, OpenVINO."""
    x = torch.randn(1, channels, size, size).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3)
    found = {"oneDNN fp32": _onednn(x, weight), "onnxruntime int8": _onnxruntime(channels, size, threads)}
    try:
        found["openvino BinaryConvolution"] = _openvino(x, weight.sign(), threads)
    except ImportError:
        print("no OpenVINO row: pip install openvino")
    return found


def _onednn(x: Tensor, weight: Tensor) -> Call:
    window = [1, 1], [1, 1], [1, 1], 1
    ordered = torch.ops.mkldnn._reorder_convolution_weight(weight, *window, list(x.shape))
    run = torch.ops.mkldnn._convolution_pointwise

    def call() -> Tensor:
        y: Tensor = run(x, ordered, None, *window, "none", [], "")
        return y

    torch.testing.assert_close(call(), F.conv2d(x, weight, padding=1), rtol=1e-4, atol=1e-2)
    return call


def _onnxruntime(channels: int, size: int, threads: int) -> Call:
    """Return a convolution from bytes to bytes, weights int8 per channel."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    shape = [1, channels, size, size]
    weight = np.random.default_rng(0).integers(-127, 128, (channels, channels, 3, 3)).astype(np.int8)
    step = np.float32(1 / (127 * 3 * channels))
    constants = {
        "sx": np.float32(1.0), "zx": np.uint8(128), "w": weight, "sw": np.full(channels, step, np.float32),
        "zw": np.zeros(channels, np.int8), "sy": np.float32(1.0), "zy": np.uint8(128),
    }  # fmt: skip
    names = ["x", "sx", "zx", "w", "sw", "zw", "sy", "zy"]
    node = helper.make_node("QLinearConv", names, ["y"], kernel_shape=[3, 3], pads=[1] * 4)
    graph = helper.make_graph(
        [node], "layer", [helper.make_tensor_value_info("x", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
    exact = F.conv2d(torch.tensor(x).double() - 128, torch.tensor(weight).double(), padding=1) * float(step)
    wanted = (exact.round() + 128).clamp(0, 255)
    off = (torch.tensor(session.run(None, {"x": x})[0]).double() - wanted).abs()
    assert off.max() <= 1  # a float32 step rounds some halves the other way
    return lambda: session.run(None, {"x": x})


def _openvino(x: Tensor, signs: Tensor, threads: int) -> Call:
    """Return BinaryConvolution behind the two-level FakeQuantize that makes its operand."""
    import openvino
    from openvino import opset13

    source = opset13.parameter(list(x.shape), np.float32)
    level = [opset13.constant(np.float32(value)) for value in (0.0, 0.0, 0.0, 1.0)]  # 0 stands for -1
    bits = openvino.Tensor(openvino.Type.u1, openvino.Shape(list(signs.shape)))
    bits.data[:] = np.packbits((signs > 0).numpy().reshape(-1), bitorder="little")
    binary = opset13.fake_quantize(source, *level, 2)
    ones = [1, 1]
    node = opset13.binary_convolution(binary, opset13.constant(bits), ones, ones, ones, ones, "xnor-popcount", 0.0)
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(openvino.Model([node], [source]), "CPU", options).create_infer_request()
    data = x.contiguous().numpy()

    def call() -> Any:
        request.infer([data], share_inputs=True)
        return request.get_output_tensor(0).data

    # Zero padding is a plane of zeros here and pad_value there, so only what no border reaches is compared.
    wanted = F.conv2d(torch.where(x > 0, 1.0, -1.0), signs)
    seen = torch.tensor(np.array(call()))[:, :, 1:-1, 1:-1]
    if not torch.equal(seen, wanted):
        raise AssertionError(f"OpenVINO's BinaryConvolution differs by {(seen - wanted).abs().max():.3g}")
    return call


if __name__ == "__main__":
    main()
