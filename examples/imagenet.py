"""A torchvision ResNet on ImageNet, or any imagefolder: converted, fine-tuned on all devices there are, packed.

Usage: python examples/imagenet.py OUT --train imagenet/train --val imagenet/val
       torchrun --nproc-per-node=8 examples/imagenet.py OUT --train imagenet/train --val imagenet/val --device cuda
       python examples/imagenet.py OUT --tiny        (seconds, on a few generated pictures)

Two stages, as papers on few planes train: activations first, then everything. The run can be stopped at any time; the
same command goes on.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import models

import binarize


def settings(given: argparse.Namespace) -> binarize.Settings:
    losses = binarize.Losses(labels=0.2, logits=1.0, blocks=given.blocks)
    return binarize.Settings(
        epochs=given.epochs, accumulate=given.accumulate, ema=0.9998, clip=5.0, bf16=given.device != "cpu",
        channels_last=given.device != "cpu", losses=losses,
    )  # fmt: skip


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=Path)
    parser.add_argument("--val", type=Path)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--scheme", default="encoding:w=2,a=2")
    parser.add_argument("--stage", action="append", help="activations:epochs=5, then everything, by default")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=256, help="images per device")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--blocks", type=float, default=0.0, help="weight of the distance of block outputs")
    parser.add_argument("--workers", type=int, default=8, help="threads per device that read images")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args(words)
    shape, weights = (3, 224, 224), "DEFAULT"
    given.out.mkdir(parents=True, exist_ok=True)
    if given.tiny:
        shape, weights, given.batch, given.epochs, given.workers = (3, 32, 32), None, 8, 1, 1
        given.train = given.val = generated(given.out / "pictures")
        given.stage = ["activations:epochs=1", "binary"]
    stages = tuple(given.stage or ["activations:epochs=5", "binary"])
    options = {"input_shape": shape, "batch_size": given.batch, "workers": given.workers}
    train = binarize.load_data(f"imagefolder:{given.train}", shuffle=True, augment="imagenet", **options)
    val = binarize.load_data(f"imagefolder:{given.val}", **options)
    still = binarize.load_data(f"imagefolder:{given.train}", shuffle=True, **options)
    torch.manual_seed(0)
    model = models.get_model(given.model, weights=weights).eval()

    net = binarize.convert(model, scheme=given.scheme, data=still)
    history = binarize.finetune(
        net.to(given.device), train, teacher=model.to(given.device), val=val, settings=settings(given), stages=stages,
        checkpoint=given.out / "run", resume=True,
    )  # fmt: skip
    if history.stopped:
        raise SystemExit(f"stopped by {history.stopped}; the same command goes on")
    if os.environ.get("RANK", "0") == "0":
        last = history.epochs[-1]
        binarize.save(binarize.pack(net.cpu()), given.out / "packed.safetensors", metrics=dict(last.val))
        print(
            f"top-1 {last.val['top1']:.2%} after {len(history.epochs)} epochs, {last.images_per_second:,.0f} images/s"
        )


def generated(folder: Path) -> Path:
    """Write two classes of eight small pictures."""
    generator = np.random.default_rng(0)
    for label in ("cats", "dogs"):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for index in range(8):
            pixels = generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{index}.png")
    return folder


if __name__ == "__main__":
    try:
        main()
    except binarize.BinarizeError as error:  # what cannot be read or trained, in one line
        raise SystemExit(f"{error}") from None
