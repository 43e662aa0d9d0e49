"""What may end a run before its time: a signal, or values that are not finite."""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, final

import torch
from torch import Tensor, nn

__all__ = ["StopSignals", "first_bad_layer"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@final
class StopSignals:
    """While active, SIGINT and SIGTERM are noted instead of ending the process; a second one acts as usual.

    Outside the main thread, where Python allows no handlers, nothing is noted.

    Attributes:
        seen: name of the signal, or None.
    """

    def __init__(self) -> None:
        self.seen: str | None = None
        self._noted = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._old = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._noted:
            self._restore()
            signal.raise_signal(number)
            return
        self._noted, self.seen = True, signal.Signals(number).name


def first_bad_layer(net: nn.Module, run: Callable[[], object]) -> str:
    """Return a sentence about the first layer, in the order they run, that has or gives values that are not finite.

    Args:
        net: the network.
        run: calls it on the batch in question.
    """
    found: list[str] = []
    handles = []

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and (why := _why_bad(module, inputs, output)):
                found.append(f"the first bad layer is {name!r} ({type(module).__name__}): {why}")

        return look

    for name, module in net.named_modules():
        if name:
            handles.append(module.register_forward_hook(hook(name)))
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "every layer gave finite values: the loss itself is not"


def _why_bad(module: nn.Module, inputs: Any, output: Any) -> str | None:
    for name, value in module.named_parameters(recurse=False):
        if not bool(value.isfinite().all()):
            return f"its {name} is not finite"
    for value in inputs:
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
            return "its input is not finite"
    if isinstance(output, Tensor) and not bool(output.isfinite().all()):
        return "its output is not finite"
    return None
