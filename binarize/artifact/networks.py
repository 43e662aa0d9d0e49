"""A whole network as data and back: its modules, parents first, and its tensors under their state_dict keys.

A module is one of four things: a graph, a layer of an allow-listed class, the same object as another module, or Python
code of a model that could not be traced, which no file holds and which a skeleton of that model has to provide.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, final

import torch
from torch import Tensor, fx, nn

from binarize.artifact.graphs import graph_from_data, graph_to_data
from binarize.artifact.modules import CONTAINERS, describe, plain_attributes, rebuild, set_attributes
from binarize.artifact.values import identifier, path_of
from binarize.errors import ArtifactError
from binarize.passes.graph import join

__all__ = ["Network", "network_from_data", "network_to_data"]


@final
@dataclasses.dataclass
class Network:
    """A network as data.

    Attributes:
        modules: one entry per module and path, parents first, children in order.
        tensors: by state_dict key; one that several modules share stands under its first key.
        shared: other keys of shared tensors, and the key they stand under.
        strides: of the tensors whose memory is not in the order of their axes.
        frozen: keys of the parameters that take no gradient.
    """

    modules: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    tensors: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    shared: dict[str, str] = dataclasses.field(default_factory=dict)
    strides: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    frozen: list[str] = dataclasses.field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the tensors, as JSON values."""
        return {"modules": self.modules, "shared": self.shared, "strides": self.strides, "frozen": self.frozen}


def network_to_data(net: nn.Module) -> Network:
    """Describe ``net``. Nothing is copied: the tensors are its own.

    Raises:
        ArtifactError: a graph calls what no file can hold, or a name could not stand in code.
    """
    writer = _Writer(Network())
    writer.add(net, "")
    return writer.network


@final
@dataclasses.dataclass
class _Writer:
    network: Network
    seen: dict[int, str] = dataclasses.field(default_factory=dict)  # id of a module or tensor -> its first path
    kept: list[object] = dataclasses.field(default_factory=list)  # so that no id is used twice

    def add(self, module: nn.Module, path: str) -> None:
        """Describe ``module`` and what is inside it."""
        first = self.seen.setdefault(id(module), path)
        if first != path:
            self.network.modules.append({"path": path, "same_as": first})
            return
        self.kept.append(module)
        data = {"path": path and path_of(path, "a module's path"), **_kind(module)}
        self.network.modules.append(data)
        tensors = {**module._parameters, **module._buffers}
        for name, tensor in tensors.items():
            if tensor is not None:
                self.add_tensor(join(path, name), tensor)
        if _declares(data):
            _declare(data, module)
        for name, child in module._modules.items():
            if child is not None:
                self.add(child, join(path, name))

    def add_tensor(self, key: str, tensor: Tensor) -> None:
        """Take over one tensor, unless it is there already."""
        if isinstance(tensor, nn.Parameter) and not tensor.requires_grad:
            self.network.frozen.append(key)
        first = self.seen.setdefault(id(tensor), key)
        if first != key:
            self.network.shared[key] = first
            return
        if tensor.is_meta or tensor.layout is not torch.strided:
            raise ArtifactError(
                f"cannot save the tensor {key!r}: it is {tensor.device}, {tensor.layout}; load its values first"
            )
        self.kept.append(tensor)
        self.network.tensors[key] = tensor.detach()
        if list(tensor.stride()) != _plain_strides(tensor) and _is_dense(tensor.shape, tensor.stride()):
            self.network.strides[key] = list(tensor.stride())


def _plain_strides(tensor: Tensor) -> list[int]:
    """Return the strides of a tensor of that shape whose memory is in the order of its axes."""
    return list(torch.empty(tensor.shape, device="meta").stride())


def _is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether a tensor fills its memory, in whatever order; what does not is saved as a plain copy."""
    room = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if (stride != room and size > 1) or not 0 <= stride <= math.prod(shape):
            return False
        room *= size
    return room > 0


def _kind(module: nn.Module) -> dict[str, Any]:
    if isinstance(module, fx.GraphModule):
        meta = {key: value for key, value in module.meta.items() if isinstance(key, str) and isinstance(value, str)}
        name = identifier(type(module).__name__, "a graph's name")
        return {
            "graph": graph_to_data(module.graph),
            "name": name,
            "meta": meta,
            "attributes": plain_attributes(module),
        }
    layer = describe(module)
    if layer is not None:
        return layer
    return {"code": f"{type(module).__module__}.{type(module).__qualname__}", "attributes": plain_attributes(module)}


def _declares(data: Mapping[str, Any]) -> bool:
    """Whether the entry has to list its tensors: those of a layer are made by its constructor."""
    return "class" not in data or data["class"] in CONTAINERS


def _declare(data: dict[str, Any], module: nn.Module) -> None:
    for key, tensors in (("parameters", module._parameters), ("buffers", module._buffers)):
        names = [name for name, tensor in tensors.items() if tensor is not None]
        if names:
            data[key] = names
    transient = sorted(name for name in module._non_persistent_buffers_set if module._buffers.get(name) is not None)
    if transient:
        data["transient"] = transient


def network_from_data(data: Network, skeleton: Callable[[], nn.Module], device: torch.device) -> nn.Module:
    """Build the network that `network_to_data` described, without ever making its float original.

    Args:
        data: The description, after JSON, with the tensors that the file holds. The tensors are used up.
        skeleton: Gives a model whose code is used where the network could not be traced; asked for once, if at all.
        device: Where the tensors go.

    Raises:
        ArtifactError: something is not on the allow-list, or tensors are missing, left over or of another shape.
        Exception: the description makes no sense, in whatever way Python puts it.
    """
    reader = _Reader(data, skeleton, device)
    net = reader.build("")
    if reader.left or reader.places:
        raise ArtifactError(f"cannot place {min(reader.left | reader.places.keys())[:60]!r}: nothing refers to it")
    return net.to(device)


@final
class _Reader:
    def __init__(self, data: Network, skeleton: Callable[[], nn.Module], device: torch.device) -> None:
        self.data, self.device = data, device
        self.left = set(data.tensors)
        self.frozen = set(data.frozen)
        self.places = {entry["path"]: entry for entry in data.modules}
        self.children: dict[str, list[str]] = {}
        for path in self.places:
            if path:
                parent, _, _ = path_of(path, "a module's path").rpartition(".")
                self.children.setdefault(parent, []).append(path)
        self.made: dict[str, nn.Module] = {}
        self.parameters: dict[str, nn.Parameter] = {}
        self.buffers: dict[str, Tensor] = {}
        self.make_skeleton = skeleton
        self.model: nn.Module | None = None

    def build(self, path: str) -> nn.Module:
        """Return the module at ``path`` with all that is inside it."""
        entry = self.places.pop(path)
        if "same_as" in entry:
            return self.made[entry["same_as"]]
        if "code" in entry and self.model is None:
            self.model = self.make_skeleton()
        children = {child.rpartition(".")[2]: self.build(child) for child in self.children.get(path, [])}
        module = self.shell(entry, children)
        module._modules.update(children)
        present = {name for name, child in module._modules.items() if child is not None}
        if present != set(children):
            raise ArtifactError(
                f"cannot build {_named(path)}: the file lacks its part {min(present - set(children))!r}"
            )
        self.fill(module, entry)
        if isinstance(module, fx.GraphModule):
            module.graph = graph_from_data(entry["graph"], module)
            module.graph.lint()
            module.recompile()
        self.made[path] = module
        return module

    def shell(self, entry: Mapping[str, Any], children: Mapping[str, nn.Module]) -> nn.Module:
        """Return a module of the entry's class, its tensors still to be filled."""
        path = entry["path"]
        if "graph" in entry:
            return self.graph_shell(entry)
        if "code" not in entry:
            return rebuild(entry, children)
        found = None if self.model is None else _find(self.model, path)
        seen = "nothing" if found is None else f"{type(found).__module__}.{type(found).__qualname__}"
        if found is None or seen != entry["code"]:
            what = f"{_named(path)} is {str(entry['code'])[:80]}, the model given has {seen} there"
            raise ArtifactError(f"cannot rebuild the network: {what}; give the model that was converted")
        set_attributes(found, entry["attributes"])
        return found

    def graph_shell(self, entry: Mapping[str, Any]) -> fx.GraphModule:
        """Return a graph module without a graph, with the plain attributes that its callers may read."""
        name = identifier(entry["name"], "a graph's name")
        shell = fx.GraphModule(nn.Module(), fx.Graph(), name)
        shell.meta.update({str(key): str(value) for key, value in entry["meta"].items()})
        set_attributes(shell, entry["attributes"])
        original = None if self.model is None else _find(self.model, entry["path"])
        for key, value in vars(original).items() if original is not None else ():
            if not key.startswith("_") and key not in vars(shell):
                setattr(shell, key, value)
        return shell

    def fill(self, module: nn.Module, entry: Mapping[str, Any]) -> None:
        """Give ``module`` its tensors from the file."""
        if _declares(entry):
            self.fill_declared(module, entry)
            return
        for tensors, take in ((module._parameters, self.parameter), (module._buffers, self.buffer)):
            for name, expected in list(tensors.items()):
                if expected is not None:
                    tensors[name] = take(join(entry["path"], name), expected)  # type: ignore[assignment]

    def fill_declared(self, module: nn.Module, entry: Mapping[str, Any]) -> None:
        """Give a container, a graph or a model's own code the tensors that the entry lists."""
        parameters, buffers = entry.get("parameters", []), entry.get("buffers", [])
        held: dict[str, Tensor | None] = {**module._parameters, **module._buffers}
        known = {name: tensor for name, tensor in held.items() if tensor is not None}
        if "code" in entry and known.keys() != {*parameters, *buffers}:
            raise ArtifactError(f"cannot build {_named(entry['path'])}: its tensors are not those of the model given")
        for name in (*parameters, *buffers):
            path_of(name, "a tensor's name")
            if "." in name or name in module._modules or hasattr(type(module), name):
                raise ArtifactError(f"cannot build {_named(entry['path'])}: {name[:60]!r} cannot be a tensor's name")
        for name in parameters:
            module._parameters[name] = self.parameter(join(entry["path"], name), known.get(name))
        for name in buffers:
            module._buffers[name] = self.buffer(join(entry["path"], name), known.get(name))
        module._non_persistent_buffers_set = {name for name in entry.get("transient", []) if name in buffers}

    def parameter(self, key: str, expected: Tensor | None) -> nn.Parameter:
        """Return the parameter stored for ``key``, the same object for all that share it."""
        home = self.data.shared.get(key, key)
        if home not in self.parameters:
            tensor = self.take(home)
            self.parameters[home] = nn.Parameter(tensor, requires_grad=key not in self.frozen)
        return _checked(home, self.parameters[home], expected)

    def buffer(self, key: str, expected: Tensor | None) -> Tensor:
        """Return the buffer stored for ``key``, the same object for all that share it."""
        home = self.data.shared.get(key, key)
        if home not in self.buffers:
            self.buffers[home] = self.take(home)
        return _checked(home, self.buffers[home], expected)

    def take(self, home: str) -> Tensor:
        """Move one tensor out of the file's and onto the device, its memory in the order that it was saved with."""
        if home not in self.left:
            raise ArtifactError(f"cannot load the network: the tensor {home[:80]!r} is missing")
        self.left.remove(home)
        tensor = self.data.tensors.pop(home)
        strides = self.data.strides.get(home)
        if strides is not None:
            tensor = torch.empty_strided(
                tensor.shape, _checked_strides(home, tensor, strides), dtype=tensor.dtype
            ).copy_(tensor)
        return tensor.to(self.device)


_T = TypeVar("_T", bound=Tensor)


def _checked(home: str, tensor: _T, expected: Tensor | None) -> _T:
    if expected is None:
        return tensor
    both_float = tensor.is_floating_point() and expected.is_floating_point()
    if tensor.shape != expected.shape or not (both_float or tensor.dtype == expected.dtype):
        seen = f"{tuple(tensor.shape)} {tensor.dtype}, the network has {tuple(expected.shape)} {expected.dtype} there"
        raise ArtifactError(f"cannot load the network: the tensor {home[:80]!r} is {seen}")
    return tensor


def _checked_strides(home: str, tensor: Tensor, strides: list[int]) -> list[int]:
    """Return ``strides`` if they put each element in a place of its own, in memory of the tensor's size."""
    if len(strides) != tensor.ndim or not _is_dense(tensor.shape, strides):
        raise ArtifactError(f"cannot load the network: the tensor {home[:80]!r} has strides {str(strides)[:60]}")
    return strides


def _find(root: nn.Module, path: str) -> nn.Module | None:
    """Return the module at ``path``, reached through modules alone."""
    found: nn.Module | None = root
    for part in filter(None, path.split(".")):
        found = None if found is None else found._modules.get(part)
    return found


def _named(path: str) -> str:
    return f"the module {path[:80]!r}" if path else "the network"
