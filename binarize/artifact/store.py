"""`save` and `load`: a converted network as one file that holds no code."""

import copy
import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from binarize import __version__
from binarize.artifact.files import read, write
from binarize.artifact.networks import Network, network_from_data, network_to_data
from binarize.devices import device_why_not
from binarize.errors import ArtifactError, BinarizeError
from binarize.layers.merged import allow
from binarize.layers.packed import PackedLayer
from binarize.passes.route import route
from binarize.passes.schedule import schedule
from binarize.record import Record, attach_record, record_of
from binarize.sources.builders import PREFIX, torchvision_builder

__all__ = ["load", "save"]


def save(net: nn.Module, path: str | os.PathLike[str], *, metrics: Mapping[str, Any] | None = None) -> int:
    """Write a converted network, packed or in training form, to one ``.safetensors`` file.

    The file is written beside ``path`` and takes its place in one step: an old file there stays intact until then.

    Args:
        net: What `convert`, `pack` or `load` returned.
        path: The file; its folder exists.
        metrics: Measured figures to keep in the file's record, beside those already there.

    Returns:
        The size of the file in bytes.

    Raises:
        ModelError: ``net`` was not made by this package.
        ArtifactError: the network calls something that a file without code cannot hold.
        OutputError: the file cannot be written.
    """
    record = record_of(net)
    record = dataclasses.replace(record, metrics={**record.metrics, **(metrics or {})})
    network = network_to_data(net)
    packed = any(isinstance(module, PackedLayer) for module in net.modules())
    description = {
        "binarize": __version__,
        "kind": "packed" if packed else "training",
        "record": record.to_dict(),
        **network.to_dict(),
    }
    return write(path, description, network.tensors)


def load(
    path: str | os.PathLike[str], *, model: nn.Module | None = None, device: str | torch.device = "cpu"
) -> nn.Module:
    """Read the network that `save` wrote. No code in the file is run: there is none.

    Args:
        path: The file.
        model: The model that was converted, for networks that could not be captured whole: their own Python code is in
            no file. Its weights do not matter; it is not changed. A network of torchvision needs none.
        device: Where the network goes.

    Returns:
        The network in evaluation mode, packed or in training form as it was saved, its record attached.

    Raises:
        ArtifactError: the file is missing, damaged, of a newer format, or names something that may not be in a file;
            or ``model`` is needed, or is another one; or there is no such device.
    """
    reason = device_why_not(device)
    if reason is not None:
        raise ArtifactError(f"cannot load {str(path)!r} onto {str(device)!r}: {reason}; give device='cpu'")
    place = torch.device(device)
    description, tensors = read(path)
    try:
        record = _record(description["record"])
        names = ("modules", "shared", "strides", "frozen")
        network = Network(tensors=tensors, **{name: description[name] for name in names})
        net = network_from_data(network, lambda: _skeleton(record, network, model), place)
    except ArtifactError as error:
        # what it quotes from the file may hold line breaks
        raise ArtifactError(f"cannot load {str(path)!r}: {' '.join(str(error).split())}") from error
    except Exception as error:  # whatever a description that makes no sense runs into
        detail = f"{type(error).__name__}: {error}".strip().splitlines()[0][:160]
        raise ArtifactError(
            f"cannot load {str(path)!r}: its description makes no sense ({detail}); save it again"
        ) from error
    attach_record(net, record)
    allow(net, record.recipe.exactness)
    route(net)
    schedule(net)
    return net.eval()


def _record(values: Any) -> Record:
    record = Record.from_dict(values)
    for name in ("uncaptured", "source", "calibration", "training", "metrics"):
        if not isinstance(getattr(record, name), Mapping):
            raise ArtifactError(f"its record's {name} is no table")
    return record


def _skeleton(record: Record, network: Network, model: nn.Module | None) -> nn.Module:
    """Return a model whose Python code the network needs, its weights of no account."""
    if model is not None:
        parts = (module for path, module in model.named_modules() if path and path in record.parts)
        # what stands where a part belongs is thrown away, so it need not be copied
        return copy.deepcopy(model, {id(part): part for part in parts})
    arch = str(record.source.get("arch"))
    code = next(entry for entry in network.modules if "code" in entry)
    if not arch.startswith(PREFIX):
        where = f"its module {code['path']!r}" if code["path"] else "the network"
        what = f"{where} is Python code ({str(code['code'])[:80]}) that could not be captured, which no file holds"
        raise ArtifactError(f"{what}; give the model that was converted, load(path, model=...), or --arch")
    try:
        return _without_weights(torchvision_builder(arch.removeprefix(PREFIX)).build)
    except BinarizeError as error:
        raise ArtifactError(f"its architecture cannot be built: {error}") from error


def _without_weights(build: Callable[[], nn.Module]) -> nn.Module:
    """Return what ``build`` makes, its parameters on the meta device as soon as they are there."""
    hook = nn.modules.module.register_module_parameter_registration_hook(_without_memory)
    try:
        return build()
    except RuntimeError:  # ssdlite runs its backbone while it is built
        hook.remove()
        with torch.random.fork_rng(devices=[]):
            return build()
    finally:
        hook.remove()


def _without_memory(_: nn.Module, __: str, parameter: nn.Parameter | None) -> Any:
    return None if parameter is None else nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
