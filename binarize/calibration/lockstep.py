"""Run a network and its teacher on many batches side by side, stopping them all at one layer after the other.

Fitting layer by layer, each on inputs that the fitted layers before it produced, needs either one forward pass per
layer or passes that can be suspended. Here every batch has two threads, of which exactly one in the whole process runs
at any time: they are coroutines that work in any Python code, traced or not, and the result is deterministic. In all,
one forward pass of each network is run, and only the tensors that are alive at the present layer are held.
"""

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from binarize.errors import ModelError

__all__ = ["Meeting", "Place", "first_tensor", "lockstep"]


@final
@dataclasses.dataclass(frozen=True)
class Place:
    """Where a layer of the network under calibration comes from.

    Attributes:
        source: module path of the teacher's layer.
        home: module path of the branches that the layer is in, or None.
        branch: which of them, from 0.
        branches: how many run.
        like: module path of the same layer in the branch that this one starts as a copy of, or None: where a router
            chooses K branches, K are fitted.
        boosted: whether it makes up for what the branches before it missed: it is the last weighted layer on a way to
            the output of its group, and the branches are added up.
    """

    source: str
    home: str | None = None
    branch: int = 0
    branches: int = 1
    like: str | None = None
    boosted: bool = False


@final
@dataclasses.dataclass(frozen=True)
class Meeting:
    """One batch at one layer.

    Attributes:
        input: what the network under calibration feeds the layer, ``(n, c, h, w)`` or ``(..., c)``.
        target: what the teacher's layer gave for the same images.
    """

    input: Tensor
    target: Tensor


@final
@dataclasses.dataclass(frozen=True)
class _Stop:
    name: str
    tensor: Tensor


class _CancelledError(BaseException):
    """Raised inside a suspended pass to unwind it."""


@final
class _Pass:
    """A forward pass in a thread of its own; between `advance` calls it stands still inside a hook."""

    current = threading.local()

    def __init__(self, net: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.stop: _Stop | None = None
        self.seen: set[str] = set()
        self._turn, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._cancelled = False
        work = (net, inputs, torch.get_num_threads())
        self._thread = threading.Thread(target=self._main, args=work, daemon=True)
        self._thread.start()

    def advance(self) -> None:
        """Run to the next stop, or to the end; an error of the pass is raised here."""
        self.stop = None
        self._turn.release()
        self._back.acquire()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Unwind the pass, wherever it stands."""
        self._cancelled = True
        self.stop = None
        self._turn.release()
        self._thread.join()

    def suspend(self, stop: _Stop) -> None:
        """Stand still at ``stop`` until the next `advance`; called by the pass's own thread."""
        self.stop = stop
        self._back.release()
        self._turn.acquire()
        if self._cancelled:
            raise _CancelledError

    def _main(self, net: nn.Module, inputs: tuple[Any, ...], threads: int) -> None:
        self._turn.acquire()
        try:
            if not self._cancelled:
                torch.set_num_threads(threads)  # a new thread starts with the machine's default
                _Pass.current.value = self
                with torch.no_grad():
                    net(*inputs)
        except BaseException as error:  # handed to the caller of advance
            self._error = error
        self.stop = None
        self._back.release()


@final
class _Lane:
    """One batch: a pass of the network and one of the teacher, which waits for its layer to be asked for.

    Branches repeat the layers of one group, which the teacher runs once: what it gave there is kept until the network
    leaves the group.
    """

    def __init__(
        self, net: nn.Module, teacher: nn.Module, inputs: tuple[Any, ...], places: Mapping[str, Place]
    ) -> None:
        self.network, self.teacher = _Pass(net, inputs), _Pass(teacher, inputs)
        self.places = places
        self.kept: dict[str, Tensor] = {}
        self.home: str | None = None

    @property
    def name(self) -> str | None:
        """The layer that this lane stands at, or None at the end."""
        return None if self.network.stop is None else self.network.stop.name

    def advance(self) -> None:
        """Run the network to its next layer, and the teacher to the same one."""
        self.network.advance()
        name = self.name
        if name is None:
            return
        place = self.places[name]
        if place.home is None or place.home != self.home:
            self.kept.clear()
        self.home = place.home
        while place.source not in self.kept:
            self.teacher.advance()
            stop = self.teacher.stop
            if stop is None or (place.home is None and stop.name != place.source):
                seen = None if stop is None else stop.name
                raise ModelError(
                    f"cannot calibrate: the network calls {name!r} where the original calls {seen!r}; "
                    "their layers must run in the same order"
                )
            self.kept[stop.name] = stop.tensor

    def meeting(self) -> Meeting:
        """Return the tensors at the present layer."""
        assert self.network.stop is not None
        return Meeting(self.network.stop.tensor, self.kept[self.places[self.network.stop.name].source])

    def close(self) -> None:
        """Unwind both passes."""
        self.network.close()
        self.teacher.close()


def lockstep(
    net: nn.Module,
    teacher: nn.Module,
    places: Mapping[str, Place],
    batches: Sequence[tuple[Any, ...]],
    visit: Callable[[str, Sequence[Meeting]], None],
) -> None:
    """Call ``visit`` once for each named layer that runs, in the order of execution, before ``net`` runs that layer.

    Args:
        net: the network under calibration; ``visit`` may change the layer it is called for.
        teacher: the original.
        places: module paths of the layers to stop at, and where each comes from. A layer that is called again is not
            stopped at again.
        batches: argument tuples of ``forward``.
        visit: given the layer's name and its meetings, one for each batch that stands there.

    Raises:
        ModelError: the two networks call their layers in different orders.
    """
    done: set[str] = set()
    finished: set[str] = set()  # layers of the teacher; one that branches copy may be needed once more
    handles = [_stop_before(net.get_submodule(name), name, done) for name in places]
    sources = dict.fromkeys(place.source for place in places.values())
    handles += [_stop_after(teacher.get_submodule(source), source, finished) for source in sources]
    lanes = [_Lane(net, teacher, inputs, places) for inputs in batches]
    try:
        for lane in lanes:
            lane.advance()
        while (name := next((lane.name for lane in lanes if lane.name is not None), None)) is not None:
            here = [lane for lane in lanes if lane.name == name]
            visit(name, [lane.meeting() for lane in here])
            done.add(name)
            if places[name].home is None:
                finished.add(places[name].source)
            for lane in here:
                lane.advance()
    finally:
        for lane in lanes:
            lane.close()
        for handle in handles:
            handle.remove()


def first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the input of a layer from the arguments that a hook sees."""
    tensor: Tensor = args[0] if args else next(iter(kwargs.values()))
    return tensor


def _stop_before(module: nn.Module, name: str, done: set[str]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if name not in done:
            _Pass.current.value.suspend(_Stop(name, first_tensor(args, kwargs)))

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _stop_after(module: nn.Module, name: str, finished: set[str]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        current: _Pass = _Pass.current.value
        if name not in current.seen and name not in finished:
            current.seen.add(name)
            current.suspend(_Stop(name, output))

    return module.register_forward_hook(hook)
