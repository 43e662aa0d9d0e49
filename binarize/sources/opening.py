"""`open_model`: a path, a torchvision name or a factory becomes a model in eval mode, or one clear error."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from binarize.errors import ModelError, SourceError
from binarize.sources.builders import PREFIX, Builder, find_builder, pretrained, torchvision_builder
from binarize.sources.files import FileKind, digest, identify, require_readable
from binarize.sources.pickles import load_pickle
from binarize.sources.states import load_fitting, unwrap

__all__ = ["Opened", "open_model", "require_finite"]


@final
@dataclass(frozen=True)
class Opened:
    """A user's model and where it came from.

    Attributes:
        model: The model, float32, on the CPU, in eval mode.
        name: Short name, for titles and default output names.
        origin: "file", "torchvision" or "factory".
        arch: What built it, as the user would write it; None where the file held the whole model.
        sha256: Of the file; None without one.
        kind: "safetensors", "state_dict", "module", "exported program", "torchvision" or "factory".
        input_shape: ``(c, h, w)`` of one image where the source tells it.
        notes: Sentences a user should read: what was chosen, what to doubt.
    """

    model: nn.Module
    name: str
    origin: str
    arch: str | None
    sha256: str | None
    kind: str
    input_shape: tuple[int, ...] | None
    notes: tuple[str, ...]


def open_model(
    spec: str, *, arch: str | None = None, trust_packages: Sequence[str] = (), weights: str | None = None
) -> Opened:
    """Open a model without running anything that a file brings along.

    Args:
        spec: A file (state_dict or checkpoint of torch.save, safetensors, pickled module, exported program),
            ``torchvision:NAME``, ``torchvision:NAME@WEIGHTS``, ``package.module:factory`` or
            ``path/to/file.py:factory``.
        arch: What builds the network of a state_dict: a torchvision name or a factory.
        trust_packages: Packages whose classes a pickled module may use, beside torch's and torchvision's layers.
        weights: The published weights of a torchvision network, such as ``DEFAULT``.

    Raises:
        SourceError: It could not be opened.
        ModelError: A weight is NaN or infinite.
    """
    if spec.startswith(PREFIX):
        opened = _open_torchvision(spec.removeprefix(PREFIX), weights)
    elif weights is not None:
        raise SourceError(f"cannot use the weights {weights!r} with {spec!r}: only torchvision:NAME has published ones")
    elif ":" in spec and not Path(spec).exists():
        opened = _open_factory(find_builder(spec))
    else:
        opened = _open_file(Path(spec), arch, trust_packages)
    opened.model.float().eval()
    require_finite(opened.model)
    return opened


def require_finite(model: nn.Module) -> None:
    """Raise `ModelError`, naming the layer, if a parameter or buffer holds NaN or an infinite value."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not tensor.is_meta and not _is_finite(tensor):
            layer, _, part = name.rpartition(".")
            bad = int((~torch.isfinite(tensor)).sum())
            what = f"layer {layer!r} holds NaN or infinite values in its {part}: {bad} of {tensor.numel()}"
            raise ModelError(f"cannot work on the model: {what}; give a checkpoint from before training diverged")


def _is_finite(tensor: Tensor) -> bool:
    # NaN and infinity survive a sum, which needs no mask of the tensor's size; a sum may overflow, so look again.
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def _open_torchvision(text: str, weights: str | None) -> Opened:
    name, _, inline = text.partition("@")
    weights = weights or inline or None
    builder = torchvision_builder(name)
    model = pretrained(name, weights) if weights else builder.build(initialise=True)
    note = f"the weights are random: accuracy means nothing; write {PREFIX}{name}@DEFAULT for the published ones"
    notes = () if weights else (note,)
    return Opened(model, name, "torchvision", builder.arch, None, "torchvision", builder.input_shape, notes)


def _open_factory(builder: Builder) -> Opened:
    note = f"the weights are those {builder.arch} left in the model; a file with --arch brings trained ones"
    model = builder.build(initialise=True)
    return Opened(model, builder.name, builder.origin, builder.arch, None, "factory", builder.input_shape, (note,))


def _open_file(path: Path, arch: str | None, trusted: Sequence[str]) -> Opened:
    require_readable(path)
    kind = identify(path)
    if kind is FileKind.PROGRAM:
        from binarize.sources.programs import load_program

        model, shape, notes = load_program(path)
        return Opened(model, path.stem, "file", None, digest(path), kind.value, shape, notes + _unused(arch))
    found = unwrap(
        _load_safetensors(path) if kind is FileKind.SAFETENSORS else load_pickle(path, kind, trusted), str(path)
    )
    if found.module is not None:
        return Opened(found.module, path.stem, "file", None, digest(path), "module", None, found.notes + _unused(arch))
    if arch is None:
        what = f"it holds weights alone ({len(found.state)} tensors, first {next(iter(found.state))!r})"
        remedy = "give what builds the network with --arch NAME, a torchvision name or path/to/file.py:factory"
        raise SourceError(f"cannot open {str(path)!r} by itself: {what}; {remedy}")
    builder = find_builder(arch)
    model, chosen = load_fitting(builder.build, found.state, str(path), builder.arch)
    notes = found.notes + ((chosen,) if chosen else ())
    what = "safetensors" if kind is FileKind.SAFETENSORS else "state_dict"
    return Opened(model, path.stem, "file", builder.arch, digest(path), what, builder.input_shape, notes)


def _unused(arch: str | None) -> tuple[str, ...]:
    return () if arch is None else (f"--arch {arch} was not used: the file holds the whole model",)


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError) as error:
        what = str(error).splitlines()[0][:160]
        raise SourceError(f"cannot open {str(path)!r}: damaged safetensors ({what}); download it again") from error
