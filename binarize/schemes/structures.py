"""What a layer or a group of the graph becomes: the third choice of a scheme, beside the two bases."""

import abc
import dataclasses
from typing import final

__all__ = ["Layerwise", "Structure"]


@dataclasses.dataclass(frozen=True)
class Structure(abc.ABC):
    """How the graph is rewritten. Options are the fields of the subclass."""

    @property
    @abc.abstractmethod
    def unit(self) -> str:
        """What is replaced as one: ``layer`` or ``group``."""


@final
@dataclasses.dataclass(frozen=True)
class Layerwise(Structure):
    """Each layer is replaced on its own (LBD): its weight planes meet one set of activation planes."""

    @property
    def unit(self) -> str:
        """One layer."""
        return "layer"
