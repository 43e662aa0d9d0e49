"""Networks whose groups became branches, beside the same networks layer by layer."""

import copy

from torch import nn

from binarize.passes.capture import capture
from binarize.passes.decompose_groups import DecomposeGroups
from binarize.passes.decompose_layers import DecomposeLayers
from binarize.passes.select import Rules, sites, why_not
from binarize.schemes.presets import build_scheme

ALL = Rules(smallest=0)


def schemes_for(captured, path, scheme, rules=ALL, only=""):
    prefix = f"{path}." if path else ""
    found = [
        s.name for s in sites(captured) if s.graph == path and s.name.startswith(only) and why_not(s, rules) is None
    ]
    return {name.removeprefix(prefix): build_scheme(scheme) for name in found}


def decomposed(model, scheme, rules=ALL, only=""):
    """Return the model with its groups as branches, what became of them, and why the others did not."""
    captured, made, skipped = capture(copy.deepcopy(model)), [], {}
    for path, gm in captured.graphs.items():
        chosen = schemes_for(captured, path, scheme, rules, only)
        step = DecomposeGroups(chosen)
        skipped |= step(gm).skipped
        made += step.made
        inside = {layer for connection in step.made for layer in connection.layers}
        DecomposeLayers({name: build_scheme("xnor-net") for name in chosen if name not in inside})(gm)
    return captured.root.eval(), made, skipped


def layerwise(model, rules=ALL, only=""):
    captured = capture(copy.deepcopy(model))
    for path, gm in captured.graphs.items():
        DecomposeLayers(schemes_for(captured, path, "xnor-net", rules, only))(gm)
    return captured.root.eval()


def lively(model):
    """Statistics of their own, so that no two layers are alike."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


class Chain(nn.Sequential):
    """Convolutions in a row, as VGG has them."""

    def __init__(self):
        block = [nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), *copy.deepcopy(block), *block, nn.Flatten(), nn.Linear(32, 5)
        )  # fmt: skip
