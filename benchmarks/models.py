"""Time torchvision networks, packed, beside torch fp32, ONNX Runtime and OpenVINO fp32 and int8; random weights.

Usage: python benchmarks/models.py resnet18 squeezenet1_1 --scheme xnor-net --size 224 --batch 1 --threads 1 --openvino
"""

import argparse
import json

import torch
from torchvision import models

import binarize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="+", help="networks of torchvision.models")
    parser.add_argument("--scheme", action="append", help="repeatable; xnor-net and encoding:w=4,a=4 by default")
    parser.add_argument("--ends", default="fp", help="scheme of the first and last layers")
    parser.add_argument("--openvino", action="store_true", help="needs the packages openvino and nncf")
    parser.add_argument("--size", type=int, default=224, help="side of the image")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    for name in options.names:
        for scheme in options.scheme or ["xnor-net", "encoding:w=4,a=4"]:
            asked = {"network": name, "scheme": scheme, "ends": options.ends}
            print(json.dumps({**asked, **measure(name, scheme, options)}), flush=True)


def measure(name: str, scheme: str, options: argparse.Namespace) -> dict[str, object]:
    torch.manual_seed(0)
    model = models.get_model(name, weights=None).eval()
    images = torch.randn(4, 3, options.size, options.size)
    packed = binarize.pack(binarize.convert(model, images, recipe=binarize.Recipe(scheme, ends=options.ends)))
    found = binarize.benchmark(
        packed, against=model, batch=options.batch, threads=options.threads, rounds=options.rounds,
        openvino=options.openvino,
    )  # fmt: skip
    return found.to_dict()


if __name__ == "__main__":
    main()
