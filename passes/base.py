"""The contract of a pass: one in-place step over a traced model that says what it changed and what it left, and why."""

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

from torch import fx

from binarize.errors import BinarizeError

__all__ = ["Pass", "PassError", "PassResult"]


@final
class PassError(RuntimeError):
    """A pass broke its own contract: a bug of the pass, never of the user's model."""


@final
@dataclass(frozen=True)
class PassResult:
    """What one run of a pass did.

    Args:
        changed: Names of the places that were rewritten, in graph order.
        skipped: Name of each place that was looked at and left, with the reason.
    """

    changed: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)


class Pass(abc.ABC):
    """One in-place step over a traced model. Options are the fields of the subclass."""

    @final
    def __call__(self, gm: fx.GraphModule) -> PassResult:
        """Rewrite ``gm`` in place; its graph is checked and its code regenerated afterwards.

        Raises:
            BinarizeError: As raised by the step, unchanged: it already names the thing at fault.
            PassError: Anything else went wrong; names the pass and the stage, the cause is chained.
        """
        stage = "requires"
        try:
            self.requires(gm)
            stage = "run"
            result = self.run(gm)
            stage = "lint"
            gm.graph.lint()
            gm.recompile()
            stage = "ensures"
            self.ensures(gm)
        except BinarizeError:
            raise
        except Exception as error:
            raise PassError(f"pass {type(self).__name__} failed in {stage}: {type(error).__name__}: {error}") from error
        return result

    @abc.abstractmethod
    def run(self, gm: fx.GraphModule) -> PassResult:
        """Rewrite ``gm`` in place and say what was done. A second run must change nothing."""

    def requires(self, gm: fx.GraphModule) -> None:
        """Raise if ``gm`` is not as this pass needs it."""

    def ensures(self, gm: fx.GraphModule) -> None:
        """Raise if ``gm`` is not as this pass promises to leave it."""
