"""Tiny networks of branches, built by hand and fitted to one batch."""

import models as zoo
import torch
from torch import fx, nn

from binarize.layers.binary import BinaryActivation
from binarize.layers.branches import Branches, Gate, Router
from binarize.passes.decompose_layers import DecomposeLayers
from binarize.recipe import Recipe
from binarize.record import Record, attach_record
from binarize.schemes.presets import build_scheme

IMAGES = torch.linspace(-2, 2, 4 * 3 * 12 * 12).sin().reshape(4, 3, 12, 12) * 2


class Tracer(fx.Tracer):
    """Keeps branches whole."""

    def is_leaf_module(self, module, name):
        return isinstance(module, Branches) or super().is_leaf_module(module, name)


class Net(nn.Module):
    """Stem, two groups of which the second may be gated, classifier."""

    def __init__(self, first, second):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first, self.second = first, second
        self.fc = nn.Linear(12, 5)

    def forward(self, x):
        x = self.first(self.stem(x))
        own = [x[k + 1] for k in range(len(self.first.bodies))] if self.first.hands_on else []
        x = self.second(x[0], *own) if own else self.second(x)
        return self.fc(x.mean((2, 3)))


def body(block, scheme):
    """One branch: a traced block with statistics of its own and binary layers."""
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias, std=0.1)
    gm = fx.symbolic_trace(block.eval())
    names = [name for name, module in gm.named_modules() if isinstance(module, nn.Conv2d)]
    DecomposeLayers({name: build_scheme(scheme) for name in names})(gm)
    return gm


def group(blocks, scheme, *, gates=0, executed=0, scaled=True, hands_on=False):
    count = len(blocks)
    channels = blocks[0].conv1.in_channels
    made = Branches(
        [body(block, scheme) for block in blocks],
        {"conv1": "conv1", "conv2": "conv2"},
        gate=Gate(gates) if gates else None,
        router=Router(channels, count, executed) if executed else None,
        scaled=scaled,
        hands_on=hands_on,
    )
    for name, parameter in made.named_parameters():
        if name in ("scale", "gate.theta"):
            nn.init.uniform_(parameter, 0.5, 1.5)
    return made


def net(count=3, *, scheme="encoding:w=3,a=2", gates=0, executed=0, scaled=True, seed=0):
    """The network in training form, in evaluation mode; ``gates`` and ``executed`` as in `group`, 0 for none."""
    torch.manual_seed(seed)
    first = group([zoo.Block(8, 8) for _ in range(count)], scheme, executed=executed, hands_on=gates > 0)
    second = [zoo.Block(8, 12, 2) for _ in range(count)]
    outer = Net(first, group(second, scheme, gates=gates, executed=executed, scaled=scaled))
    made = fx.GraphModule(outer, Tracer().trace(outer)).eval()
    _fit(made)
    record = Record(recipe=Recipe(scheme=scheme), layers=(), parts=("",), input_shape=(3, 12, 12))
    attach_record(made, record)
    return made


@torch.no_grad()
def _fit(made):
    handles = [
        module.register_forward_pre_hook(lambda m, args: None if m.fitted else m.set_levels(m.basis.fit(args[0])))
        for module in made.modules()
        if isinstance(module, BinaryActivation)
    ]
    made(IMAGES)
    for handle in handles:
        handle.remove()


FORMS = {
    "static": {},
    "averaged": {"scaled": False},
    "gated": {"gates": 1},
    "a gate for each": {"gates": 3},
    "routed": {"count": 4, "executed": 2},
    "routed and gated": {"count": 4, "executed": 2, "gates": 1},
    "routed, a gate for each": {"count": 3, "executed": 1, "gates": 3},
}
"""Options of `net` for each kind of group."""
