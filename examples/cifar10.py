"""A ResNet-20 for CIFAR-10: trained, converted, fine-tuned against itself, packed, and measured at each stage.

Usage: python examples/cifar10.py FOLDER --train torchvision:CIFAR10:DIR:train --val torchvision:CIFAR10:DIR:test
       python examples/cifar10.py FOLDER --tiny        (seconds, on handwritten digits)

`--arch` and `--weights` start from a network that is trained already; `--original-epochs` then train it further.
The run can be stopped at any time; the same command goes on, with the original or after it.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import binarize
from binarize.data import Images
from binarize.finetune import Step
from binarize.sources import open_model

MEAN, STD = "0.491,0.482,0.447", "0.247,0.244,0.262"


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut without weights."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.stride, self.more = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, c, h, w)`` to ``(n, o, h / stride, w / stride)``."""
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more // 2, self.more // 2))
        return F.relu(y + shortcut)


def resnet20(channels: int = 3, width: int = 16) -> nn.Module:
    """Build the network of He et al., arXiv:1512.03385, section 4.2."""
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    for stage in range(3):
        for block in range(3):
            first = block == 0 and stage > 0
            outputs = width << stage
            layers.append(Block(outputs // 2 if first else outputs, outputs, 2 if first else 1))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))


def train(model: nn.Module, data: Images, test: Images, epochs: int, rate: float) -> None:
    """Train full precision by labels, and print what each pass came to."""
    optimiser = torch.optim.SGD(model.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=epochs * len(data))
    for epoch in range(epochs):
        for images, labels in data:
            optimiser.zero_grad()
            F.cross_entropy(model.train()(images), labels).backward()
            optimiser.step()
            schedule.step()
        print(f"  pass {epoch + 1} of {epochs}: {binarize.evaluate(model.eval(), test).top1:.2%}", flush=True)


def numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def tell(step: Step) -> None:
    """Print how a pass ended."""
    if step.done == step.total:
        print(f"  pass {step.epoch} of {step.epochs}, stage {step.stage}: loss {step.loss:.4f}", flush=True)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", default="torchvision:CIFAR10:cifar:train")
    parser.add_argument("--val", default="torchvision:CIFAR10:cifar:test")
    parser.add_argument("--arch", help="what builds the original; the ResNet-20 of this file by default")
    parser.add_argument("--weights", help="its weights, if it is trained already")
    parser.add_argument("--mean", default=MEAN, type=numbers)
    parser.add_argument("--std", default=STD, type=numbers)
    parser.add_argument("--scheme", default="encoding:w=2,a=2")
    parser.add_argument("--original-epochs", type=int, default=160)
    parser.add_argument("--original-rate", type=float, default=0.1)
    parser.add_argument("--epochs", type=int, default=40, help="of fine-tuning; 0 ends with the original")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args(words)
    torch.manual_seed(0)
    given.folder.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"batch_size": 128, "mean": given.mean, "std": given.std}
    if given.tiny:
        given.train, given.val, given.original_epochs, given.epochs = "digits:train", "digits:test", 2, 1
        options = {"batch_size": 64, "limit": 256}
    data = binarize.load_data(
        given.train, shuffle=True, augment="none" if given.tiny else "cifar", workers=1, **options
    )
    test = binarize.load_data(given.val, **options)

    if given.arch or given.weights:
        model = open_model(given.weights or given.arch, arch=given.arch).model
    else:
        model = resnet20(data.shape[0], 8 if given.tiny else 16)
    weights = given.folder / "original.pt"
    if weights.exists():
        model.load_state_dict(torch.load(weights, weights_only=True))
    else:
        train(model, data, test, given.original_epochs, given.original_rate)
        torch.save(model.state_dict(), weights)
    model.eval()
    print(f"original    {binarize.evaluate(model, test).top1:.2%}", flush=True)
    if not given.epochs:
        return

    net = binarize.convert(model, scheme=given.scheme, data=binarize.load_data(given.train, shuffle=True, **options))
    print(f"converted   {binarize.evaluate(net, test).top1:.2%}", flush=True)
    history = binarize.finetune(
        net.to(given.device), data, teacher=model, val=test, epochs=given.epochs, checkpoint=given.folder / "run",
        resume=True, progress=tell,
    )  # fmt: skip
    if history.stopped:
        raise SystemExit(f"stopped by {history.stopped}; the same command goes on")
    packed = binarize.pack(net.cpu())
    size = binarize.save(packed, given.folder / "packed.safetensors")
    print(f"fine-tuned  {binarize.evaluate(packed, test).top1:.2%}, {size:,} bytes packed")


if __name__ == "__main__":
    try:
        main()
    except binarize.BinarizeError as error:  # what cannot be read or trained, in one line
        raise SystemExit(f"{error}") from None
