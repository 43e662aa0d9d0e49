import pytest
import torch
from training_desk import converted

from binarize.layers.binary import BinaryActivation, binary_layers
from binarize.training.parameters import Rates, keep_positive, rate_factor
from binarize.training.settings import Settings


def by_name(net, rates):
    names = {id(value): name for name, value in net.named_parameters()}
    return {names[id(group["params"][0])]: group for group in rates.optimiser.param_groups}


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "sgd"])
def test_weights_decay_and_nothing_else_does(optimiser):
    net = converted("residual:m=2,a=2")
    groups = by_name(net, Rates(net, Settings(optimiser=optimiser, decay=0.1)))

    decaying = {name for name, group in groups.items() if group["weight_decay"] > 0}

    assert decaying == {name for name, value in net.named_parameters() if value.dim() > 1 and name.endswith("weight")}


def test_a_step_of_adam_is_a_share_of_a_weights_own_size():
    net = converted()
    _, layer = next(iter(binary_layers(net)))
    with torch.no_grad():
        layer.weight.mul_(1000)
    rates = Rates(net, Settings(lr=0.01))
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.full_like(layer.weight, 1e-4)

    rates.optimiser.step()

    moved = (layer.weight.detach() - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01 * float(before.abs().mean())), rtol=1e-2, atol=0)


def test_zeros_stay_exact_after_a_relu():
    net = converted()
    groups = by_name(net, Rates(net, Settings()))
    lows = [name for name, value in net.named_parameters() if name.endswith("activation.low") and float(value) == 0]

    assert lows
    assert not set(lows) & set(groups)


def test_steps_and_units_stay_positive():
    net = converted()
    for module in net.modules():
        if isinstance(module, BinaryActivation):
            module.step.data.fill_(-1.0)

    keep_positive(net)

    assert all(
        float(module.step.detach().min()) > 0 for module in net.modules() if isinstance(module, BinaryActivation)
    )


@pytest.mark.parametrize(
    ("options", "position", "factor"),
    [
        ({"warmup": 0.1}, 0.05, 0.5),
        ({"warmup": 0.0}, 0.0, 1.0),
        ({"warmup": 0.0}, 0.5, 0.5),
        ({"warmup": 0.0}, 1.0, 0.0),
        ({"warmup": 0.0, "schedule": "linear"}, 0.75, 0.25),
        ({"warmup": 0.0, "schedule": "constant"}, 0.9, 1.0),
        ({"warmup": 0.0, "schedule": "step"}, 0.49, 1.0),
        ({"warmup": 0.0, "schedule": "step"}, 0.5, 0.1),
        ({"warmup": 0.0, "schedule": "step", "drop": 0.5}, 0.8, 0.25),
    ],
)
def test_the_rate_follows_its_schedule(options, position, factor):
    assert rate_factor(Settings(**options), position) == pytest.approx(factor)
