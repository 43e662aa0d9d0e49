"""Opening models: every kind of file, names and factories, and what does not fit."""

import sys

import pytest
import torch
import torchvision
from source_files import ARCH, WRITERS, refused
from torch import nn

from binarize.errors import ModelError, SourceError
from binarize.sources import open_model, require_finite
from binarize.sources.builders import find_builder
from binarize.sources.states import load_fitting

# Every good kind


@pytest.mark.parametrize("writer", WRITERS)
def test_what_was_saved_is_opened(writer, model, x, tmp_path):
    write, kind = WRITERS[writer]
    path = tmp_path / "net.pth"
    write(model, path)

    opened = open_model(str(path), arch=None if kind == "module" else ARCH)

    assert (opened.kind, opened.origin, opened.name) == (kind, "file", "net")
    assert opened.arch == (None if kind == "module" else f"torchvision:{ARCH}")
    assert len(opened.sha256) == 64
    assert not opened.model.training
    assert {p.dtype for p in opened.model.parameters()} == {torch.float32}
    with torch.inference_mode():
        assert torch.equal(opened.model(x), model(x))


@pytest.mark.parametrize("name", ["raft_small", "ssdlite320_mobilenet_v3_large", "swin_t"])
def test_whole_modules_with_functions_and_plain_classes_inside_are_opened(name, tmp_path):
    built = find_builder(name).build()
    torch.save(built, tmp_path / "whole.pt")
    opened = open_model(str(tmp_path / "whole.pt")).model
    assert str(opened) == str(built)
    torch.testing.assert_close(opened.state_dict(), built.state_dict(), rtol=0, atol=0)


def test_half_precision_is_widened(model, tmp_path):
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}, tmp_path / "h.pt")
    opened = open_model(str(tmp_path / "h.pt"), arch=ARCH)
    for ours, theirs in zip(opened.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs.half().float())


def test_a_checkpoint_says_where_the_weights_were(model, tmp_path):
    torch.save({"state_dict": model.state_dict(), "optimizer": {}, "epoch": 1}, tmp_path / "c.pt")
    assert open_model(str(tmp_path / "c.pt"), arch=ARCH).notes == (
        "weights are the checkpoint's 'state_dict'; not used: optimizer, epoch",
    )


def test_the_number_of_classes_follows_the_weights(tmp_path):
    small = torchvision.models.mnasnet0_5(weights=None, num_classes=7)
    torch.save(small.state_dict(), tmp_path / "seven.pt")
    opened = open_model(str(tmp_path / "seven.pt"), arch=ARCH)
    assert opened.model.classifier[1].out_features == 7
    assert opened.notes == ("built with num_classes=7, as the weights ask",)


@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_the_classes_of_a_detector_follow_the_weights(name, tmp_path):
    """Rows for every class and anchor, or for every class and side of a box."""
    net = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=4)
    torch.save(net.state_dict(), tmp_path / "d.pt")
    opened = open_model(str(tmp_path / "d.pt"), arch=name)

    assert opened.notes == ("built with num_classes=4, as the weights ask",)
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in opened.model.state_dict().items())


@pytest.mark.parametrize("rows", [2, 64])
def test_weights_that_are_of_no_class_say_nothing_of_classes(rows):
    asked = []

    def build(num_classes=10):
        asked.append(num_classes)
        return nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(8, num_classes))

    state = {**build(5).state_dict(), "0.bias": torch.zeros(rows)}
    del state["2.weight"], state["2.bias"]
    asked.clear()

    with pytest.raises(SourceError, match=r"2 keys missing: .*; 1 keys of another shape"):
        load_fitting(build, state, "headless.pt", "build")
    assert asked[:-1] == [10, rows]  # and the last for the message


def test_auxiliary_heads_follow_the_weights(tmp_path):
    net = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5)
    torch.save(net.state_dict(), tmp_path / "l.pt")
    assert "num_classes=5" in open_model(str(tmp_path / "l.pt"), arch="lraspp_mobilenet_v3_large").notes[0]

    net = torchvision.models.googlenet(weights=None, aux_logits=False, init_weights=False, num_classes=4)
    torch.save(net.state_dict(), tmp_path / "g.pt")
    opened = open_model(str(tmp_path / "g.pt"), arch="googlenet")
    assert opened.notes == ("built with aux_logits=False, num_classes=4, as the weights ask",)


def test_a_program_is_opened_as_layers(program):
    path, network = program
    opened = open_model(str(path))
    assert (opened.kind, opened.input_shape, opened.notes) == ("exported program", (3, 8, 8), ())
    assert isinstance(opened.model.get_submodule("0"), nn.Conv2d)
    batch = torch.randn(5, 3, 8, 8)
    assert torch.equal(opened.model(batch), network(batch))


def test_a_program_of_one_batch_size_says_so(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    torch.export.save(torch.export.export(net.train(), (torch.randn(2, 3, 8, 8),)), tmp_path / "fixed.pt2")
    notes = open_model(str(tmp_path / "fixed.pt2"), arch=ARCH).notes
    assert [note.split(":")[0] for note in notes] == [
        "the program was exported for batches of 2 only; export it with a dynamic batch to lift that",
        "the program was exported in train mode",
        f"--arch {ARCH} was not used",
    ]


# Names and factories


def test_a_torchvision_name_gives_random_weights_and_says_so():
    opened = open_model(f"torchvision:{ARCH}")
    assert (opened.kind, opened.origin, opened.input_shape, opened.sha256) == (
        "torchvision",
        "torchvision",
        (3, 224, 224),
        None,
    )
    assert "the weights are random" in opened.notes[0]
    assert find_builder("inception_v3").input_shape == (3, 299, 299)
    assert find_builder("fcn_resnet50").input_shape is None


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("torchvision:rsnet18", "did you mean 'resnet18'"),
        ("torchvision:quantized_resnet18", "give torchvision:resnet18"),
        ("torchvision:resnet18@BEST", "IMAGENET1K_V1, DEFAULT|IMAGENET1K_V1"),
        ("no_such_package.models:net", "No module named 'no_such_package'"),
        ("absent/nets.py:net", "cannot find the file 'absent/nets.py'"),
    ],
)
def test_a_name_that_nothing_has_is_refused(spec, match):
    refused(spec, match)


def test_published_weights_belong_to_torchvision_names(tmp_path):
    refused(tmp_path / "a.pt", "only torchvision:NAME", weights="DEFAULT")


FACTORIES = """
from dataclasses import dataclass
from blocks import width
from torch import nn

@dataclass
class Config:
    channels: "int" = width

def net(num_classes=3):
    from blocks import late
    return nn.Sequential(nn.Conv2d(3, Config().channels, 3), nn.Flatten(), nn.LazyLinear(num_classes) if late else
                         nn.Linear(Config().channels, num_classes))

ready = nn.Conv2d(3, 2, 1)
Net = type("Net", (nn.Identity,), {})

def needs(depth): ...
def wrong(): return 3
def fails(): raise ValueError("no such depth")
number = 4
"""


@pytest.fixture
def nets(tmp_path):
    for folder, width in (("a", 4), ("b", 6)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "nets.py").write_text(FACTORIES)
        (tmp_path / folder / "blocks.py").write_text(f"width = {width}\nlate = False\n")
    return tmp_path


def test_a_factory_in_a_file_finds_its_own_neighbours_and_leaves_no_trace(nets):
    path, modules = list(sys.path), set(sys.modules)
    widths = [open_model(f"{nets / folder}/nets.py:net").model[0].out_channels for folder in "ab"]
    assert widths == [4, 6]
    assert sys.path == path
    assert set(sys.modules) - modules <= {"_binarize_source_nets"}


def test_a_factory_may_be_a_class_or_a_module(nets):
    assert isinstance(open_model(f"{nets}/a/nets.py:Net").model, nn.Identity)
    assert open_model(f"{nets}/a/nets.py:ready").model.out_channels == 2
    assert open_model("torchvision.models:mnasnet0_5").origin == "factory"


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("nett", "did you mean 'net'"),
        ("needs", "missing a required argument: 'depth'"),
        ("wrong", "returned a int"),
        ("number", "it is a int"),
        ("fails", "raised ValueError: no such depth"),
    ],
)
def test_a_factory_that_does_not_build_is_refused(nets, name, match):
    refused(f"{nets}/a/nets.py:{name}", match)


def test_a_file_that_does_not_run_is_refused(tmp_path):
    (tmp_path / "broken.py").write_text("def net(:\n")
    refused(f"{tmp_path}/broken.py:net", "SyntaxError")


def test_weights_are_loaded_into_what_a_factory_built(nets):
    state = open_model(f"{nets}/a/nets.py:net").model.state_dict()
    state = {**state, "2.weight": torch.ones(9, 4), "2.bias": torch.zeros(9)}
    torch.save(state, nets / "w.pt")
    opened = open_model(str(nets / "w.pt"), arch=f"{nets}/a/nets.py:net")
    assert torch.equal(opened.model[2].weight, torch.ones(9, 4))
    assert opened.input_shape is None


# State_dicts that do not fit


def test_weights_alone_ask_for_an_architecture(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "w.pt")
    refused(tmp_path / "w.pt", "--arch")
    assert "did you mean 'mnasnet0_5'" in refused(tmp_path / "w.pt", "architecture 'mnasnet05'", arch="mnasnet05")


def test_keys_that_do_not_fit_are_named_and_counted(model, tmp_path):
    state = {**model.state_dict(), "extra.weight": torch.ones(1)}
    state["layers.0.weight"] = torch.ones(16, 3, 5, 5)
    for index in (1, 4, 7):
        for key in [key for key in state if key.startswith(f"layers.{index}.")]:
            del state[key]
    torch.save(state, tmp_path / "w.pt")
    text = refused(tmp_path / "w.pt", "1 keys unexpected: extra.weight", arch=ARCH)
    assert "keys missing: layers.1.weight, layers.1.bias, layers.1.running_mean and 9 more" in text
    assert "layers.0.weight (16x3x5x5, the model has 16x3x3x3)" in text


@pytest.mark.parametrize(
    ("held", "match"),
    [
        (torch.ones(2, 3), "a single tensor of shape 2x3"),
        ({}, "keys: none"),
        ({"epoch": 3, "loss": 0.5}, "keys: epoch, loss"),
        ([1, 2], "holds a list"),
    ],
)
def test_a_file_without_weights_is_refused(held, match, tmp_path):
    torch.save(held, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", match, arch=ARCH)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(value, model, tmp_path):
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state["layers.8.0.layers.0.weight"][0, 0, 0, 0] = value
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"layer 'layers\.8\.0\.layers\.0' .* its weight: 1 of "):
        open_model(str(tmp_path / "w.pt"), arch=ARCH)


def test_large_finite_weights_are_finite():
    layer = nn.Linear(4, 4)
    nn.init.constant_(layer.weight, torch.finfo(torch.float32).max)
    require_finite(layer)
