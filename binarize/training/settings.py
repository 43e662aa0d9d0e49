"""How to fine-tune, as data."""

import dataclasses
import numbers
from typing import Literal, final

from binarize.errors import TrainingError

__all__ = ["Losses", "Settings"]

RATES = {"adam": 0.02, "adamw": 0.02, "sgd": 0.01}
DECAYS = {"adam": 0.0, "adamw": 0.002, "sgd": 1e-4}


@final
@dataclasses.dataclass(frozen=True)
class Losses:
    """What is minimised: a sum of terms with weights; a term of weight 0 is not computed.

    Attributes:
        labels: of the cross-entropy with the labels; None for 0 with a teacher and 1 without.
        logits: of the cross-entropy with the teacher's softened outputs, times the temperature squared (Hinton et al.,
            arXiv:1503.02531, equation 1, section 2.1); None for 1 with a teacher and 0 without.
        blocks: of the distance to the teacher's block outputs.
        blocks_as: ``attention`` compares where the energy is (Zagoruyko and Komodakis, arXiv:1612.03928, equation 2),
            ``features`` every value, over the teacher's variance.
        at: names of the graph's nodes to compare; empty for the exit of every group.
        temperature: divides both outputs before the softmax of ``logits``: above 1 what the teacher holds of classes
            that it does not choose counts more. None for 4, and for 1 where outputs are maps, ``(n, classes, h, w)``:
            pixels are seldom learnt by heart, images are.
        smoothing: share of a label that is spread over all classes.
        balance: of the term that keeps routers from using few branches.
        mix: largest share of another image of the batch that is mixed into each, 0.5 at most: a teacher knows what it
            sees there (Beyer et al., arXiv:2106.05237, section 3, "function matching").
    """

    labels: float | None = None
    logits: float | None = None
    blocks: float = 0.0
    blocks_as: Literal["attention", "features"] = "attention"
    at: tuple[str, ...] = ()
    temperature: float | None = None
    smoothing: float = 0.0
    balance: float = 0.01
    mix: float = 0.0

    def __post_init__(self) -> None:
        weights = {key: getattr(self, key) for key in ("labels", "logits", "blocks", "balance", "smoothing")}
        for key, value in weights.items():
            fits = (value is None and key in ("labels", "logits")) or (_is_number(value) and value >= 0)
            _require(fits, key, value, "a number, 0 or more")
        _require(self.blocks_as in ("attention", "features"), "blocks_as", self.blocks_as, "attention or features")
        warm = self.temperature is None or (_is_number(self.temperature) and self.temperature > 0)
        _require(warm, "temperature", self.temperature, "a number above 0")
        _require(self.smoothing < 1, "smoothing", self.smoothing, "below 1")
        _require(_is_number(self.mix) and 0 <= self.mix <= 0.5, "mix", self.mix, "a number from 0 to 0.5")

    def resolved(self, has_teacher: bool) -> "Losses":
        """Return the same with both defaults decided.

        Raises:
            TrainingError: a term or `mix` needs a teacher and there is none, images are mixed whose labels count, an
                option is for a term of weight 0, or nothing at all is minimised.
        """
        labels = (0.0 if has_teacher else 1.0) if self.labels is None else self.labels
        logits = (1.0 if has_teacher else 0.0) if self.logits is None else self.logits
        if not has_teacher and (logits or self.blocks):
            raise TrainingError(
                "cannot distil without a teacher: give one, or set the weights of logits and blocks to 0"
            )
        if self.mix and (labels or not has_teacher):
            remedy = "give a teacher and leave the weight of labels at 0"
            raise TrainingError(f"cannot mix images: mixed ones have no label; {remedy}")
        for key, weight, needs in (("temperature", logits, "logits"), ("smoothing", labels, "labels")):
            if getattr(self, key) != getattr(Losses, key) and not weight:
                what = f"cannot fine-tune with {key} {getattr(self, key)!r}: the loss of {needs} has no weight"
                raise TrainingError(f"{what}; leave it out, or set {needs}")
        if not (labels or logits or self.blocks):
            raise TrainingError("cannot fine-tune: the weights of labels, logits and blocks are all 0; set one above 0")
        return dataclasses.replace(self, labels=labels, logits=logits)


@final
@dataclasses.dataclass(frozen=True)
class Settings:
    """How the weights are moved.

    Attributes:
        epochs: passes over the data, of each stage that names no number of its own.
        optimiser: ``adam`` and ``adamw`` suit few planes; ``sgd`` (Nesterov) is for many planes and long runs.
        lr: highest learning rate. For Adam and AdamW: the share of the distance between two levels that a weight moves
            by in one step, because latent weights have a scale of their own in each layer; everything else moves by
            a smaller share of its size. For SGD the rate of the weights; learnt levels get it over the root of
            their layer's number of weights. None for 0.02, 0.02 and 0.01.
        schedule: of the learning rate over a stage: ``cosine``, ``linear`` to 0, ``step``, or ``constant``.
        milestones: for ``step``: the shares of a stage after which the rate falls.
        drop: for ``step``: what it is multiplied by.
        warmup: share of a stage over which the rate rises from 0.
        decay: weight decay of latent and float weights; nothing else decays. None for 0, 0.002 and 1e-4.
        momentum: of SGD.
        clip: largest norm of the gradient; 0 for no limit.
        accumulate: batches whose gradients are averaged for one step.
        ema: share of the old value in a running average of all values, such as 0.999; the average is what is validated
            and kept. 0 for none.
        freeze_norm: keep the statistics of normalisation layers as they are: for small batches.
        bf16: compute in bfloat16 where torch knows it safe; the weights stay float32.
        channels_last: keep images and weights in channels-last memory.
        compile: run through `torch.compile`.
        checkpoint_minutes: write a checkpoint within an epoch after so long; one is written after each epoch anyway.
        seed: of the order of the data and every other random choice.
        losses: what is minimised.
    """

    epochs: int = 10
    optimiser: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float | None = None
    schedule: Literal["cosine", "step", "linear", "constant"] = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75)
    drop: float = 0.1
    warmup: float = 0.02
    decay: float | None = None
    momentum: float = 0.9
    clip: float = 0.0
    accumulate: int = 1
    ema: float = 0.0
    freeze_norm: bool = False
    bf16: bool = False
    channels_last: bool = False
    compile: bool = False
    checkpoint_minutes: float = 15.0
    seed: int = 0
    losses: Losses = dataclasses.field(default_factory=Losses)

    def __post_init__(self) -> None:
        _require(self.optimiser in RATES, "optimiser", self.optimiser, " or ".join(RATES))
        _require(self.schedule in SCHEDULES, "schedule", self.schedule, " or ".join(SCHEDULES))
        for key in ("epochs", "accumulate"):
            value = getattr(self, key)
            _require(isinstance(value, int) and value >= 1, key, value, "a whole number, 1 or more")
        _require(isinstance(self.seed, int), "seed", self.seed, "a whole number")
        for key in ("lr", "decay", "clip", "drop", "checkpoint_minutes"):
            value = getattr(self, key)
            fits = (value is None and key in ("lr", "decay")) or (_is_number(value) and value >= 0)
            _require(fits, key, value, "a number, 0 or more")
        share = self.optimiser == "sgd" or self.lr is None or self.lr <= 1
        _require(share, "lr", self.lr, f"a share of the way between two levels, at most 1, with {self.optimiser}")
        for key in ("warmup", "ema", "momentum"):
            value = getattr(self, key)
            _require(_is_number(value) and 0 <= value < 1, key, value, "a number from 0 to below 1")

    def resolved(self) -> "Settings":
        """Return the same with the learning rate and the weight decay decided."""
        return dataclasses.replace(self, lr=self.rate, decay=self.weight_decay)

    @property
    def rate(self) -> float:
        """The learning rate, decided."""
        return RATES[self.optimiser] if self.lr is None else self.lr

    @property
    def weight_decay(self) -> float:
        """The weight decay, decided."""
        return DECAYS[self.optimiser] if self.decay is None else self.decay


SCHEDULES = ("cosine", "step", "linear", "constant")


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real)


def _require(holds: bool, key: str, value: object, wanted: str) -> None:
    if not holds:
        raise TrainingError(f"cannot fine-tune with {key} {value!r}: it must be {wanted}")
