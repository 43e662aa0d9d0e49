import os
import signal

import pytest
import torch
from torch import nn
from training_desk import converted, data, gap, same, teacher

import binarize
from binarize.artifact import load, save
from binarize.errors import RecipeError, TrainingError
from binarize.finetune import Settings, finetune
from binarize.layers.binary import BinaryActivation, binary_layers
from binarize.layers.branches import routed_groups
from binarize.recipe import Recipe, StageSpec
from binarize.schemes.base import Levels
from binarize.schemes.encoding import EncodingActivation, EncodingWeight
from binarize.schemes.sign import SignActivation
from binarize.training.stages import Bases, LatentWeight, SmoothActivation


@pytest.mark.parametrize(
    ("scheme", "stages"),
    [
        ("xnor-net", ("tanh:epochs=2", "activations:epochs=2", "binary:epochs=4")),
        ("encoding:w=2,a=2", ("bits:w=8,a=8,epochs=1", "bits:w=4,a=4,epochs=1", "binary:epochs=4")),
        ("encoding:w=1,a=2", ("activations:epochs=2", "binary:epochs=4")),
    ],
)
def test_stages_end_in_the_scheme_that_was_asked_for(scheme, stages):
    net = converted(scheme)
    before = [(name, layer.scheme, layer.activation.basis) for name, layer in binary_layers(net)]
    start = gap(net)

    history = finetune(net, data(16), teacher=teacher(), settings=Settings(freeze_norm=True), stages=stages)

    assert before == [(name, layer.scheme, layer.activation.basis) for name, layer in binary_layers(net)]
    assert all(layer.unit.requires_grad for _, layer in binary_layers(net))
    assert [epoch.stage for epoch in history.epochs if epoch.stage == stages[-1]] == [stages[-1]] * 4
    assert history.stages == stages
    assert gap(net) < start


def test_in_a_stage_of_more_bits_the_network_is_closer_to_its_teacher():
    net = converted("encoding:w=1,a=1")
    before = gap(net)
    bases, images = Bases(net), [images for images, _ in data()]

    bases.enter(StageSpec.parse("bits:w=8,a=8"))
    bases.fit(net, images, None)

    assert gap(net) < 0.6 * before  # biases are still those that made up for one bit
    assert {layer.scheme.weight for _, layer in binary_layers(net)} == {EncodingWeight(8)}
    bases.enter(StageSpec.parse("binary"))
    bases.fit(net, images, StageSpec.parse("bits:w=8,a=8"))
    assert {layer.scheme.weight for _, layer in binary_layers(net)} == {EncodingWeight(1)}
    assert gap(net) < 4 * before  # levels are fitted, not calibrated


def test_while_activations_are_trained_weights_are_floats():
    net = converted("xnor-net")
    bases = Bases(net)

    bases.enter(StageSpec.parse("activations"))

    for _, layer in binary_layers(net):
        assert torch.equal(layer.weight_value(), layer.weight)
        assert isinstance(layer.scheme.weight, LatentWeight)
        assert isinstance(layer.activation.basis, SignActivation)
    bases.restore()
    assert not any(isinstance(layer.scheme.weight, LatentWeight) for _, layer in binary_layers(net))


def test_the_smooth_sign_runs_through_both_levels_with_slope_one_between():
    levels = Levels(torch.tensor(-1.0), torch.tensor([2.0]), torch.tensor([[0.5]]))
    x = torch.tensor([-50.0, 0.5, 50.0], requires_grad=True)

    y = SmoothActivation(SignActivation())(x, levels)
    y.sum().backward()

    torch.testing.assert_close(y.detach(), torch.tensor([-1.0, 0.0, 1.0]))
    torch.testing.assert_close(x.grad, torch.tensor([0.0, 1.0, 0.0]))


def test_the_smooth_code_is_the_input_cut_to_its_range():
    levels = Levels(torch.tensor(0.0), torch.tensor([0.5]))

    y = SmoothActivation(EncodingActivation(2))(torch.tensor([-1.0, 0.3, 9.0]), levels)

    torch.testing.assert_close(y, torch.tensor([0.0, 0.3, 1.5]))


def test_a_run_stopped_in_a_later_stage_goes_on_there(tmp_path):
    stages = ("activations:epochs=1", "binary:epochs=2")
    straight, resumed = converted("xnor-net"), converted("xnor-net")
    finetune(straight, data(), teacher=teacher(), stages=stages)

    def progress(step):
        if (step.epoch, step.done) == (2, 2):
            os.kill(os.getpid(), signal.SIGINT)

    first = finetune(
        converted("xnor-net"), data(), teacher=teacher(), stages=stages, checkpoint=tmp_path, progress=progress
    )
    finetune(resumed, data(), teacher=teacher(), stages=stages, checkpoint=tmp_path, resume=True)

    assert first.stopped == "SIGINT"
    assert same(straight, resumed)


def weights(body):
    """Return all values but those of normalisation, which follow the images that a branch runs for."""
    layers = [module for module in body.modules() if not isinstance(module, nn.BatchNorm2d)]
    return torch.cat([value.detach().flatten() for layer in layers for value in layer.parameters(recurse=False)])


def test_the_first_branches_are_trained_for_all_images_and_the_others_become_their_copies():
    net = converted("group-net:k=2,stored=4,gates=off")
    groups = routed_groups(net)
    ran = []
    for group in groups:
        for k, inner in enumerate(group.bodies):
            inner.register_forward_hook(lambda module, args, y, k=k: ran.append((k, len(y))))
    bases = Bases(net)
    bases.enter(StageSpec.parse("shared"))
    images = next(iter(data(shuffle=False)))[0]
    with torch.no_grad():
        for group in groups:
            group.bodies[1].get_parameter(next(name for name, _ in group.bodies[1].named_parameters())).add_(0.5)
        wanted = net.eval()(images)
        assert {(k, count) for k, count in ran} == {(0, len(images)), (1, len(images))}
        for group in groups:
            group.router.choose.bias.zero_()
        bases.leave(StageSpec.parse("shared"), net, [images])
        bases.enter(StageSpec.parse("binary"))
        got = net(images)

    for group in groups:
        assert all(torch.equal(weights(body), weights(group.bodies[k % 2])) for k, body in enumerate(group.bodies))
        assert not torch.equal(weights(group.bodies[0]), weights(group.bodies[1]))
        assert group.router.choose.bias.abs().sum() > 0
    # the same branches; sums of the images of one set only may be in another order
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_what_the_first_branches_learnt_is_where_the_others_start():
    net = converted("group-net:k=1,stored=2")
    seen = {}

    def values(branch):
        return torch.cat([weights(group.bodies[branch]) for group in routed_groups(net)])

    def progress(step):
        seen[step.epoch, step.done] = values(0), values(1)

    start = values(0)
    finetune(net, data(), teacher=teacher(), stages=("shared:epochs=4", "binary:epochs=1"), progress=progress)

    learnt, waiting = seen[4, 3]
    assert torch.equal(waiting, start)
    moved = (learnt - start).abs().mean()
    assert 0 < (seen[5, 1][1] - learnt).abs().mean() < 0.5 * moved  # one step of training all, after twelve
    assert not any(group.shared for group in routed_groups(net))


def test_a_stage_for_routed_branches_is_refused_at_once_where_there_are_none():
    seen = []
    with pytest.raises(TrainingError, match="no router chooses among its branches"):
        finetune(
            converted("encoding:w=2,a=2"), data(), teacher=teacher(), progress=seen.append,
            stages=("bits:w=4,a=4,epochs=1", "shared:epochs=1", "binary"),
        )  # fmt: skip
    assert not seen


def test_batches_that_only_a_user_s_loss_understands_leave_the_routers_as_they_are():
    net = converted("group-net:k=1,stored=2")
    batches = [{"x": images} for images, _ in data(shuffle=False)]
    routers = [group.router.choose.weight.detach().clone() for group in routed_groups(net)]
    seen = []

    def progress(step):
        if step.epoch == 2 and not seen:
            seen.extend(group.router.choose.weight.detach().clone() for group in routed_groups(net))

    finetune(
        net, batches, loss_fn=lambda model, batch: model(batch["x"]).square().mean(), progress=progress,
        stages=("shared:epochs=1", "binary:epochs=1"),
    )  # fmt: skip
    for before, after in zip(routers, seen, strict=True):  # one step of a twentieth
        torch.testing.assert_close(after, before, rtol=0.05, atol=0.05 * float(before.abs().max()))


def test_no_batch_is_read_before_training_where_nothing_has_to_be_fitted():
    opened = []

    class Counted:
        def __iter__(self):
            opened.append(1)
            return iter(data())

    finetune(converted("encoding:w=2,a=2"), Counted(), teacher=teacher(), epochs=1)
    assert len(opened) == 1


def test_a_run_that_stops_while_branches_are_shared_leaves_their_copies(tmp_path):
    net = converted("group-net:k=1,stored=2")

    def progress(step):
        if step.done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    stages = ("shared:epochs=1", "binary:epochs=1")
    history = finetune(net, data(), teacher=teacher(), stages=stages, checkpoint=tmp_path, progress=progress)

    assert history.stopped == "SIGINT"
    assert all(same(group.bodies[1], group.bodies[0]) and not group.shared for group in routed_groups(net))


def test_a_network_saved_while_branches_are_shared_runs_as_it_did(tmp_path):
    net = converted("group-net:k=1,stored=2")
    for group in routed_groups(net):
        group.shared = True
        for p in group.bodies[0].parameters():
            p.data.add_(0.1)
    save(binarize.pack(net), tmp_path / "net.safetensors")
    images = next(iter(data()))[0]

    # the packed form rounds scales and thresholds anew, in float32
    torch.testing.assert_close(load(tmp_path / "net.safetensors")(images), net.eval()(images), rtol=1e-3, atol=1e-3)


def test_stages_come_from_the_recipe():
    recipe = Recipe(scheme="xnor-net", stages=("activations:epochs=1", "binary"))
    net = binarize.convert(teacher(), recipe=recipe, data=data(shuffle=False))

    history = finetune(net, data(), teacher=teacher(), settings=Settings(epochs=2))

    assert [epoch.stage for epoch in history.epochs] == ["activations:epochs=1", "binary", "binary"]


def test_a_changed_level_is_not_forgotten_by_the_activation():
    net = converted("encoding:w=2,a=2")
    finetune(net, data(), teacher=teacher(), stages=("bits:a=4,epochs=1", "binary:epochs=1"))

    assert all(len(module.step) == 1 for module in net.modules() if isinstance(module, BinaryActivation))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("activation", "did you mean 'activations'"),
        ("bits", "names no width"),
        ("bits:w=9", "from 1 to 8"),
        ("tanh:epochs=0", "1 or more"),
        ("tanh:w=2", "unknown option 'w'"),
    ],
)
def test_a_stage_that_says_nothing_is_refused(text, why):
    with pytest.raises(RecipeError, match=why):
        Recipe(stages=(text,))


@pytest.mark.parametrize("last", ["bits:w=8,a=8", "tanh", "activations:epochs=1"])
def test_a_run_that_would_leave_another_network_is_refused(last):
    net = converted("encoding:w=2,a=2")

    with pytest.raises(RecipeError, match=f"cannot end with the stage '{last}'.*add the stage binary"):
        finetune(net, data(), teacher=teacher(), stages=("binary", last))

    assert same(net, converted("encoding:w=2,a=2"))


def test_stages_survive_toml(tmp_path):
    recipe = Recipe(stages=("bits:w=8,a=8,epochs=2", "binary:epochs=5"))
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())

    assert Recipe.from_toml(tmp_path / "recipe.toml") == recipe


def test_a_stage_may_have_a_lower_rate():
    stages = ("binary:epochs=1", "binary:epochs=1,rate=0.25")
    settings = Settings(schedule="constant", warmup=0.0)
    first, second = finetune(converted(), data(), teacher=teacher(), settings=settings, stages=stages).epochs

    assert (first.rate, second.rate) == (1.0, 0.25)


@pytest.mark.parametrize("rate", ["0", "-1", "1.5", "much", "nan"])
def test_a_rate_that_is_no_share_is_refused(rate):
    with pytest.raises(RecipeError, match=f"rate is '{rate}'; it must be above 0 and at most 1"):
        StageSpec.parse(f"binary:epochs=2,rate={rate}")


def test_all_options_of_a_stage_are_read():
    assert StageSpec.parse("bits:w=4,a=3,epochs=2,rate=0.5") == StageSpec("bits", 2, 4, 3, 0.5)
