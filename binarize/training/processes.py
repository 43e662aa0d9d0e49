"""The processes that train together: one, or several that torchrun or `accelerate launch` started."""

import abc
import contextlib
import importlib
import os
from collections.abc import Iterable
from typing import Any, final

import torch
from torch import Tensor, fx, nn

from binarize.errors import TrainingError
from binarize.layers.branches import Router, branch_groups

__all__ = ["Alone", "Processes", "Together", "find_processes", "is_writer", "leave"]


class Processes(abc.ABC):
    """Who trains, seen from one process.

    Attributes:
        count: processes in all.
        index: of this one; the one at 0 validates and writes.
    """

    count: int
    index: int

    @final
    @property
    def writes(self) -> bool:
        """Whether this is the one process that writes and validates."""
        return self.index == 0

    @abc.abstractmethod
    def device(self, net: nn.Module) -> torch.device:
        """Return where this process computes."""

    @abc.abstractmethod
    def wrap(self, model: nn.Module) -> nn.Module:
        """Return ``model`` such that gradients are averaged over all processes."""

    @abc.abstractmethod
    def share(self, data: Iterable[Any]) -> Iterable[Any]:
        """Return this process's part of the batches."""

    @abc.abstractmethod
    def unsynchronised(self, model: nn.Module) -> Any:
        """Return a context in which gradients are not yet averaged: more batches follow before the step."""

    @abc.abstractmethod
    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of each process's ``values``, a float64 vector on the processor."""

    @abc.abstractmethod
    def lost_another(self, error: RuntimeError) -> bool:
        """Tell whether ``error`` means that another process is gone."""

    @abc.abstractmethod
    def wait(self) -> None:
        """Wait for all others."""


@final
class Alone(Processes):
    """The usual case."""

    count, index = 1, 0

    def device(self, net: nn.Module) -> torch.device:
        """Where the network is."""
        return next((value.device for value in net.parameters()), torch.device("cpu"))

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model itself."""
        return model

    def share(self, data: Iterable[Any]) -> Iterable[Any]:
        """All of it."""
        return data

    def unsynchronised(self, model: nn.Module) -> Any:
        """Nothing to hold back."""
        return contextlib.nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        """Return the values themselves."""
        return values

    def lost_another(self, error: RuntimeError) -> bool:
        """There is no other."""
        return False

    def wait(self) -> None:
        """Nobody to wait for."""


@final
class Together(Processes):
    """Several processes, by the `accelerate` package: each sees every count-th batch."""

    def __init__(self, net: nn.Module) -> None:
        try:
            from accelerate import Accelerator, DistributedDataParallelKwargs
        except ImportError:
            remedy = "run pip install 'binarize[distributed]'"
            raise TrainingError(f"cannot train in several processes: accelerate is not installed; {remedy}") from None
        routed = any(isinstance(module, Router) for module in net.modules())
        if name := _first_synchronised(net):
            what = f"{name} waits for all processes, which run different branches for their images"
            raise TrainingError(f"cannot train in several processes: {what}; make it a BatchNorm before converting")
        # a graph calls all that it holds, but branches that no image chose; Python code may not: these are watched
        watched = DistributedDataParallelKwargs(find_unused_parameters=routed or not isinstance(net, fx.GraphModule))
        # imported later, its functions' default arguments would hold the connections until the interpreter ends
        importlib.import_module("torch.distributed.nn.functional")
        self._accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[watched])
        self.count, self.index = self._accelerator.num_processes, self._accelerator.process_index

    def device(self, net: nn.Module) -> torch.device:
        """The device that is this process's."""
        place: torch.device = self._accelerator.device
        return place

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model in DistributedDataParallel."""
        wrapped: nn.Module = self._accelerator.prepare_model(model)
        return wrapped

    def share(self, data: Iterable[Any]) -> Iterable[Any]:
        """Return every count-th batch, so that one step sees what one process with larger batches would see."""
        from torch.utils.data import DataLoader

        from binarize.data import Images

        if isinstance(data, Images):
            return data.share(self.index, self.count)
        if isinstance(data, DataLoader):
            shared: Iterable[Any] = self._accelerator.prepare_data_loader(data, device_placement=False)
            return shared
        what = f"a {type(data).__name__} cannot be shared out"
        raise TrainingError(f"cannot train in several processes: {what}; give a DataLoader or load_data(...)")

    def unsynchronised(self, model: nn.Module) -> Any:
        """Return DistributedDataParallel's own context."""
        return self._accelerator.no_sync(model)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all processes."""
        found: Tensor = self._accelerator.reduce(values.to(self._accelerator.device), reduction="sum")
        return found.to(values.device)

    def lost_another(self, error: RuntimeError) -> bool:
        """What the backends say when a connection breaks."""
        known = isinstance(error, torch.distributed.DistError)
        return known or any(word in str(error) for word in ("Connection", "gloo", "NCCL"))

    def wait(self) -> None:
        """Wait at a barrier."""
        self._accelerator.wait_for_everyone()


def _first_synchronised(net: nn.Module) -> str | None:
    """Return the path of a SyncBatchNorm inside a branch that a router chooses, or None."""
    for path, group in branch_groups(net):
        for name, module in group.named_modules() if group.router is not None else ():
            if isinstance(module, nn.SyncBatchNorm):
                return f"{path}.{name}"
    return None


def find_processes(net: nn.Module) -> Processes:
    """Return the processes that a launcher has started beside this one, or this one alone."""
    return Together(net) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else Alone()


def is_writer() -> bool:
    """Tell whether this is the process that writes files, without asking the others."""
    return os.environ.get("RANK", "0") == "0"


def leave() -> None:
    """End what joins this process to the others, once all have come here; nothing where it runs alone.

    Threads of torch would else still wait for messages while the interpreter goes, which may abort the process; a
    launcher then stops the others too, also one that still writes.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    with contextlib.suppress(RuntimeError):  # another has ended already, and has said why
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()
