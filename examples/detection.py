"""Detection: a detector of torchvision trained, converted, fine-tuned with its teacher inside, packed and compared.

Usage: python examples/detection.py FOLDER --train bccd:bccd_train.npz --val bccd:bccd_val.npz
       python examples/detection.py FOLDER --model fasterrcnn_mobilenet_v3_large_320_fpn ...
       python examples/detection.py FOLDER --tiny        (a minute, on discs and boxes)

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
from torch import nn

import binarize
from binarize.data import Images
from binarize.page import write_html
from binarize.pictures import compare, png, write_png
from binarize.training.scenes import detection_loss

SCHEMES = ("encoding:w=4,a=4",)


def build(name: str, classes: int, tiny: bool) -> nn.Module:
    """Return an untrained detector; small pictures stay small."""
    options: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": classes}
    if tiny:
        options |= {"min_size": 64, "max_size": 80} if "320" not in name else {}
    return torchvision.models.get_model(name, **options)


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
        model = build(self.given.model, len(self.data.classes), self.given.tiny)
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
    parser.add_argument("--model", default="ssdlite320_mobilenet_v3_large")
    parser.add_argument("--scheme", action="append", help="train these only; repeatable")
    parser.add_argument("--recipe", type=Path, help="a TOML file: what to convert, and how")
    parser.add_argument("--original-epochs", type=int, default=60)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
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
        given.original_epochs, given.epochs = 2, 1
    table = Table(given)
    model = table.original()
    for scheme in given.scheme or SCHEMES:
        table.row(scheme, model)


if __name__ == "__main__":
    main()
