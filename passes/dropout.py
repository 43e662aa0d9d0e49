"""Take out what does nothing in evaluation: it would keep apart what can run as one."""

import dataclasses
from typing import final

from torch import fx, nn

from binarize.passes.base import Pass, PassResult
from binarize.passes.graph import bypass, calls

__all__ = ["TakeOutDropout"]

KINDS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.Identity)


@final
@dataclasses.dataclass(frozen=True)
class TakeOutDropout(Pass):
    """Let who reads the output of dropout, or of an identity, read its input: in evaluation they are the same.

    Dropout in training mode stays.
    """

    def run(self, gm: fx.GraphModule) -> PassResult:
        """Take out every call of such a layer."""
        changed: list[str] = []
        skipped: dict[str, str] = {}
        for call in calls(gm, KINDS):
            if call.module.training and not isinstance(call.module, nn.Identity):
                skipped[call.name] = "draws at random in training"
                continue
            bypass(gm, call)
            changed.append(call.name)
        return PassResult(tuple(dict.fromkeys(changed)), skipped)
