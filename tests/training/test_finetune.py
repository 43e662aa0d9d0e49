import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from training_desk import IMAGES, converted, data, gap, plain, same, teacher

import binarize
from binarize.errors import DataError, TrainingError
from binarize.finetune import Losses, Settings, finetune
from binarize.recipe import Recipe
from binarize.training.objectives import mixed

SCHEMES = [
    "xnor-net",
    "encoding:w=1,a=1",
    "encoding:w=2,a=2",
    "residual:m=2,a=2",
    "group-net:k=2",
    "group-net:k=2,unit=layer",
    "group-net:k=2,stored=3",
]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_network_comes_closer_to_its_teacher(scheme):
    net = converted(scheme)
    before = gap(net)

    # so short a run does not settle batch statistics anew
    history = finetune(net, data(16), teacher=teacher(), settings=Settings(epochs=8, freeze_norm=True))

    assert gap(net) < 0.8 * before
    assert history.epochs[-1].loss < history.epochs[0].loss
    assert not any(module.training for module in net.modules())


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "sgd"])
def test_every_optimiser_learns_labels(optimiser):
    net = converted()

    history = finetune(net, data(), settings=Settings(epochs=8, optimiser=optimiser, lr=0.02))

    assert history.epochs[-1].loss < history.epochs[0].loss
    assert set(history.epochs[0].terms) == {"labels"}


def test_what_was_trained_can_be_packed_and_saved_with_its_record(tmp_path):
    net = converted()
    finetune(net, data(), teacher=teacher(), val=data(shuffle=False), epochs=1)

    binarize.save(binarize.pack(net), tmp_path / "net.safetensors")
    loaded = binarize.load(tmp_path / "net.safetensors")

    images = torch.randn(8, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), net(images), atol=1e-3, rtol=1e-3)  # sums in another order
    details = binarize.summary(loaded, macs=False).details
    assert details["training"]["settings"]["optimiser"] == "adam"
    assert len(details["training"]["epochs"]) == 1
    assert 0 <= details["metrics"]["fine-tuned"]["top1"] <= 1


def test_the_teacher_is_left_as_it_is():
    master = teacher().train()
    kept = copy.deepcopy(master)

    finetune(converted(), data(), teacher=master, epochs=1)

    assert same(master, kept)
    assert all(module.training for module in master.modules())


def test_the_same_seed_gives_the_same_network():
    one, other, third = converted(), converted(), converted()

    finetune(one, data(), teacher=teacher(), epochs=1)
    torch.rand(1)
    finetune(other, data(), teacher=teacher(), epochs=1)
    finetune(third, data(), teacher=teacher(), settings=Settings(epochs=1, seed=1, lr=0.01))

    assert same(one, other)
    assert not same(one, third)


def test_block_outputs_are_compared_at_the_groups_both_have():
    net = converted()
    settings = Settings(epochs=4, losses=Losses(logits=0.0, blocks=1.0, blocks_as="features"))

    history = finetune(net, data(), teacher=teacher(), settings=settings)

    assert set(history.epochs[0].terms) == {"blocks"}
    assert history.epochs[-1].loss < history.epochs[0].loss


def test_terms_are_mixed_by_their_weights():
    losses = Losses(labels=0.5, logits=2.0, blocks=3.0, temperature=4.0, smoothing=0.1)

    history = finetune(converted(), data(), teacher=teacher(), settings=Settings(epochs=1, losses=losses))

    terms = history.epochs[0].terms
    assert set(terms) == {"labels", "logits", "blocks"}
    assert history.epochs[0].loss == pytest.approx(sum(terms.values()))


def test_a_node_that_both_do_not_have_is_named():
    losses = Losses(blocks=1.0, at=("block1_rellu",))

    with pytest.raises(TrainingError, match=r"'block1_rellu': no such node in both .did you mean 'block1_relu"):
        finetune(converted(), data(), teacher=teacher(), settings=Settings(losses=losses))


def test_images_without_labels_are_enough_with_a_teacher():
    images = [torch.randn(8, 3, 8, 8) for _ in range(2)]

    history = finetune(converted(), images, teacher=teacher(), epochs=1)

    assert history.epochs[0].top1 is None


def test_a_function_of_the_user_is_minimised():
    net = converted()
    seen = []

    def loss_fn(model, batch):
        seen.append(model.training)
        images, _ = batch
        return {"size": model(images).square().mean(), "more": torch.tensor(1.0)}

    history = finetune(net, data(), loss_fn=loss_fn, val=lambda trained: {"training": trained.training}, epochs=3)

    assert all(seen)
    assert history.epochs[-1].terms["size"] < history.epochs[0].terms["size"]
    assert history.epochs[-1].terms["more"] == 1.0
    assert history.epochs[0].val == history.before == {"training": 0.0}


def test_accumulated_batches_move_the_weights_as_one_large_batch():
    many, _ = plain()
    one = copy.deepcopy(many)
    losses = Losses(labels=1.0)

    finetune(many, data(8, shuffle=False), settings=Settings(epochs=1, accumulate=2, optimiser="sgd", losses=losses))
    finetune(one, data(16, shuffle=False), settings=Settings(epochs=1, optimiser="sgd", losses=losses))

    # the same gradients up to rounding: three steps of 0.01 cannot carry it further than this
    for key, value in one.state_dict().items():
        torch.testing.assert_close(many.state_dict()[key], value, atol=1e-5, rtol=1e-4)


def test_the_running_average_is_what_is_kept():
    net, average = converted(), converted()

    settings = Settings(epochs=2, freeze_norm=True)
    finetune(net, data(), teacher=teacher(), settings=settings)
    finetune(average, data(), teacher=teacher(), settings=dataclasses.replace(settings, ema=0.99))

    assert not same(net, average)
    assert gap(average) < gap(converted())


def test_clipping_and_bfloat16_and_channels_last_train_too():
    net = converted()
    settings = Settings(epochs=4, clip=1.0, bf16=True, channels_last=True)

    history = finetune(net, data(), teacher=teacher(), settings=settings)

    assert history.epochs[-1].loss < history.epochs[0].loss
    assert all(value.dtype == torch.float32 for value in net.parameters())


def test_frozen_statistics_stay():
    net = converted()
    before = {key: value.clone() for key, value in net.state_dict().items() if "running" in key}

    finetune(net, data(), teacher=teacher(), settings=Settings(epochs=1, freeze_norm=True))

    assert before
    assert all(torch.equal(net.state_dict()[key], value) for key, value in before.items())


def test_what_is_met_in_training_is_counted():
    history = finetune(converted(), data(), teacher=teacher(), val=data(shuffle=False), epochs=1)

    assert 0 <= history.epochs[0].top1 <= 1
    assert history.epochs[0].images_per_second == pytest.approx(IMAGES / history.epochs[0].seconds)
    assert set(history.epochs[0].val) == {"top1"}


def test_a_packed_network_is_refused_with_the_remedy():
    with pytest.raises(TrainingError, match="latent weights are gone; convert with --trainable"):
        finetune(binarize.pack(converted()), data(), teacher=teacher())


def test_a_float_network_is_refused():
    with pytest.raises(TrainingError, match="no binary layer; convert it first"):
        finetune(teacher(), data())


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"teacher": nn.Identity(), "loss_fn": lambda net, batch: None}, "both a teacher and a loss_fn"),
        ({"resume": True}, "no folder for checkpoints"),
        ({"loss_fn": lambda net, batch: net(batch[0])}, "what loss_fn returned: a tensor of shape"),
        ({"loss_fn": lambda net, batch: net(batch[0]).sum().detach()}, "what loss_fn returned: it has no gradient"),
        ({"settings": Settings(losses=Losses(logits=1.0))}, "distil without a teacher"),
        ({"settings": Settings(losses=Losses(labels=0.0))}, "all 0"),
        ({"stages": "binary"}, r"give a tuple of texts, \('binary',\)"),
        ({"teacher": nn.Conv2d(1, 2, 3).eval()}, r"does not take images of shape \(32, 3, 8, 8\)"),
        ({"teacher": nn.Flatten().eval()}, r"outputs have shape \(32, 192\), the network's \(32, 5\)"),
    ],
)
def test_what_makes_no_sense_is_refused(options, why):
    with pytest.raises(TrainingError, match=why):
        finetune(converted(), data(), **options)


def test_labels_that_are_missing_are_asked_for():
    with pytest.raises(TrainingError, match="the data has none; give a teacher"):
        finetune(converted(), [torch.randn(4, 3, 8, 8)])


@pytest.mark.parametrize(
    ("batch", "why"),
    [
        (
            (torch.randn(2, 3, 8, 8), torch.tensor([0, 5])),
            "the labels: a label is 5, the network has outputs 0 to 4; number the classes from 0",
        ),
        ((torch.randn(2, 3, 8, 8), torch.zeros(3, dtype=torch.long)), r"torch.int64 \(3,\) for outputs \(2, 5\)"),
        (
            (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1])),
            "uint8: give float32, scaled as the model",
        ),
        ((torch.zeros(2, 3, 8, 8).double(), torch.tensor([0, 1])), "float64: give float32, scaled as the model"),
        ((torch.randn(2, 8, 8, 3), torch.tensor([0, 1])), r"\(2, 8, 8, 3\), the network takes \('n', 3, 8, 8\)"),
    ],
)
def test_batches_that_do_not_fit_are_refused(batch, why):
    with pytest.raises(TrainingError, match=why):
        finetune(converted(), [batch])


def test_a_pass_of_one_batch_moves_the_weights():
    net = converted()
    finetune(net, data(96), teacher=teacher(), settings=Settings(epochs=1, freeze_norm=True))

    assert not same(net, converted())


def test_the_first_pass_of_a_loader_without_a_length_moves_the_weights():
    class Stream:
        def __iter__(self):
            return iter(data(shuffle=False))

    net = converted()
    history = finetune(net, Stream(), teacher=teacher(), settings=Settings(epochs=1, freeze_norm=True))

    assert history.epochs[0].rate > 0.5
    assert not same(net, converted())


def test_the_running_average_does_not_change_the_training():
    """The activation that two layers share has two names in the network."""
    everything = Recipe(scheme="encoding:w=2,a=2", keep_first=False, keep_last=False, smallest=0)
    first = binarize.convert(teacher(), recipe=everything, data=data(shuffle=False))
    nets = first, copy.deepcopy(first)
    assert len({id(value) for value in nets[0].state_dict(keep_vars=True).values()}) < len(nets[0].state_dict())

    settings = Settings(epochs=3)
    plain = finetune(nets[0], data(), teacher=teacher(), settings=settings)
    averaged = finetune(nets[1], data(), teacher=teacher(), settings=dataclasses.replace(settings, ema=0.9))

    assert [epoch.loss for epoch in plain.epochs] == [epoch.loss for epoch in averaged.epochs]


def test_a_loader_that_yields_nothing_is_refused():
    with pytest.raises(DataError, match="yields no batch"):
        finetune(converted(), iter([]), teacher=teacher())


def test_a_generator_is_refused_where_it_ends():
    with pytest.raises(DataError, match="the data can be read once only; give a loader, not a generator"):
        finetune(converted(), (batch for batch in data()), teacher=teacher(), epochs=2)


def test_mixed_images_are_between_two_of_the_batch():
    images = torch.stack([torch.full((1, 2, 2), float(value)) for value in (0, 10, 20, 30)])
    torch.manual_seed(0)
    found = mixed(images, 0.5).flatten(1)

    assert torch.equal(found, found[:, :1].expand(-1, 4))
    middle, end = torch.tensor([15.0, 15.0, 15.0, 15.0]), torch.tensor([0.0, 10.0, 20.0, 30.0])
    assert bool(((found[:, 0] - middle).abs() <= (end - middle).abs()).all())
    assert len({round(float((x - e) / (m - e)), 4) for x, e, m in zip(found[:, 0], end, middle, strict=True)}) == 4
    assert torch.equal(mixed(images, 0.0), images)


def test_a_teacher_is_asked_about_mixed_images():
    seen = []

    class Asked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = teacher()

        def forward(self, x):
            seen.append(x)
            return self.inner(x)

    loader = [batch for batch, _ in zip(data(), range(1), strict=False)]
    history = finetune(
        converted(), loader, teacher=Asked().eval(), settings=Settings(epochs=1, losses=Losses(mix=0.5)), val=data()
    )

    assert not torch.equal(seen[0], loader[0][0])
    assert history.epochs[0].top1 is None
    assert set(history.epochs[0].val) == {"top1"}


@pytest.mark.parametrize("options", [{"labels": 0.5}, {"labels": 1.0, "logits": 0.0, "blocks": 1.0}])
def test_mixed_images_have_no_labels(options):
    with pytest.raises(TrainingError, match="mixed ones have no label; give a teacher and leave"):
        finetune(converted(), data(), teacher=teacher(), settings=Settings(losses=Losses(mix=0.3, **options)))


def test_a_network_does_not_teach_itself():
    net = converted()
    with pytest.raises(TrainingError, match="it is the network itself; give the original"):
        finetune(net, data(), teacher=net)


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0}, {"lr": -1.0}, {"lr": 1.5}, {"optimiser": "adma"}, {"ema": 1.0}, {"clip": -1.0}, {"epochs": 1.5},
        {"lr": "0.1"}, {"clip": None}, {"warmup": "0.1"}, {"momentum": None},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(TrainingError, match=f"cannot fine-tune with {next(iter(options))}"):
        Settings(**options)


@pytest.mark.parametrize("options", [{"logits": "1"}, {"temperature": "4"}, {"temperature": 0}, {"smoothing": 1.0}])
def test_losses_out_of_range_are_refused(options):
    with pytest.raises(TrainingError, match=f"cannot fine-tune with {next(iter(options))}"):
        Losses(**options)


def test_block_outputs_of_branches_are_compared_too():
    net = converted("group-net:k=2")

    history = finetune(net, data(), teacher=teacher(), settings=Settings(epochs=1, losses=Losses(blocks=1.0)))

    assert history.epochs[0].terms["blocks"] > 0


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"teacher": "model.pth"}, "it is a str, not a torch.nn.Module"),
        ({"val": "digits:test"}, "cannot read data from 'digits:test': open it by load_data"),
        ({"train": "digits"}, "cannot read data from 'digits'"),
        ({"train": [(np.zeros((2, 3, 8, 8)), np.zeros(2))]}, "that is a tuple of ndarray, ndarray: yield tensors"),
    ],
)
def test_what_is_no_model_or_no_data_is_named(given, why):
    words = {"teacher": teacher(), "train": data(), **given}
    with pytest.raises(TrainingError, match=why):
        finetune(converted(), words.pop("train"), **words)


@pytest.mark.parametrize(
    ("batch", "images"),
    [
        (torch.zeros(5, 3, 8, 8), 5),
        ((torch.zeros(5, 3, 8, 8), torch.zeros(5)), 5),
        ({"id": ["a", "b"], "image": torch.zeros(2, 3, 8, 8), "step": torch.tensor(1)}, 2),
        ([{"image": torch.zeros(3, 8, 8)}] * 4, 4),
        (([torch.zeros(3, 8, 8), torch.zeros(3, 9, 9)], [{}, {}]), 2),
        (({"x": torch.zeros(6, 3, 8, 8)}, torch.zeros(6)), 6),
        ({"pixel_values": torch.zeros(3, 3, 8, 8), "class_weights": torch.zeros(1000)}, 3),
        ("a text", 1),
    ],
)
def test_images_of_batches_of_every_kind_are_counted(batch, images):
    epochs = finetune(converted(), [batch] * 3, loss_fn=lambda net, _: sum(p.sum() for p in net.parameters()), epochs=1)

    (epoch,) = epochs.epochs
    assert round(epoch.images_per_second * epoch.seconds) == 3 * images
