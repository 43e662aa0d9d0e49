"""What does nothing in evaluation is taken out of packed networks, and nothing else."""

import pytest
import torch
from torch import fx, nn

import binarize
from binarize.layers.packed import PackedLayer
from binarize.passes.dropout import KINDS, TakeOutDropout


def network(kind):
    torch.manual_seed(0)
    middle = nn.Conv2d(16, 16, 3), kind(), nn.BatchNorm2d(16), nn.ReLU()
    return nn.Sequential(nn.Conv2d(3, 16, 3), kind(), *middle, nn.Conv2d(16, 16, 3)).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_nothing_is_taken_out(kind):
    gm = fx.symbolic_trace(network(kind))
    x = torch.randn(2, 3, 8, 8)
    wanted = network(nn.Identity)(x)

    result = TakeOutDropout()(gm)

    assert result.changed == ("1", "3")
    assert torch.equal(gm(x), wanted)
    assert not any(isinstance(module, kind) for module in gm.modules())


def test_dropout_in_training_stays_and_says_why():
    gm = fx.symbolic_trace(network(nn.Dropout).train())

    result = TakeOutDropout()(gm)

    assert (result.changed, result.skipped) == ((), dict.fromkeys(("1", "3"), "draws at random in training"))
    assert sum(isinstance(module, nn.Dropout) for module in gm.modules()) > 0


def test_layers_around_dropout_are_fused_in_a_packed_network():
    x = torch.randn(4, 3, 8, 8)
    with_dropout, without = (
        binarize.pack(binarize.convert(network(kind), x, "encoding:w=3,a=3")) for kind in (nn.Dropout2d, nn.Identity)
    )

    kinds = [type(module) for module in with_dropout.modules() if not isinstance(module, fx.GraphModule)]
    assert nn.Dropout2d not in kinds
    assert nn.BatchNorm2d not in kinds
    assert any(isinstance(module, PackedLayer) for module in with_dropout.modules())
    assert torch.equal(with_dropout(x), without(x))
