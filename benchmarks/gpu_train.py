"""Train a table of schemes from one original in the time given, data and augmentation on the device; resumable.

Usage: python benchmarks/gpu_train.py OUT --model nets.py:cifar_resnet20 --weights resnet20.pt --train npz:train.npz
       --val npz:test.npz --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --minutes 25 --device cuda

       python benchmarks/gpu_train.py OUT --task segmentation --model benchmarks/scene_models.py:camvid_fcn
       --original-epochs 120 --train camvid:camvid_train.npz --val camvid:camvid_test.npz --batch 8 --minutes 120
       python benchmarks/gpu_train.py OUT --task detection --model benchmarks/scene_models.py:bccd_retinanet
       --original-epochs 80 --train bccd:bccd_train.npz --val bccd:bccd_test.npz --batch 4 --minutes 120

The original is trained further first if --original-epochs says so. Each row gets an equal share of the time that is
left, and as many epochs as fit into it; ``OUT/results.json`` holds accuracy (mIoU, mAP), epochs and seconds of each,
``OUT/*.safetensors`` the packed networks. The same command again goes on with what is not finished.
"""

import abc
import argparse
import copy
import dataclasses
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import binarize
from binarize.artifact import replacing
from binarize.augment import shift_and_flip
from binarize.finetune import Losses, Settings, Step, finetune
from binarize.recipe import Recipe
from binarize.sources import open_model
from binarize.training.batches import placed
from binarize.training.scenes import detection_loss, segmentation_loss

TRIAL = 12  # batches that an estimate of an epoch's time is made from


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: a scheme, and what is special about training it."""

    name: str
    scheme: str
    stages: tuple[str, ...] = ()
    losses: Losses = dataclasses.field(default_factory=Losses)


ROWS = (
    Row("encoding-4", "encoding:w=4,a=4"),
    Row("encoding-3", "encoding:w=3,a=3"),
    Row("encoding-2", "encoding:w=2,a=2"),
    Row("pa-net", "pa-net:m=4,n=5"),
    Row("group-5", "group-net:k=5"),
    Row("group-3", "group-net:k=3"),
    Row("group-4", "group-net:k=4"),
    Row("group-4-of-8", "group-net:k=4,stored=8"),
    Row("xnor", "xnor-net:shift=channel,shortcuts=on"),
    Row("group-5-no-gates", "group-net:k=5,gates=off"),
    Row("layer-5", "group-net:k=5,unit=layer"),
    Row("one-branch", "xnor-net"),
    Row("encoding-2-labels", "encoding:w=2,a=2", losses=Losses(labels=1.0, logits=0.0)),
)


SEGMENTATION = (
    Row("encoding-4", "encoding:w=4,a=4"),
    Row("group-5", "group-net:k=5"),
    Row("group-5-rates", "group-net:k=5,rates=2-6"),
    Row("encoding-2", "encoding:w=2,a=2"),
)
DETECTION = (Row("encoding-4", "encoding:w=4,a=4"), Row("encoding-2", "encoding:w=2,a=2"))


class Task(abc.ABC):
    """What differs between classification, segmentation and detection.

    Attributes:
        figure: what is measured.
        rows: of the table.
    """

    figure: str
    rows: tuple[Row, ...]

    @abc.abstractmethod
    def load(self, spec: str, options: argparse.Namespace, augment: bool) -> Any:
        """Return batches on the device, with ``set_epoch`` and a length."""

    @abc.abstractmethod
    def cost(self, model: nn.Module, batch: Any) -> Tensor:
        """Return what the original is trained to minimise."""

    def losses(self, teacher: nn.Module) -> dict[str, Any]:
        """Return what `finetune` is told about the teacher."""
        return {"teacher": teacher}


class Classification(Task):
    """Images with a label, all of them on the device."""

    figure, rows = "top1", ROWS

    def load(self, spec: str, options: argparse.Namespace, augment: bool) -> Any:
        """Read the whole set."""
        return DeviceImages.load(spec, options, augment)

    def cost(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the cross-entropy."""
        return nn.functional.cross_entropy(model(batch[0]), batch[1])


class Segmentation(Task):
    """Images with a class per pixel."""

    figure, rows = "miou", SEGMENTATION

    def load(self, spec: str, options: argparse.Namespace, augment: bool) -> Any:
        """Read scenes as they are needed."""
        return DeviceScenes(spec, options, "zoom" if augment else "none")

    def cost(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the cross-entropy with the masks."""
        return torch.stack(list(segmentation_loss(None, labels=1.0)(model, batch).values())).sum()


class Detection(Task):
    """Images with boxes."""

    figure, rows = "map", DETECTION

    def load(self, spec: str, options: argparse.Namespace, augment: bool) -> Any:
        """Read scenes as they are needed."""
        return DeviceScenes(spec, options, "flip" if augment else "none")

    def cost(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the detector's own losses."""
        return torch.stack(list(model(list(batch[0]), list(batch[1])).values())).sum()

    def losses(self, teacher: nn.Module) -> dict[str, Any]:
        """Compare features and heads."""
        return {"loss_fn": detection_loss(teacher)}


TASKS = {"classification": Classification(), "segmentation": Segmentation(), "detection": Detection()}


class DeviceScenes:
    """Scenes decoded by threads, each batch moved to the device."""

    def __init__(self, spec: str, options: argparse.Namespace, augment: str) -> None:
        self.data = binarize.load_data(
            spec, mean=options.mean, std=options.std, channels=options.channels, input_shape=options.input_shape,
            batch_size=options.batch, limit=options.limit, shuffle=augment != "none", augment=augment,
            workers=options.workers,
        )  # fmt: skip
        self.device, self.classes = torch.device(options.device), self.data.classes

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be this one."""
        self.data.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Any]:
        return (placed(batch, self.device) for batch in self.data)


class DeviceImages:
    """A whole data set on the device, shuffled and changed there."""

    def __init__(self, images: Tensor, labels: Tensor, augment: bool, batch: int) -> None:
        self.images, self.labels, self.augment, self.batch, self.epoch = images, labels, augment, batch, 0

    @classmethod
    def load(cls, spec: str, options: argparse.Namespace, augment: bool) -> "DeviceImages":
        """Read all that a spec names."""
        data = binarize.load_data(spec, mean=options.mean, std=options.std, batch_size=1000, limit=options.limit)
        images, labels = zip(*data, strict=True)
        return cls(torch.cat(images).to(options.device), torch.cat(labels).to(options.device), augment, options.batch)

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be this one."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.epoch)
        order = torch.arange(len(self.images))
        if self.augment:
            order = torch.randperm(len(order), generator=generator)
        for chunk in order.to(self.images.device).split(self.batch):
            images = self.images[chunk]
            yield (shift_and_flip(images, generator) if self.augment else images), self.labels[chunk]


class Table:
    """The run: what is done, and what is left."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.out = options, Path(options.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.file = self.out / "results.json"
        self.rows: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.end, self.stopping = time.monotonic() + 60 * options.minutes, False
        self.task = TASKS[options.task]
        self.train = self.task.load(options.train, options, augment=True)
        self.val = self.task.load(options.val, options, augment=False)

    def run(self) -> None:
        """Train row after row until the time is over."""
        model = self.original()
        wanted = [row for row in self.task.rows if not self.options.row or row.name in self.options.row]
        for index, row in enumerate(wanted):
            left = self.end - time.monotonic()
            if left > 0 and not self.rows.get(row.name, {}).get("finished"):
                self.one(row, model, left / (len(wanted) - index))

    def original(self) -> nn.Module:
        """Return the teacher, trained further at most once."""
        path = self.out / "original.pt"
        opened = open_model(self.options.weights or self.options.model, arch=self.options.model)
        model = opened.model.to(self.options.device).eval()
        if path.exists():
            model.load_state_dict(torch.load(path, weights_only=True, map_location=self.options.device))
        elif self.options.original_epochs:
            train_floats(model, self.train, self.options.original_epochs, self.task, self.options.original_rate)
        torch.save(model.state_dict(), path)
        self.keep("original", {self.task.figure: self.judged(model), "finished": True})
        return model

    def judged(self, net: nn.Module) -> float:
        """Return the figure of a network."""
        return binarize.evaluate(net, self.val).figures()[self.task.figure]

    def one(self, row: Row, model: nn.Module, seconds: float) -> None:
        """Convert and train one row for about so long; keep what came of it."""
        known = self.rows.get(row.name, {})
        start = time.monotonic()
        begun = (self.out / row.name / "checkpoint.pt").exists()  # it has the values
        recipe = Recipe(scheme=row.scheme, reconstruct=self.options.reconstruct and not begun)
        net = binarize.convert(model, recipe=recipe, data=first_batches(self.train, 8))
        epochs = known.get("epochs") or self.epochs_in(row, net, model, seconds + start - time.monotonic())
        asked = {"scheme": row.scheme, "lr": self.options.lr, "reconstruct": self.options.reconstruct}
        result = {**asked, "epochs": epochs, "converted": known["converted"] if begun else self.judged(net)}
        self.keep(row.name, {**known, **result, "finished": False})
        history = finetune(
            net, self.train, **self.task.losses(model), val=self.val, settings=self.settings(epochs, row),
            stages=row.stages or None, checkpoint=self.out / row.name, resume=True, progress=self.stop_in_time,
        )  # fmt: skip
        passed = known.get("seconds", 0.0) + time.monotonic() - start
        figure = self.task.figure
        result |= {figure: self.judged(net), "done": len(history.epochs), "seconds": passed}
        result |= {"gap": self.rows["original"][figure] - result[figure], "finished": history.stopped is None}
        if history.epochs:
            result["images_per_second"] = history.epochs[-1].images_per_second
        if history.stopped is None:
            binarize.save(
                binarize.pack(net.cpu()), self.out / f"{row.name}.safetensors", metrics={figure: result[figure]}
            )
        self.keep(row.name, result)

    def settings(self, epochs: int, row: Row) -> Settings:
        """Return how this row is trained."""
        fast = {"channels_last": self.options.channels_last, "compile": self.options.compile, "bf16": self.options.bf16}
        return Settings(epochs=epochs, lr=self.options.lr, losses=row.losses, **fast)

    def epochs_in(self, row: Row, net: nn.Module, model: nn.Module, seconds: float) -> int:
        """Return how many epochs fit, from a few steps on a copy."""
        trial = first_batches(self.train, TRIAL)
        start = time.monotonic()
        finetune(copy.deepcopy(net), trial, **self.task.losses(model), settings=self.settings(1, row))
        epoch = (time.monotonic() - start) * len(self.train) / len(trial)
        return max(1, min(self.options.epochs, int(0.9 * seconds / epoch)))

    def stop_in_time(self, step: Step) -> None:
        """Ask the run to end with a checkpoint, as a signal from outside would; once, a second ends it at once."""
        if time.monotonic() > self.end and not self.stopping:
            self.stopping = True
            os.kill(os.getpid(), signal.SIGTERM)

    def keep(self, name: str, result: dict[str, Any]) -> None:
        """Write the results, this one among them."""
        self.rows[name] = result
        with replacing(self.file) as draft:
            draft.write_text(json.dumps(self.rows, indent=1))
        print(json.dumps({"row": name, **result}), flush=True)


def first_batches(data: Any, count: int) -> list[Any]:
    """Return the first batches of a pass."""
    return [batch for batch, _ in zip(data, range(count), strict=False)]


def train_floats(model: nn.Module, train: Any, epochs: int, task: Task, rate: float) -> None:
    """Train the original further: SGD with Nesterov momentum and cosine decay."""
    optimiser = torch.optim.SGD(model.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * len(train))
    model.train()
    for epoch in range(epochs):
        train.set_epoch(epoch)
        for batch in train:
            optimiser.zero_grad()
            task.cost(model, batch).backward()
            if task.figure != "top1":
                nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimiser.step()
            schedule.step()
    model.eval()


def numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def sizes(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", help="folder for results, checkpoints and networks")
    parser.add_argument("--model", required=True, help="what builds the original, as --arch of the command line")
    parser.add_argument("--weights", help="its weights")
    parser.add_argument("--train", required=True, help="data spec")
    parser.add_argument("--val", required=True, help="data spec, labelled")
    parser.add_argument("--mean", type=numbers)
    parser.add_argument("--std", type=numbers)
    parser.add_argument("--task", choices=list(TASKS), default="classification")
    parser.add_argument("--channels", choices=["rgb", "bgr"], default="rgb", help="of scenes")
    parser.add_argument("--input-shape", type=sizes, help="that scenes are resized to")
    parser.add_argument("--workers", type=int, default=0, help="threads that decode scenes")
    parser.add_argument("--original-rate", type=float, default=0.02)
    parser.add_argument("--limit", type=int, help="use so many images only")
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--epochs", type=int, default=200, help="of each row, at most")
    parser.add_argument("--reconstruct", action="store_true", help="begin each row from block reconstruction")
    parser.add_argument("--lr", type=float, help="as in binarize.finetune.Settings")
    parser.add_argument("--original-epochs", type=int, default=0)
    parser.add_argument("--batch", type=int, default=128)
    for name in ("channels-last", "compile", "bf16"):
        parser.add_argument(f"--{name}", action="store_true", help="as in binarize.finetune.Settings")
    parser.add_argument("--row", action="append", help="train these rows only; repeatable")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args(words)
    known = [row.name for row in TASKS[options.task].rows]
    for name in options.row or ():
        if name not in known:
            parser.error(f"no row {name!r} of {options.task}: the rows are {', '.join(known)}")
    torch.manual_seed(0)
    Table(options).run()


if __name__ == "__main__":
    main()
