"""Add a scheme from outside the package: ternary weights, as the sum of two sign planes of one scale.

Usage: python examples/own_scheme.py FOLDER [--tiny]

    W = unit (B1 + B2),  B1 = sign(W - t),  B2 = sign(W + t)        values -2 unit, 0, +2 unit

with t = 0.7 mean |W| and the least-squares scale of Li et al., Ternary Weight Networks, arXiv:1605.04711. Packing,
kernels, files and export need nothing more than `terms` and `odd`.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

import binarize
from binarize.demo import network, training
from binarize.schemes.base import WeightBasis, sign
from binarize.schemes.encoding import EncodingActivation
from binarize.schemes.estimators import CodedWeight
from binarize.schemes.options import Whole
from binarize.schemes.presets import PRESETS, Preset
from binarize.schemes.structures import Layerwise


@final
@dataclasses.dataclass(frozen=True)
class TernaryWeight(WeightBasis):
    """Two planes that agree where a weight is large and cancel where it is small."""

    @property
    def terms(self) -> tuple[int, ...]:
        """Two terms of one plane."""
        return (1, 1)

    def fit(self, weight: Tensor) -> Tensor:
        """Return ``(2, o)``: half the mean of the large weights of each output, twice."""
        flat = weight.detach().flatten(1)
        large = flat.abs() > threshold(flat)
        mean = (flat.abs() * large).sum(1) / large.sum(1).clamp_min(1)
        return torch.stack([mean / 2, mean / 2])

    def odd(self, weight: Tensor, unit: Tensor) -> Tensor:
        """Return both planes, ``(2, *weight.shape)``."""
        limit = threshold(weight.flatten(1)).reshape(-1, *[1] * (weight.dim() - 1))
        return torch.stack([sign(weight - limit), sign(weight + limit)])

    def __call__(self, weight: Tensor, unit: Tensor) -> Tensor:
        """Return the ternary weight; the latent weight gets the identity as gradient."""
        value: Tensor = CodedWeight.apply(weight, unit, self.odd, None)
        return value


def threshold(flat: Tensor) -> Tensor:
    """Return ``(o, 1)``: 0.7 of the mean absolute weight of each output."""
    return 0.7 * flat.abs().mean(1, keepdim=True)


def build(options: Any) -> Any:
    return TernaryWeight(), EncodingActivation(options["a"]), Layerwise()


PRESETS["ternary"] = Preset("ternary weights", "Li et al., arXiv:1605.04711", {"a": Whole(4, 1, 8)}, build)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args(words)
    epochs = 1 if given.tiny else 8
    torch.manual_seed(0)
    model = network.network()
    training.train(model, epochs=epochs)
    train = binarize.load_data("digits:train", batch_size=64, shuffle=True, limit=256 if given.tiny else None)
    test = binarize.load_data("digits:test", batch_size=64)

    net = binarize.convert(model, scheme="ternary:a=3", data=train)
    binarize.finetune(net, train, teacher=model, epochs=epochs)
    packed = binarize.pack(net)
    given.folder.mkdir(parents=True, exist_ok=True)
    binarize.save(packed, given.folder / "ternary.safetensors")
    found = binarize.evaluate(binarize.load(given.folder / "ternary.safetensors"), test, teacher=model)
    print(f"ternary weights, 3-bit activations: {found.top1:.1%}, decides as the original on {found.agreement:.1%}")


if __name__ == "__main__":
    main()
