"""What turns floats into the operands of packed layers."""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from binarize.errors import ModelError
from binarize.kernels import ops
from binarize.layers.gpu_routes import GpuRoutes
from binarize.layers.halves import keeping_types
from binarize.schemes.base import Levels

__all__ = ["ROUTES", "PackActivation", "route_of"]

ROUTES = ("popcount", "int8")
"""How a packed layer may be executed: planes by popcount, or whole codes by int8 products. Both give the same bits."""


def route_of(dtype: torch.dtype) -> str:
    """Return the route of what was packed: codes are uint8, planes int32."""
    return "int8" if dtype == torch.uint8 else "popcount"


@final
class PackActivation(nn.Module):
    """Turns floats into digit planes, or into codes: the packed form of a `BinaryActivation`.

    Attributes:
        terms: digit planes of each term.
        low: value of code 0.
        step: value of one unit of each term's code.
        inverse_step: 1 / step of a uniform code, rounded to float32; 0.0 where thresholds decide.
        groups: channel groups of the convolution that reads the planes; each starts in a word of its own.
        rows: False for images ``(n, c, h, w)``, True for rows ``(..., c)``.
        thresholds: ``(m, 1)`` or ``(m, c)``, or None for a uniform code.
        route: of the layers that read it: digit planes for "popcount", codes for "int8". Chosen for the CPU at hand.
        gpu: the same on GPUs, where it is chosen when it first packs there.
        channels: what the layers that read it take, or None where nobody is known to. No file holds these three.
    """

    thresholds: Tensor | None
    route: str
    channels: int | None

    def __init__(self, terms: tuple[int, ...], levels: Levels, *, groups: int = 1, rows: bool = False) -> None:
        super().__init__()
        self.terms, self.groups, self.rows = terms, groups, rows
        self.route = "popcount"
        self.gpu = GpuRoutes(())
        self.channels = None
        self.low = float(levels.low.detach())
        self.step = tuple(float(step) for step in levels.step.detach())
        uniform = levels.threshold is None
        self.inverse_step = float(1.0 / levels.step.detach()[0].float()) if uniform else 0.0
        kept = None if levels.threshold is None else levels.threshold.detach().float().clone()
        self.register_buffer("thresholds", kept)

    @property
    def main(self) -> int:
        """The term of the largest step: scales divided by it give the units of the weight."""
        return max(range(len(self.step)), key=lambda term: abs(self.step[term]))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, c, h, w)`` or ``(..., c)`` to int32 ``(n, h, w, groups, m, words)`` or ``(..., 1, m, words)``.

        For the route int8, to uint8 with ``t, depth`` in place of ``m, words``. A signal ``(n, c, w)`` is packed as one
        of height 1, a clip ``(n, c, t, h, w)`` to ``(n, t, h, w, ...)``.

        Raises:
            ModelError: there are more or fewer channels than its readers take.
        """
        self.require_channels(x.shape)
        if not self.rows and x.dim() == 4:
            return self._pack(x)
        if not self.rows:
            packed = self._pack(x.reshape(*x.shape[:2], -1, x.shape[-1]))
            return packed if x.dim() == 3 else packed.unflatten(1, tuple(x.shape[2:-1]))
        flat = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)
        planes = self._pack(flat)
        return planes.reshape(*x.shape[:-1], 1, *planes.shape[-2:])

    def require_channels(self, shape: Sequence[int]) -> None:
        """Refuse an input of so many channels that no reader takes; whole words of bits would hide the difference.

        Raises:
            ModelError: there are more or fewer channels than the readers take.
        """
        seen = shape[-1 if self.rows else 1] if len(shape) > 1 else None
        if self.channels not in (None, seen):
            axes = "(..., c)" if self.rows else "(n, c, h, w)"
            what = f"cannot pack an input {tuple(shape)}: c of {axes} must be {self.channels}, got {seen}"
            lone = not self.rows and len(shape) == 3 and shape[0] == self.channels
            raise ModelError(f"{what}; give a batch, such as x[None]" if lone else what)

    def _pack(self, x: Tensor) -> Tensor:
        whole = self.gpu.route(x.device, self.route) == "int8"
        if self.thresholds is None:
            uniform = ops.encode_uniform if whole else ops.pack_uniform
            packed: Tensor = uniform(x, self.low, self.inverse_step, self.terms[0], self.groups)
        else:
            packed = (ops.encode_thresholds if whole else ops.pack_thresholds)(x, self.thresholds, self.groups)
        return packed

    def arguments(self, device: torch.device, channels: int) -> tuple[Any, ...]:
        """Return the last arguments of `ops.conv2d_and_pack` for so many channels.

        Raises:
            ModelError: there are more or fewer channels than its readers take.
        """
        self.require_channels((0, channels))
        whole = self.gpu.route(device, self.route) == "int8"
        return whole, self.terms[0], self.low, self.inverse_step, self.thresholds, self.groups

    def _apply(self, fn: Any, recurse: bool = True) -> "PackActivation":
        super()._apply(keeping_types(fn), recurse)
        return self

    def codes(self, x: Tensor, axis: int = 1) -> Tensor:
        """Return the codes ``(t, *x.shape)`` as floats, by plain torch; ``axis`` is that of the channels."""
        if self.thresholds is None:
            low, inverse = x.new_tensor(self.low), x.new_tensor(self.inverse_step)
            code = ((x - low) * inverse + 0.5).floor().clamp(0, 2 ** self.terms[0] - 1)
            return code.unsqueeze(0)
        shape = [1] * x.dim()
        shape[axis] = self.thresholds.shape[1]
        return torch.stack([(~(x < threshold.reshape(shape))).to(x.dtype) for threshold in self.thresholds])

    def config(self) -> dict[str, Any]:
        """Return what `from_config` needs beside the buffers."""
        return {
            "terms": self.terms, "low": self.low, "step": self.step, "inverse_step": self.inverse_step,
            "groups": self.groups, "rows": self.rows,
            "thresholds": None if self.thresholds is None else list(self.thresholds.shape),
        }  # fmt: skip

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "PackActivation":
        """Build with buffers still to be filled."""
        shape = config["thresholds"]
        levels = Levels(
            torch.tensor(config["low"], device="cpu"),  # also where the buffers are made on the meta device
            torch.tensor(config["step"], device="cpu"),
            None if shape is None else torch.zeros(shape),
        )
        made = cls(tuple(config["terms"]), levels, groups=config["groups"], rows=config["rows"])
        made.inverse_step = config["inverse_step"]
        return made

    def extra_repr(self) -> str:
        """Name the planes and the levels."""
        return f"terms={self.terms}, low={self.low:.4g}, step={self.step}"
