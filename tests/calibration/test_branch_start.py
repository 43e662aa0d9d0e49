"""How branches start, from one trained network: apart, and together closer to it the more there are."""

import pytest
import torch
from torch import nn

import binarize
from binarize.calibration.places import layer_places
from binarize.calibration.scales import least_squares_scales
from binarize.layers.binary import binary_layers
from binarize.layers.branches import branch_groups


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.one, self.two = Block(16), Block(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.two(self.one(torch.relu(self.stem(x))))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(0)
    model = Net()
    images = nn.functional.avg_pool2d(torch.randn(32, 3, 16, 16), 3, stride=2, padding=1) * 3
    with torch.no_grad():
        for _ in range(30):  # statistics as training would leave them
            model(images)
    return model.eval(), images


def first_group_error(model, net, images):
    seen = {}
    for key, where in (("wanted", model.one), ("got", net.get_submodule("one"))):
        where.register_forward_hook(
            lambda module, args, y, key=key: seen.update({key: y[0] if isinstance(y, tuple) else y})
        )
    with torch.no_grad():
        model(images)
        net(images)
    return float((seen["got"] - seen["wanted"]).square().mean() / seen["wanted"].var())


def test_the_error_of_the_first_group_falls_with_every_branch(made):
    """Issue: for K = 1..8 the error of the first group's output falls monotonically after initialisation."""
    model, images = made
    errors = [
        first_group_error(model, binarize.convert(model, images, f"group-net:k={k}"), images) for k in range(1, 9)
    ]

    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.7 * errors[0]


def test_branches_have_thresholds_and_weights_of_their_own(made):
    model, images = made
    _, group = branch_groups(binarize.convert(model, images, "group-net:k=3"))[0]
    layers = [dict(binary_layers(body)) for body in group.bodies]

    for name in ("conv1", "conv2"):
        assert len({float(inside[name].activation.threshold.detach()) for inside in layers}) == 3
        assert not torch.equal(layers[0][name].odd(), layers[1][name].odd())


def test_normalisation_is_copied_and_gates_start_near_the_aggregate(made):
    model, images = made
    (_, first), (_, second) = branch_groups(binarize.convert(model, images, "group-net:k=2"))

    for body in first.bodies:
        assert torch.equal(body.bn1.running_mean, model.one.bn1.running_mean)
        assert torch.equal(body.bn1.weight, model.one.bn1.weight)
    assert first.gate is None
    assert 0.1 < second.gate.theta.detach().sigmoid().item() < 0.15


def test_every_copy_knows_the_layer_it_comes_from(made):
    model, images = made
    places = layer_places(binarize.convert(model, images, "group-net:k=2"))

    assert places["two.bodies.1.conv2"].source == "two.conv2"
    assert (places["two.bodies.1.conv2"].home, places["two.bodies.1.conv2"].branch) == ("two", 1)
    assert [places[f"one.bodies.0.{name}"].boosted for name in ("conv1", "conv2")] == [False, True]
    assert len(places) == 8


def test_scales_by_least_squares_equal_a_generic_solver():
    generator = torch.Generator().manual_seed(0)
    terms, target = torch.randn(3, 5, 4, 2, 2, generator=generator), torch.randn(5, 4, 2, 2, generator=generator)
    level = 0.01 * terms.flatten(1).square().sum(1).mean()
    rows = torch.cat([terms.flatten(1).T, level.sqrt() * torch.eye(3)]).double()  # the ridge as further equations
    right = torch.cat([target.flatten(), level.sqrt() * torch.ones(3)]).double()
    wanted = torch.linalg.lstsq(rows, right).solution

    # float32 sums of 80 products against float64 ones: 80 roundings of 2^-24 of numbers below 4
    torch.testing.assert_close(least_squares_scales([(terms, target)]).double(), wanted, rtol=0, atol=80 * 4 * 2.0**-24)


def test_equal_branches_get_equal_finite_scales():
    term = torch.randn(2, 3, 2, 2)
    found = least_squares_scales([(torch.stack([term, term]), 2 * term)])

    torch.testing.assert_close(found[0], found[1])
    assert float(found.sum()) == pytest.approx(2.0, rel=0.02)


def test_scales_are_taken_only_where_images_kept_aside_gain(made):
    model, images = made
    net = binarize.convert(model, images, "group-net:k=2,gates=off")
    taken = binarize.record.record_of(net).calibration["scales"]

    for path, group in branch_groups(net):
        is_mean = group.scale.detach().tolist() == [1.0, 1.0]
        assert is_mean != (path in taken)
