"""Detection: a detector trained, converted, fine-tuned with its teacher inside, packed and compared.

Usage: python examples/detection.py FOLDER --train bccd:bccd_train.npz --val bccd:bccd_val.npz
       python examples/detection.py FOLDER --model two-stage ...          (Faster R-CNN on the same small features)
       python examples/detection.py FOLDER --model fcos_resnet50_fpn ...  (or any detector of torchvision, on a GPU)
       python examples/detection.py FOLDER --tiny        (a minute, on discs and boxes)

The models of this file, "one-stage" (RetinaNet) and "two-stage" (Faster R-CNN), are small enough to learn on a CPU.
Backbone and pyramid become binary; a head that all levels of the pyramid share stays in full precision (``--recipe``
says otherwise). Writes ``results.json`` (COCO's mAP), the packed network and a page with pictures. The run can be
stopped at any time; the same command goes on.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import shapes
import torch
import torchvision
from segmentation import Block
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

import binarize
from binarize.data import Images
from binarize.page import write_html
from binarize.pictures import compare, png, write_png
from binarize.training.scenes import detection_loss

SCHEMES = ("encoding:w=4,a=4",)


class Features(nn.Module):
    """A residual network and a pyramid of strides 8, 16 and 32 on it."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stage1 = Block(width, width, 2)
        self.stage2 = Block(width, 2 * width, 2)
        self.stage3 = Block(2 * width, 4 * width, 2)
        self.stage4 = Block(4 * width, 4 * width, 2)
        self.out_channels = 4 * width
        self.pyramid = FeaturePyramidNetwork([2 * width, 4 * width, 4 * width], self.out_channels)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map ``(n, 3, h, w)`` to the three maps of the pyramid, the finest first."""
        low = self.stage2(self.stage1(self.stem(x)))
        middle = self.stage3(low)
        found: dict[str, Tensor] = self.pyramid({"0": low, "1": middle, "2": self.stage4(middle)})
        return found


def one_stage(classes: int, size: int) -> nn.Module:
    return RetinaNet(Features(), classes, anchor_generator=anchors(3), **sizes(size))


def two_stage(classes: int, size: int) -> nn.Module:
    features = Features()
    return FasterRCNN(
        features, rpn_anchor_generator=anchors(3), box_roi_pool=MultiScaleRoIAlign(["0", "1", "2"], 5, 2),
        box_head=TwoMLPHead(25 * features.out_channels, 128), box_predictor=FastRCNNPredictor(128, classes),
        rpn_post_nms_top_n_train=200, rpn_post_nms_top_n_test=100, box_batch_size_per_image=64, **sizes(size),
    )  # fmt: skip


def anchors(each: int) -> AnchorGenerator:
    scales = tuple(tuple(int(side * 2 ** (step / each)) for step in range(each)) for side in (12, 28, 56))
    return AnchorGenerator(scales, ((0.5, 1.0, 2.0),) * 3)


def sizes(size: int) -> dict[str, int]:
    return {"min_size": size, "max_size": 2 * size}


SMALL = {"one-stage": one_stage, "two-stage": two_stage}


def build(name: str, classes: int, size: int | None) -> nn.Module:
    """Return an untrained detector; images are resized to ``size`` on their shorter side, or as the model does."""
    if name in SMALL:
        return SMALL[name](classes, size or 160)
    options: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": classes}
    return torchvision.models.get_model(name, **options, **(sizes(size) if size else {}))


def train(model: nn.Module, data: Images, epochs: int, rate: float) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=epochs * len(data))
    model.train()
    for _ in range(epochs):
        for images, targets in data:
            optimiser.zero_grad()
            losses = model(images, targets)
            torch.stack(list(losses.values())).sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimiser.step()
            schedule.step()
    model.eval()


class Table:
    """The run: data, results, and what is written."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.folder = given, given.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.results: dict[str, Any] = {}
        options = {"batch_size": given.batch, "limit": given.limit}
        self.data = binarize.load_data(given.train, shuffle=True, augment="flip", workers=1, **options)
        self.test = binarize.load_data(given.val, **options)

    def original(self) -> nn.Module:
        """Return the teacher, trained at most once."""
        model = build(self.given.model, len(self.data.classes), self.given.size)
        weights = self.folder / "original.pt"
        if weights.exists():
            model.load_state_dict(torch.load(weights, weights_only=True))
        else:
            train(model, self.data, self.given.original_epochs, self.given.rate)
            torch.save(model.state_dict(), weights)
        self.keep("original", self.judged(model.eval()))
        return model.eval()

    def judged(self, net: nn.Module) -> dict[str, float]:
        """Return the figures of one network."""
        return binarize.evaluate(net, self.test).figures()

    def row(self, scheme: str, model: nn.Module) -> None:
        """Convert, fine-tune and pack by one scheme."""
        name = "".join(letter if letter.isalnum() else "-" for letter in scheme)
        recipe = binarize.Recipe() if self.given.recipe is None else binarize.Recipe.from_toml(self.given.recipe)
        net = binarize.convert(model, scheme=scheme, recipe=recipe, data=self.data)
        found = {f"converted_{key}": value for key, value in self.judged(net).items()}
        history = binarize.finetune(
            net.to(self.given.device), self.data, loss_fn=detection_loss(model.to(self.given.device)),
            epochs=self.given.epochs, settings=binarize.Settings(freeze_norm=True, clip=5.0),
            checkpoint=self.folder / name, resume=True,
        )  # fmt: skip
        if history.stopped:
            raise SystemExit(f"stopped by {history.stopped}; the same command goes on")
        packed, model = binarize.pack(net.cpu()), model.cpu()
        found |= self.judged(packed)
        found["same_as_training_form"] = binarize.evaluate(packed, self.test, teacher=net).agreement
        found["bytes"] = binarize.save(packed, self.folder / f"{name}.safetensors", metrics={"map": found["map"]})
        picture = compare(self.test, {"original": model, "packed": packed}, self.given.pictures)
        write_png(picture, self.folder / f"{name}.png")
        write_html(
            binarize.summary(packed), self.folder / f"{name}.html", title=f"{self.given.model}, {scheme}",
            pictures={"picture, truth, original, converted": png(picture)},
        )  # fmt: skip
        self.keep(scheme, found)

    def keep(self, name: str, found: dict[str, Any]) -> None:
        """Write the results, this one among them."""
        self.results[name] = found
        (self.folder / "results.json").write_text(json.dumps(self.results, indent=1))
        print(f"{name:26}", ", ".join(f"{key} {value:.4f}" for key, value in found.items()), flush=True)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", default="bccd:bccd_train.npz")
    parser.add_argument("--val", default="bccd:bccd_val.npz")
    parser.add_argument("--model", default="one-stage", help="or two-stage, or a name of torchvision")
    parser.add_argument("--scheme", action="append", help="train these only; repeatable")
    parser.add_argument("--recipe", type=Path, help="a TOML file: what to convert, and how")
    parser.add_argument("--original-epochs", type=int, default=60)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, help="of the shorter side that images are resized to")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args(words)
    torch.manual_seed(0)
    if given.tiny:
        given.folder.mkdir(parents=True, exist_ok=True)
        for seed, name in enumerate(("train", "val")):
            shapes.detection(given.folder / f"{name}.npz", 8, seed)
            setattr(given, name, f"bccd:{given.folder / name}.npz")
        given.original_epochs, given.epochs, given.size = 2, 1, 64 if given.model in SMALL else None
    table = Table(given)
    model = table.original()
    for scheme in given.scheme or SCHEMES:
        table.row(scheme, model)


if __name__ == "__main__":
    try:
        main()
    except binarize.BinarizeError as error:  # what cannot be read or trained, in one line
        raise SystemExit(f"{error}") from None
