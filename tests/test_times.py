"""How long layers take: every packed layer has a time, whoever runs it, and the network stays as it was."""

import pytest
import torch
from torch import nn

import binarize
from binarize.errors import ModelError
from binarize.kernels.speeds import Speeds
from binarize.layers.packed import PackedLayer
from binarize.passes.schedule import coverage, runner_of
from binarize.passes.stretch import Stretch
from binarize.times import layer_times

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two convolutions, one of them called twice, around what no schedule holds."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x):
        y = torch.sigmoid(torch.relu(self.b(torch.relu(self.b(torch.relu(self.a(x)))))))
        return self.head(y.mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    recipe = binarize.Recipe("encoding:w=2,a=2", convert=("*",), keep_first=False, keep_last=False, smallest=0)
    return binarize.pack(binarize.convert(Net().eval(), IMAGES, recipe=recipe))


@pytest.mark.parametrize("scheduled", ["on", "off"])
def test_every_packed_layer_has_its_times(net, scheduled, monkeypatch):
    monkeypatch.setenv("BINARIZE_SCHEDULE", scheduled)
    wanted = net(IMAGES)

    rows = layer_times(net, turns=3)

    assert [row.name for row in rows] == [name for name, m in net.named_modules() if isinstance(m, PackedLayer)]
    assert all(row.measured_us > 0 for row in rows)
    assert all(row.route == net.get_submodule(row.name).activation.route for row in rows)
    assert torch.equal(net(IMAGES), wanted)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    runner = runner_of(net)
    assert all(item.clock is None for item in getattr(runner, "items", ()) if isinstance(item, Stretch))


def test_the_prediction_is_products_and_outputs_over_their_rates(net, monkeypatch):
    """Of 256 pixels: 64 words-wide channels, 3x3 taps, 8 outputs, 2x2 planes; then b is called twice."""
    for layer in net.modules():
        if isinstance(layer, PackedLayer):
            layer.activation.route = "popcount"
    monkeypatch.setattr("binarize.times.speeds", lambda: Speeds(4.0, 1.0, 2.0, 1.0))

    found = {row.name: row.predicted_us for row in layer_times(net, turns=1)}

    once = 256 * 8 * (4 * 64 * 9 / 4.0 + 1 / 2.0) / 1e3
    assert found["a"] == pytest.approx(once)
    assert found["b"] == pytest.approx(2 * once)
    assert found["head"] == pytest.approx(4 * (4 * 64 / 4.0 + 1 / 2.0) / 1e3)


def test_schedules_stay_those_that_were_planned(net):
    layer_times(net, turns=2)
    before = runner_of(net)

    layer_times(net, turns=2)

    assert runner_of(net) is before
    assert coverage(net).left.keys() == {"sigmoid"}


def test_what_cannot_be_timed_is_refused(net):
    with pytest.raises(ModelError, match="none is packed"):
        layer_times(nn.Conv2d(3, 4, 3))
    with pytest.raises(ModelError, match="must be 3, got 5"):
        layer_times(net, input_shape=(5, 16, 16))
