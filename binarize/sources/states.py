"""Unwraps checkpoints and puts a state_dict into a model, or says which keys do not fit."""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from binarize.errors import SourceError

__all__ = ["Gap", "Unwrapped", "gap_between", "load_fitting", "unwrap"]

State = Mapping[str, Tensor]
# Where training scripts keep the weights in a checkpoint, first found first taken.
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "network", "net", "weights", "params", "ema")
# What wrappers around a model leave before every key: DataParallel, torch.compile, Lightning.
PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.")
# torchvision's first densenet files wrote `denselayer1.norm.1.weight` for `denselayer1.norm1.weight`.
OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\.\w+)$")
OPTIONAL = ("num_batches_tracked", "_extra_state")
ROUNDS = 4  # of options that are tried to make a model fit: auxiliary heads, classes, and classes once more
SHOWN = 3


@final
@dataclass(frozen=True)
class Unwrapped:
    """What a checkpoint held: a module, or a state_dict with plain keys; and how it was found."""

    module: nn.Module | None
    state: State
    notes: tuple[str, ...]


@final
@dataclass(frozen=True)
class Gap:
    """Keys by which a state_dict and a model differ."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    shapes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.shapes)


def unwrap(loaded: object, name: str) -> Unwrapped:
    """Find the module or the state_dict in what a file held.

    Raises:
        SourceError: There is neither.
    """
    notes: list[str] = []
    while isinstance(loaded, Mapping):
        key = next((key for key in WRAPPERS if isinstance(loaded.get(key), Mapping | nn.Module)), None)
        if key is None:
            break
        others = [str(other) for other in loaded if other != key]
        notes.append(f"weights are the checkpoint's {key!r}" + (f"; not used: {_listing(others)}" if others else ""))
        loaded = loaded[key]
    if isinstance(loaded, nn.DataParallel):
        loaded = loaded.module
    if isinstance(loaded, nn.Module):
        return Unwrapped(loaded, {}, tuple(notes))
    if not isinstance(loaded, Mapping) or not any(isinstance(value, Tensor) for value in loaded.values()):
        raise SourceError(f"cannot open {name!r}: {_describe(loaded)}; save model.state_dict() or the model itself")
    state = {str(key): value for key, value in loaded.items() if isinstance(value, Tensor)}
    if len(state) < len(loaded):
        ignored = [str(key) for key, value in loaded.items() if not isinstance(value, Tensor)]
        notes.append(f"entries that are no tensors were ignored: {_listing(ignored)}")
    return Unwrapped(None, state, tuple(notes))


def gap_between(model: nn.Module, state: State) -> Gap:
    """Compare keys and shapes. A missing ``num_batches_tracked`` or ``_extra_state`` is no gap: it holds no weights."""
    expected = model.state_dict()
    return Gap(
        missing=tuple(k for k in expected if k not in state and not k.endswith(OPTIONAL)),
        unexpected=tuple(k for k in state if k not in expected),
        shapes=tuple(
            k
            for k in state
            if k in expected and isinstance(expected[k], Tensor) and state[k].shape != expected[k].shape
        ),
    )


def load_fitting(build: Callable[..., nn.Module], state: State, name: str, arch: str) -> tuple[nn.Module, str | None]:
    """Build a model, if need be with another number of classes or auxiliary heads, and load ``state`` into it.

    Args:
        build: Makes the model; takes any of ``num_classes``, ``aux_logits`` and ``aux_loss``, or raises TypeError.
        state: The weights; any floating type.
        name: The file, for the message.
        arch: The architecture, for the message.

    Returns:
        The model, and what had to be chosen for the weights to fit (None: nothing).

    Raises:
        SourceError: Keys are missing, left over or of another shape.
    """
    model = build()
    state, gap = _renamed(model, state)
    options: dict[str, Any] = {}
    before = _rows(model)
    for _ in range(ROUNDS):
        more = _suggestion(gap, state, before, _rows(model), options)
        if not more:
            break
        options.update(more)
        try:
            model = build(**options)
        except (TypeError, ValueError, RuntimeError):
            break
        gap = gap_between(model, state)
    if gap:
        raise SourceError(
            f"cannot load {name!r} into {arch}: {_explain(build(), state)}; give the --arch it was made by"
        )
    _put(model, state, name, arch)
    chosen = ", ".join(f"{key}={value}" for key, value in options.items())
    return model, f"built with {chosen}, as the weights ask" if chosen else None


def _put(model: nn.Module, state: State, name: str, arch: str) -> None:
    weights = OrderedDict(state)
    # Renamed and safetensors states carry no versions of their layers, without which some layers refuse to load.
    weights._metadata = getattr(model.state_dict(), "_metadata", {})  # type: ignore[attr-defined]
    try:
        model.load_state_dict(weights, strict=False)
    except (RuntimeError, ValueError) as error:  # a layer's own loading refused them
        reason = str(error).strip().splitlines()[0]
        raise SourceError(f"cannot load {name!r} into {arch}: {reason}; give the --arch it was made by") from error


def _renamed(model: nn.Module, state: State) -> tuple[State, Gap]:
    candidates = list(_spellings(state))
    gaps = [gap_between(model, candidate) for candidate in candidates]
    best = min(range(len(gaps)), key=lambda i: len(gaps[i]))
    return candidates[best], gaps[best]


def _spellings(state: State) -> Iterator[State]:
    yield state
    for _ in PREFIXES:
        prefix = next((p for p in PREFIXES if state and all(key.startswith(p) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
        yield state
    if any(OLD_DENSENET.match(key) for key in state):
        yield {OLD_DENSENET.sub(r"\1\2", key): value for key, value in state.items()}


def _rows(model: nn.Module) -> dict[str, int]:
    return {key: len(value) for key, value in model.state_dict().items() if isinstance(value, Tensor) and value.ndim}


def _suggestion(
    gap: Gap, state: State, before: Mapping[str, int], now: Mapping[str, int], tried: Mapping[str, Any]
) -> dict[str, Any]:
    """Return options to try, for rows of the weights of the model before any and of the one with those ``tried``."""
    found: dict[str, Any] = {}
    if any(key.lower().startswith("aux") for key in gap.missing):
        found["aux_logits"] = False
    if any(key.startswith("aux_classifier.") for key in gap.unexpected):
        found["aux_loss"] = True
    weights = [key for key in gap.shapes if state[key].ndim > 0 and key in now]
    if weights and not found:
        key, classes = weights[-1], len(state[weights[-1]])
        if "num_classes" in tried:
            # A detector has rows for every class and anchor, or side of a box; rows that stayed are of no class.
            stayed = now[key] == before.get(key)
            classes = 0 if stayed else classes * tried["num_classes"] // max(now[key], 1)
        if classes > 0:
            found["num_classes"] = classes
    return {key: value for key, value in found.items() if tried.get(key) != value}


def _explain(model: nn.Module, state: State) -> str:
    state, gap = _renamed(model, state)
    expected = model.state_dict()
    shapes = [f"{key} ({_shape(state[key])}, the model has {_shape(expected[key])})" for key in gap.shapes]
    parts = (("missing", gap.missing), ("unexpected", gap.unexpected), ("of another shape", shapes))
    return "; ".join(f"{len(keys)} keys {word}: {_listing(keys)}" for word, keys in parts if keys)


def _listing(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(keys[:SHOWN]) + more


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _describe(loaded: object) -> str:
    if isinstance(loaded, torch.Tensor):
        return f"it holds a single tensor of shape {_shape(loaded)}"
    if isinstance(loaded, Mapping):
        return f"it holds a dict without weights (keys: {_listing([str(key) for key in loaded]) or 'none'})"
    return f"it holds a {type(loaded).__name__}, neither a state_dict nor a module"
