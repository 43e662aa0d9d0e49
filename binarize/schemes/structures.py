"""What a layer or a group of the graph becomes: the third choice of a scheme, beside the two bases."""

import abc
import dataclasses
from typing import Literal, final

__all__ = ["Groupwise", "Layerwise", "Structure"]


@dataclasses.dataclass(frozen=True)
class Structure(abc.ABC):
    """How the graph is rewritten. Options are the fields of the subclass."""

    @property
    @abc.abstractmethod
    def unit(self) -> str:
        """What is replaced as one: ``layer``, ``group``, ``stage`` or ``network``."""

    @property
    @abc.abstractmethod
    def executed(self) -> int:
        """Copies of each layer that run for one image."""

    @property
    @abc.abstractmethod
    def stored(self) -> int:
        """Copies of each layer that the network holds."""


@final
@dataclasses.dataclass(frozen=True)
class Layerwise(Structure):
    """Each layer is replaced on its own (LBD): its weight planes meet one set of activation planes."""

    @property
    def unit(self) -> str:
        """One layer."""
        return "layer"

    @property
    def executed(self) -> int:
        """The layer itself."""
        return 1

    @property
    def stored(self) -> int:
        """The layer itself."""
        return 1


@final
@dataclasses.dataclass(frozen=True)
class Groupwise(Structure):
    """Each group becomes K structurally identical branches that are added up (GBD).

    Attributes:
        branches: K, branches that run for one image.
        unit: what a branch spans: a ``group``, a ``stage`` (groups of one resolution in a row) or the ``network``.
        gates: whether a branch reads a learnt mix of its own previous output and the aggregate: one gate per ``block``,
            one per ``branch``, or ``off``: all read the aggregate.
        scales: ``learnt``, or ``mean``: branches are averaged.
        kept: N, branches that are stored and that a router chooses K of for each image; 0 for all K, no router.
        rates: dilation of branch k in the dilated convolutions of a group is ``rates[k]`` (BPAC), of stored branches
            ``rates[k mod K]``: they start as copies; empty for none.
        strides: ``keep``, or ``drop``: the groups lose their strides and keep the resolution that they receive.
        shortcuts: add the input of each convolution to its normalised output where shapes allow (Bi-Real Net).

    Reference:
        Zhuang et al., Structured Binary Neural Networks for Accurate Image Classification and Semantic Segmentation,
        CVPR 2019, arXiv:1811.10413, and its extension arXiv:1909.09934; gates and scales as in its published code.
        The form of its router is not public: ours is described in docs/group_net.md.
    """

    branches: int = 5
    unit: Literal["group", "stage", "network"] = "group"
    gates: Literal["block", "branch", "off"] = "block"
    scales: Literal["learnt", "mean"] = "learnt"
    kept: int = 0
    rates: tuple[int, ...] = ()
    strides: Literal["keep", "drop"] = "keep"
    shortcuts: bool = False

    def __post_init__(self) -> None:
        if self.kept and self.kept < self.branches:
            raise ValueError(f"stored={self.kept} is fewer than k={self.branches}; store at least as many as run")
        if self.rates and len(self.rates) < self.branches:
            raise ValueError(f"{len(self.rates)} rates for {self.branches} branches; give one dilation for each branch")

    @property
    def executed(self) -> int:
        """K."""
        return self.branches

    @property
    def stored(self) -> int:
        """N where a router chooses, else K."""
        return self.kept or self.branches

    @property
    def is_routed(self) -> bool:
        """Whether fewer branches run than are stored."""
        return self.stored > self.branches
