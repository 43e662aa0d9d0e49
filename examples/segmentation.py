"""Segmentation: a dilated residual network trained, converted by several schemes, fine-tuned pixel by pixel, compared.

Usage: python examples/segmentation.py FOLDER --train camvid:camvid_train.npz --val camvid:camvid_test.npz
       python examples/segmentation.py FOLDER --tiny        (a minute, on discs and boxes)

Writes ``results.json`` (mIoU of each), a packed network and a page with pictures of each. The run can be stopped at any
time; the same command goes on. With ``rates=`` each branch of a group has a dilation of its own (BPAC).
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import shapes
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import binarize
from binarize.data import Images
from binarize.page import write_html
from binarize.pictures import compare, png, write_png
from binarize.scenes import VOID
from binarize.training.scenes import segmentation_loss

SCHEMES = ("encoding:w=4,a=4", "group-net:k=5", "group-net:k=5,rates=2-6")
STATISTICS = {"mean": (0.41, 0.425, 0.433), "std": (0.274, 0.285, 0.283)}  # of the training pictures of CamVid


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, dilation, dilation, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        changes = stride > 1 or inputs != outputs
        self.shortcut = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if changes
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, c, h, w)`` to ``(n, o, h / stride, w / stride)``."""
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class Dilated(nn.Module):
    """Residual stages of output stride 8, the last two dilated instead of strided, and a head of parallel dilations.

    Strided, the last two stages are those of a classifier, and the output stride is 32.
    """

    def __init__(self, classes: int, width: int, pyramid: Sequence[int] = (1, 6, 12), strided: bool = False) -> None:
        super().__init__()
        each, stride = 3 * width // len(pyramid), 2 if strided else 1
        third, fourth = (1, 1) if strided else (2, 4)  # dilations
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stage1 = nn.Sequential(Block(width, width, 2), Block(width, width))
        self.stage2 = nn.Sequential(Block(width, 2 * width, 2), Block(2 * width, 2 * width))
        wide = 4 * width
        self.stage3 = nn.Sequential(Block(2 * width, wide, stride, third), Block(wide, wide, 1, third))
        self.stage4 = nn.Sequential(Block(wide, wide, stride, fourth), Block(wide, wide, 1, fourth))
        self.pyramid = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4 * width, each, 3, 1, rate, rate, bias=False), nn.BatchNorm2d(each), nn.ReLU())
            for rate in pyramid
        )
        self.score = nn.Conv2d(each * len(pyramid), classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, 3, h, w)`` to scores ``(n, classes, h, w)``."""
        y = self.stage4(self.stage3(self.stage2(self.stage1(self.stem(x)))))
        y = self.score(torch.cat([part(y) for part in self.pyramid], 1))
        return F.interpolate(y, x.shape[2:], mode="bilinear", align_corners=False)


def train(model: nn.Module, data: Images, epochs: int) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimiser, epochs * len(data), 0.9)
    for _ in range(epochs):
        for images, masks in data:
            optimiser.zero_grad()
            F.cross_entropy(model(images), masks, ignore_index=VOID).backward()
            optimiser.step()
            schedule.step()


def shape(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


class Table:
    """The run: data, results, and what is written."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.folder = given, given.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.results: dict[str, Any] = {}
        self.head = "" if given.pyramid == (1, 6, 12) else "-head-" + "-".join(map(str, given.pyramid))
        self.head += "-strided" if given.strided else ""
        options = {**STATISTICS, "input_shape": given.input_shape, "batch_size": given.batch, "limit": given.limit}
        self.data = binarize.load_data(given.train, shuffle=True, augment="zoom", workers=1, **options)
        self.plain = binarize.load_data(given.train, shuffle=True, **options)
        self.test = binarize.load_data(given.val, **options)

    def original(self) -> nn.Module:
        """Return the teacher, trained at most once."""
        model = Dilated(len(self.data.classes), self.given.width, self.given.pyramid, self.given.strided)
        weights = self.folder / f"original{self.head}.pt"
        if weights.exists():
            model.load_state_dict(torch.load(weights, weights_only=True))
        else:
            train(model, self.data, self.given.original_epochs)
            torch.save(model.state_dict(), weights)
        self.keep("original", {"miou": binarize.evaluate(model.eval(), self.test).miou})
        return model.eval()

    def row(self, scheme: str, model: nn.Module) -> None:
        """Convert, fine-tune and pack by one scheme."""
        ways = [self.given.learn] if self.given.learn != "teacher" else []
        late = {f"stage{number}.*": self.given.late for number in (3, 4)} if self.given.late else {}
        words = "-".join([scheme, *([self.given.late] if late else []), *ways, *(self.given.stage or [])])
        name = "".join(letter if letter.isalnum() else "-" for letter in words) + self.head
        net = binarize.convert(model, recipe=binarize.Recipe(scheme, layers=late), data=self.plain)
        found = {"converted": binarize.evaluate(net, self.test).miou}
        by: dict[str, Any] = {"teacher": model}
        if self.given.learn == "masks":
            by = {"loss_fn": segmentation_loss(None, labels=1.0)}
        history = binarize.finetune(
            net.to(self.given.device), self.data, **by, epochs=self.given.epochs,
            stages=tuple(self.given.stage) if self.given.stage else None,
            checkpoint=self.folder / name, resume=True,
        )  # fmt: skip
        if history.stopped:
            raise SystemExit(f"stopped by {history.stopped}; the same command goes on")
        packed = binarize.pack(net.cpu())
        judged = binarize.evaluate(packed, self.test, teacher=net)
        found |= {"miou": judged.miou, "same_as_training_form": judged.agreement}
        found["bytes"] = binarize.save(packed, self.folder / f"{name}.safetensors", metrics={"miou": judged.miou})
        picture = compare(self.test, {"original": model, "packed": packed}, self.given.pictures)
        write_png(picture, self.folder / f"{name}.png")
        columns = "picture, truth, original, converted"
        write_html(
            binarize.summary(packed), self.folder / f"{name}.html", title=f"{scheme} on {self.given.val}",
            pictures={columns: png(picture)},
        )  # fmt: skip
        self.keep(" ".join([scheme, *([self.given.late] if late else [])]), found)

    def keep(self, name: str, found: dict[str, Any]) -> None:
        """Write the results, this one among them."""
        self.results[name] = found
        (self.folder / "results.json").write_text(json.dumps(self.results, indent=1))
        print(f"{name:26}", ", ".join(f"{key} {value:.4f}" for key, value in found.items()), flush=True)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", default="camvid:camvid_train.npz")
    parser.add_argument("--val", default="camvid:camvid_test.npz")
    parser.add_argument("--scheme", action="append", help="train these only; repeatable")
    parser.add_argument("--original-epochs", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--pyramid", type=shape, default=(1, 6, 12), help="dilations of the head's convolutions")
    parser.add_argument("--strided", action="store_true", help="stages 3 and 4 as in a classifier: output stride 32")
    parser.add_argument(
        "--late", help="another scheme for stages 3 and 4, such as group-net:k=5,rates=2-6,strides=drop"
    )
    parser.add_argument("--learn", choices=("teacher", "masks"), default="teacher", help="what fine-tuning goes by")
    parser.add_argument("--stage", action="append", help="tanh:epochs=6, then binary, say; repeatable, in order")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--input-shape", type=shape, default=(3, 180, 240))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args(words)
    torch.manual_seed(0)
    if given.tiny:
        given.folder.mkdir(parents=True, exist_ok=True)
        for seed, name in enumerate(("train", "val")):
            shapes.segmentation(given.folder / f"{name}.npz", 16, seed)
            setattr(given, name, f"camvid:{given.folder / name}.npz")
        given.input_shape, given.width, given.original_epochs, given.epochs = (3, 48, 64), 8, 4, 1
    table = Table(given)
    model = table.original()
    for scheme in given.scheme or SCHEMES:
        table.row(scheme, model)


if __name__ == "__main__":
    try:
        main()
    except binarize.BinarizeError as error:  # what cannot be read or trained, in one line
        raise SystemExit(f"{error}") from None
