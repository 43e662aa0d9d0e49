"""What one batch costs: the terms of `Losses`, or a user's own function."""

import abc
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from binarize.errors import TrainingError, one_line
from binarize.layers.branches import Router
from binarize.measures import scores_of_pixels
from binarize.scenes import VOID
from binarize.training.blocks import Taps, block_distance
from binarize.training.settings import Losses

__all__ = ["ClassifierObjective", "Cost", "Objective", "OwnObjective"]

OF_IMAGES, OF_MAPS = 4.0, 1.0  # the temperature where nobody gives one; docs/finetune.md has the figures

LossFunction = Callable[[nn.Module, Any], "Tensor | Mapping[str, Tensor]"]


@final
class Cost:
    """What one batch costs.

    Attributes:
        terms: scalars, added up in `total`.
        hits: images whose label has the largest output; None where that means nothing.
    """

    def __init__(self, terms: Mapping[str, Tensor], hits: Tensor | None = None) -> None:
        self.terms, self.hits = dict(terms), hits

    def total(self) -> Tensor:
        """Return the scalar to minimise."""
        return torch.stack([term.float() for term in self.terms.values()]).sum()


class Objective(abc.ABC):
    """Costs a batch.

    Attributes:
        teacher: whose outputs are learnt, or None.
        temperature: that they were last softened by, or None.
    """

    teacher: nn.Module | None = None
    temperature: float | None = None

    @abc.abstractmethod
    def __call__(self, model: nn.Module, batch: Any) -> Cost:
        """Run ``model``, the network or its distributed form, on one batch."""


@final
class OwnObjective(Objective):
    """A user's ``loss_fn(net, batch)``: a scalar, or a dict of scalars that are added up."""

    def __init__(self, loss_fn: LossFunction) -> None:
        self.loss_fn = loss_fn

    def __call__(self, model: nn.Module, batch: Any) -> Cost:
        """Call the function."""
        found = self.loss_fn(model, batch)
        terms = {"loss": found} if isinstance(found, Tensor) else found
        if not isinstance(terms, Mapping) or not all(isinstance(v, Tensor) and v.numel() == 1 for v in terms.values()):
            saw = (
                f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            )
            raise TrainingError(f"cannot minimise what loss_fn returned: {saw}; return a scalar or a dict of scalars")
        if torch.is_grad_enabled() and not any(term.requires_grad for term in terms.values()):
            what = "it has no gradient"
            raise TrainingError(f"cannot minimise what loss_fn returned: {what}; compute it from what net(...) gives")
        return Cost({name: term.reshape(()) for name, term in terms.items()})


@final
class ClassifierObjective(Objective):
    """Labels, the teacher's outputs and the teacher's block outputs, weighted.

    The second axis of an output ``(n, classes, ...)`` holds the classes, so segmentation by one map of labels works
    too: pixel by pixel, the map alone or as ``out`` of a dict, pixels of `VOID` left out.

    Attributes:
        losses: the weights, resolved.
        teacher: in evaluation mode, a `Taps` where blocks are compared; None without.
        routers: of the network, for their balance.
        shape: ``(c, h, w)`` that the network was calibrated for, where it is known.
    """

    def __init__(
        self, losses: Losses, teacher: nn.Module | None, net: nn.Module, shape: tuple[int, ...] | None = None
    ) -> None:
        self.losses, self.teacher = losses, teacher
        self.routers = [module for module in net.modules() if isinstance(module, Router)]
        self.shape = shape

    def __call__(self, model: nn.Module, batch: Any) -> Cost:
        """Run both networks on the batch's images and compare."""
        images, labels = images_and_labels(batch)
        self._require_channels_second(images)
        if self.losses.mix:
            images, labels = mixed(images, self.losses.mix), None
        found, blocks = _split(model(images), self.losses.blocks > 0)
        terms: dict[str, Tensor] = {}
        if self.losses.labels:
            terms["labels"] = self.losses.labels * self._labels(found, labels)
        if self.teacher is not None:
            theirs, their_blocks = self._taught(self.teacher, images)
            if self.losses.logits and theirs.shape != found.shape:
                what = f"its outputs have shape {tuple(theirs.shape)}, the network's {tuple(found.shape)}"
                raise TrainingError(f"cannot learn from the teacher: {what}; give the network that was converted")
            if self.losses.logits:
                self.temperature = self.losses.temperature or (OF_IMAGES if found.dim() == 2 else OF_MAPS)
                terms["logits"] = self.losses.logits * soft_cross_entropy(found, theirs, self.temperature)
            if self.losses.blocks:
                distance = block_distance(self.losses.blocks_as, blocks, their_blocks)
                terms["blocks"] = self.losses.blocks * distance
        balances = [router.balance for router in self.routers if router.balance is not None]
        if self.losses.balance and balances:
            terms["balance"] = self.losses.balance * torch.stack(balances).sum()
        return Cost(terms, _hits(found, labels))

    def _require_channels_second(self, images: Tensor) -> None:
        """Refuse images ``(n, h, w, c)``, of which a convolution would say less."""
        if self.shape is None or len(self.shape) != 3 or images.dim() != 4:
            return
        if images.shape[1] != self.shape[0] == images.shape[3]:
            what = f"they have shape {tuple(images.shape)}, the network takes {('n', *self.shape)}"
            raise TrainingError(f"cannot fine-tune on these images: {what}; put the channels second")

    @staticmethod
    @torch.no_grad()
    def _taught(teacher: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        try:
            return _split(teacher(images), isinstance(teacher, Taps))
        except RuntimeError as cause:
            what = f"it does not take images of shape {tuple(images.shape)} ({one_line(cause, 160)})"
            raise TrainingError(
                f"cannot learn from the teacher: {what}; give the network that was converted"
            ) from cause

    def _labels(self, found: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            raise TrainingError("cannot fine-tune on labels: the data has none; give a teacher, or data with labels")
        void = VOID if found.dim() == 4 else -100  # of masks; -100 is torch's own default
        try:
            return F.cross_entropy(found, labels, label_smoothing=self.losses.smoothing, ignore_index=void)
        except (RuntimeError, IndexError, ValueError) as cause:
            what = f"of {labels.dtype} {tuple(labels.shape)} for outputs {tuple(found.shape)} ({one_line(cause, 160)})"
            wrong = (
                None
                if labels.is_floating_point()
                else labels[(labels != void) & ((labels < 0) | (labels >= found.shape[1]))]
            )
            if wrong is not None and len(wrong):
                what = f"a label is {int(wrong[0])}, the network has outputs 0 to {found.shape[1] - 1}"
                raise TrainingError(f"cannot fine-tune on the labels: {what}; number the classes from 0") from cause
            raise TrainingError(f"cannot fine-tune on labels {what}; give whole numbers below the classes") from cause


def mixed(images: Tensor, most: float) -> Tensor:
    """Return each image ``(n, ...)`` with up to ``most`` of another mixed in, the one as far from the other end."""
    share = (most * torch.rand(len(images))).to(images).reshape(-1, *[1] * (images.dim() - 1))
    return images.lerp(images.flip(0), share)


def soft_cross_entropy(ours: Tensor, theirs: Tensor, temperature: float) -> Tensor:
    """Return ``-T^2 mean sum softmax(theirs / T) log softmax(ours / T)`` over axis 1, less its least value.

    The least value, the entropy of the teacher's outputs, has no gradient; without it 0 means that both agree.
    """
    target = F.log_softmax(theirs.float() / temperature, 1)
    guess = F.log_softmax(ours.float() / temperature, 1)
    return temperature**2 * (target.exp() * (target - guess)).sum(1).mean()


def images_and_labels(batch: Any) -> tuple[Tensor, Tensor | None]:
    """Return the images of a batch as a loader gives it, and its labels where it has some."""
    images, labels = _parts(batch)
    if images.dtype in (torch.uint8, torch.float64):
        remedy = "give float32, scaled as the model was trained"
        raise TrainingError(f"cannot fine-tune on images of {images.dtype}: {remedy}")
    return images, labels


def _parts(batch: Any) -> tuple[Tensor, Tensor | None]:
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, tuple | list) and batch and isinstance(batch[0], Tensor):
        return batch[0], batch[1] if len(batch) > 1 and isinstance(batch[1], Tensor) else None
    saw = f"a {type(batch).__name__}"
    if isinstance(batch, tuple | list):
        saw += f" of {', '.join(type(part).__name__ for part in batch[:4]) or 'nothing'}"
    raise TrainingError(f"cannot fine-tune on a batch that is {saw}: yield tensors (images, labels), or give a loss_fn")


def _split(found: Any, tapped: bool) -> tuple[Tensor, list[Tensor]]:
    output, blocks = found if tapped else (found, [])
    scores = scores_of_pixels(output) if isinstance(output, Mapping) else output
    if not isinstance(scores, Tensor) or scores.dim() < 2:
        what = f"the output is a {type(output).__name__}, not scores (n, classes)"
        raise TrainingError(f"cannot fine-tune as a classifier: {what}; give loss_fn(net, batch)")
    return scores, blocks


def _hits(found: Tensor, labels: Tensor | None) -> Tensor | None:
    if labels is None or found.dim() != 2 or labels.dim() != 1:
        return None
    return (found.detach().argmax(1) == labels).sum()
