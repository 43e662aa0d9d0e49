"""Ready loss functions of segmentation and detection, for ``finetune(..., loss_fn=...)``.

    finetune(net, loader, loss_fn=segmentation_loss(teacher))
    finetune(net, loader, loss_fn=detection_loss(teacher))

Each brings the network close to its teacher where a single label per image says nothing: pixel by pixel, or in the
feature pyramid and what the heads make of it.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from binarize.errors import TrainingError
from binarize.measures import scores_of_pixels
from binarize.scenes import VOID
from binarize.training.blocks import feature_distance
from binarize.training.objectives import LossFunction, soft_cross_entropy

__all__ = ["detection_loss", "segmentation_loss"]

PARTS = ("backbone", "head", "rpn.head")
"""What the detectors of torchvision call their features and the heads that read all of them."""


def segmentation_loss(
    teacher: nn.Module | None, *, labels: float = 0.0, pixels: float = 1.0, temperature: float = 1.0
) -> LossFunction:
    """Return a loss over every pixel: the cross-entropy with the masks and with the teacher's softened scores.

    Args:
        teacher: the original, in evaluation mode on the device of the batches; None without.
        labels: weight of the cross-entropy with the masks; pixels of `VOID` are left out.
        pixels: weight of the cross-entropy with the teacher's scores at every pixel, less its least value.
        temperature: divides both scores first.

    Raises:
        TrainingError: nothing would be minimised.
    """
    if not labels and (teacher is None or not pixels):
        raise TrainingError("cannot fine-tune: neither masks nor a teacher are asked for; set a weight above 0")

    def loss(net: nn.Module, batch: Any) -> dict[str, Tensor]:
        images, masks = batch if isinstance(batch, tuple | list) else (batch, None)
        found = _scores(net(images))
        terms: dict[str, Tensor] = {}
        if labels:
            if masks is None:
                raise TrainingError("cannot fine-tune on masks: the data has none; give a teacher, or data with masks")
            terms["labels"] = labels * F.cross_entropy(found, masks, ignore_index=VOID)
        if teacher is not None and pixels:
            with torch.no_grad():
                theirs = _scores(teacher(images))
            terms["pixels"] = pixels * soft_cross_entropy(found, theirs, temperature)
        return terms

    return loss


def _scores(output: Any) -> Tensor:
    found = scores_of_pixels(output)
    if found is None:
        what = f"the output is a {type(output).__name__}"
        raise TrainingError(f"cannot fine-tune on pixels: {what}; it must be (n, classes, h, w), alone or as 'out'")
    return found


def detection_loss(
    teacher: nn.Module | None, *, boxes: float = 1.0, features: float = 1.0, heads: float = 1.0
) -> LossFunction:
    """Return a loss for the detectors of torchvision: their own, and the distance to a teacher inside.

    Network and teacher see the same resized images, and a second stage the network's own proposals, so that what is
    compared belongs together. Distances are mean squared differences over the variance of the teacher's values.

    Args:
        teacher: the original, in evaluation mode on the device of the batches; None without.
        boxes: weight of the detector's own losses, which need boxes.
        features: weight of the distance between the feature pyramids.
        heads: weight of the distance between what the heads give: scores and boxes at all places, and those of the
            second stage.

    Raises:
        TrainingError: nothing would be minimised.
    """
    if not boxes and (teacher is None or not (features or heads)):
        raise TrainingError("cannot fine-tune: neither boxes nor a teacher are asked for; set a weight above 0")

    def loss(net: nn.Module, batch: Any) -> dict[str, Tensor]:
        images, targets = batch
        inner = getattr(net, "module", net)  # what a distributed form wraps
        with _Seen(inner) as seen:
            own = net(list(images), [dict(target) for target in targets])
        if not isinstance(own, Mapping):
            what = f"{type(inner).__name__} gives a {type(own).__name__} in training"
            raise TrainingError(f"cannot fine-tune as a detector: {what}, not a dict of losses; give a loss_fn")
        terms = {name: boxes * value for name, value in own.items()} if boxes else {}
        if teacher is not None and (features or heads):
            found = _distances(inner, teacher, seen)
            wanted = {"features": features, "heads": heads}
            terms |= {name: weight * found[name] for name, weight in wanted.items() if weight and name in found}
        return terms

    return loss


@final
class _Seen:
    """What went into and came out of the parts of a detector in one pass."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.inputs: dict[str, tuple[Any, ...]] = {}
        self.outputs: dict[str, Any] = {}
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "_Seen":
        for name in (*PARTS, *_second_stage(self.net)):
            module = _part(self.net, name)
            if module is not None:
                handle = module.register_forward_hook(self._keeping(name))
                self._open.callback(handle.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _keeping(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self.inputs[name], self.outputs[name] = args, output

        return keep


def _second_stage(net: nn.Module) -> tuple[str, ...]:
    return ("roi_heads.box_roi_pool", "roi_heads.box_predictor") if _part(net, "roi_heads") is not None else ()


def _part(net: nn.Module, name: str) -> nn.Module | None:
    try:
        return net.get_submodule(name)
    except AttributeError:
        return None


def _distances(net: nn.Module, teacher: nn.Module, seen: _Seen) -> dict[str, Tensor]:
    if "backbone" not in seen.outputs:
        raise TrainingError(
            f"cannot distil {type(net).__name__}: it has no 'backbone' that it calls; give a loss_fn of your own"
        )
    with torch.no_grad():
        theirs = teacher.get_submodule("backbone")(*seen.inputs["backbone"])
        wanted = {name: _of_teacher(teacher, name, seen, theirs) for name in seen.outputs if name in PARTS[1:]}
        if "roi_heads.box_predictor" in seen.outputs:
            wanted["roi_heads.box_predictor"] = _second_of_teacher(teacher, seen, theirs)
    found = {"features": _distance(seen.outputs["backbone"], theirs)}
    heads = [_distance(seen.outputs[name], value) for name, value in wanted.items()]
    return {**found, "heads": torch.stack(heads).mean()} if heads else found


def _of_teacher(teacher: nn.Module, name: str, seen: _Seen, features: Any) -> Any:
    """Return what a head of the teacher makes of the teacher's features."""
    maps = list(features.values()) if isinstance(features, Mapping) else [features]
    return teacher.get_submodule(name)(maps, *seen.inputs[name][1:])


def _second_of_teacher(teacher: nn.Module, seen: _Seen, features: Any) -> Any:
    """Return what the teacher's second stage makes of the network's proposals."""
    maps = features if isinstance(features, Mapping) else {"0": features}
    stage: Any = teacher.get_submodule("roi_heads")
    regions = stage.box_roi_pool(maps, *seen.inputs["roi_heads.box_roi_pool"][1:])
    return stage.box_predictor(stage.box_head(regions))


def _distance(ours: Any, theirs: Any) -> Tensor:
    pairs = list(zip(_leaves(ours), _leaves(theirs), strict=True))
    return torch.stack([feature_distance(x, y) for x, y in pairs]).mean()


def _leaves(value: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors in nested lists and dicts, in order."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from _leaves(item)
