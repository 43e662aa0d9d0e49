"""From a trained model to a packed, saved and exported network, in Python.

Usage: python examples/quickstart.py FOLDER
"""

import sys
from pathlib import Path

import torch
from torch import nn

import binarize

EPOCHS = 6


def trained() -> nn.Module:
    """Stand in for your own model: a small network, trained for a few seconds on real handwritten digits."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()]
    for inputs, outputs in ((32, 64), (64, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, stride=2), nn.BatchNorm2d(outputs), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    data = binarize.load_data("digits:train", batch_size=64, shuffle=True)
    for _ in range(EPOCHS):
        for images, labels in data:
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimiser.step()
    return model.eval()


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model = trained()
    test = binarize.load_data("digits:test", batch_size=64)

    net = binarize.convert(model, scheme="encoding:w=3,a=3", data=binarize.load_data("digits:train", shuffle=True))
    print(binarize.summary(net))

    fast = binarize.pack(net)
    binarize.save(fast, folder / "digits.safetensors")
    fast = binarize.load(folder / "digits.safetensors")
    binarize.export_onnx(fast, folder / "digits.onnx")

    found = binarize.evaluate(fast, test, teacher=model)
    print(f"original {binarize.evaluate(model, test).top1:.1%}, packed {found.top1:.1%}, same {found.agreement:.1%}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
