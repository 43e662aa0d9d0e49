import pytest
import torch
from training_desk import converted

from binarize.layers.binary import BinaryActivation, binary_layers
from binarize.recipe import StageSpec
from binarize.training.parameters import Rates, keep_positive, rate_factor
from binarize.training.settings import Settings
from binarize.training.stages import Bases


def by_name(net, rates):
    names = {id(value): name for name, value in net.named_parameters()}
    return {names[id(group["params"][0])]: group for group in rates.optimiser.param_groups}


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "sgd"])
def test_weights_decay_and_nothing_else_does(optimiser):
    net = converted("residual:m=2,a=2")
    groups = by_name(net, Rates(net, Settings(optimiser=optimiser, decay=0.1)))

    decaying = {name for name, group in groups.items() if group["weight_decay"] > 0}

    assert decaying == {name for name, value in net.named_parameters() if value.dim() > 1 and name.endswith("weight")}


def first_layer(net):
    return next(iter(binary_layers(net)))[1]


@pytest.mark.parametrize(
    ("scheme", "levels"),
    [
        ("encoding:w=4,a=4", 16),
        ("encoding:w=2,a=2", 4),
        ("xnor-net", 2),
        ("pa-net:m=4,n=5", 5),
        ("residual:m=3,a=2", 8),
    ],
)
def test_a_step_of_adam_is_a_share_of_the_distance_between_levels(scheme, levels):
    layer = first_layer(net := converted(scheme))
    with torch.no_grad():
        layer.weight.mul_(1000)
        layer.unit.mul_(1000)
    rates = Rates(net, Settings(lr=0.01))
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.full_like(layer.weight, 1e-4)

    rates.optimiser.step()

    # from lowest to highest level of each output, over the steps between, as the basis itself rounds
    ends = [layer.scheme.weight(torch.full_like(before, end), layer.unit).detach() for end in (-1e9, 1e9)]
    distance = float((ends[1] - ends[0]).mean()) / (levels - 1)
    moved = (layer.weight.detach() - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01 * distance), rtol=1e-2, atol=0)


@pytest.mark.parametrize("scheme", ["encoding:w=8,a=8", "residual:m=8,a=2", "pa-net:m=4,n=5"])
def test_no_weight_moves_slower_than_a_float_weight(scheme):
    layer = first_layer(net := converted(scheme))
    with torch.no_grad():
        layer.weight.fill_(0.1)
        layer.unit.copy_(layer.scheme.weight.fit(layer.weight))
    rates = Rates(net, Settings(lr=0.01))

    group = next(g for g in rates.optimiser.param_groups if g["params"][0] is layer.weight)

    assert group["lr"] == pytest.approx(0.0025 * 0.1)


def test_adamw_decays_by_the_same_share_whatever_the_size():
    net = converted()
    rates = Rates(net, Settings(optimiser="adamw"))
    layer = first_layer(net)

    group = next(g for g in rates.optimiser.param_groups if g["params"][0] is layer.weight)

    assert group["weight_decay"] * group["lr"] == pytest.approx(0.02 * 0.002)


def test_levels_and_biases_move_by_a_share_of_what_they_belong_to():
    net = converted()
    layer = first_layer(net)
    with torch.no_grad():
        layer.activation.step.fill_(3.0)
        net.fc.weight.fill_(1.0)
    groups = by_name(net, Rates(net, Settings(lr=0.01)))
    name = next(name for name, module in net.named_modules() if module is layer.activation)

    assert groups[f"{name}.step"]["lr"] == pytest.approx(0.01 * 0.05 * 3.0)
    assert groups["fc.bias"]["lr"] == pytest.approx(0.01 * 0.25 * net.fc.in_features**0.5)


def test_float_weights_and_units_move_by_a_smaller_share_of_their_size():
    net = converted("residual:m=2,a=2")
    groups = by_name(net, Rates(net, Settings(lr=0.01)))
    values = dict(net.named_parameters())

    for name in ("fc.weight", *(name for name in values if name.endswith(".unit"))):
        share = groups[name]["lr"] / float(values[name].detach().abs().mean())
        assert share == pytest.approx(0.01 * (0.05 if name.endswith("unit") else 0.25))


def test_the_float_weight_of_an_early_stage_moves_as_a_float_weight():
    net = converted("xnor-net")
    layer = first_layer(net)
    bases = Bases(net)
    bases.enter(StageSpec.parse("activations"))
    rates = Rates(net, Settings(lr=0.01))
    bases.restore()

    group = next(g for g in rates.optimiser.param_groups if g["params"][0] is layer.weight)

    assert group["lr"] == pytest.approx(0.0025 * float(layer.weight.detach().abs().mean()))


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
