import copy

import pytest
import torch
from models import Attention, Auxiliary, ControlFlow, Grouped, Residual, Shared, subclasses, weight_norm
from torch import nn

from binarize.passes.capture import capture
from binarize.passes.graph import put
from binarize.passes.select import Rules, Site, sites, why_not


def reasons(model, **rules):
    """Return why each layer of a model stays, by its name."""
    return {site.name: why_not(site, Rules(**rules)) for site in sites(capture(copy.deepcopy(model)))}


def ends(model):
    found = sites(capture(model))
    return [site.name for site in found if site.first], [site.name for site in found if site.last]


def torchvision_model(name, **options):
    import torchvision

    with torch.device("meta"):
        return torchvision.models.get_model(name, weights=None, **options)


def test_each_layer_of_a_residual_network_has_its_place():
    found = sites(capture(Residual()))
    assert [site.name for site in found] == [
        *("stem.0", "block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2", "block2.shortcut", "fc"),
    ]
    assert {site.graph for site in found} == {""}
    assert [site.calls for site in found] == [1] * 7
    assert reasons(Residual()) == {
        "stem.0": "first layer: reads the image",
        **dict.fromkeys(["block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2"], None),
        "block2.shortcut": "tiny: 128 weights, fewer than 512",
        "fc": "last layer: gives the predictions",
    }


def test_the_defaults_are_reasons_one_by_one():
    assert reasons(Grouped()) == {
        "stem": "first layer: reads the image",
        "grouped": None,
        "depthwise": "depthwise: 1 input channel per output, only 9 products to aggregate",
        "strided": None,
        "tiny": "tiny: 128 weights, fewer than 512",
        "fc": "last layer: gives the predictions",
    }


def test_each_default_can_be_switched_off():
    free = reasons(Grouped(), first=False, last=False, depthwise=False, smallest=0)
    assert set(free.values()) == {None}


def test_patterns_convert_in_spite_of_the_defaults_and_keep_in_spite_of_everything():
    found = reasons(Grouped(), convert=("stem", "d*", "strided"), keep=("str*",))
    assert found["stem"] is None
    assert found["depthwise"] is None
    assert found["strided"] == "kept by recipe pattern 'str*'"


def test_a_shared_layer_is_one_site_of_two_calls():
    calls = {site.name: site.calls for site in sites(capture(Shared()))}
    assert calls == {"stem": 1, "conv": 2, "head": 1}


def test_a_subclass_is_converted_only_if_it_computes_the_same():
    found = reasons(subclasses())
    assert found["1"] == "forward is overridden by class SameConv2d"
    assert found["2"] is None
    assert reasons(subclasses(), convert=("1",))["1"] == "forward is overridden by class SameConv2d"


def test_a_parametrised_or_hooked_weight_stays():
    assert reasons(weight_norm())["1"] == "weight is a parametrization"
    model = Residual()
    model.block1.conv1.register_forward_hook(lambda *_: None)
    found = {site.name: why_not(site, Rules()) for site in sites(capture(model))}
    assert found["block1.conv1"] == "it has forward hooks, which a replacement would lose"


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (nn.Conv1d(8, 8, 9), None),
        (nn.ConvTranspose2d(8, 8, 9), None),
        (nn.Conv3d(8, 8, 3), None),
        (
            nn.ConvTranspose1d(64, 64, 9, groups=64),
            "depthwise: 1 input channel per output, only 9 products to aggregate",
        ),
        (nn.LSTM(8, 8), "LSTM: no binary form"),
        (nn.LazyConv2d(8, 3), "weight is not initialised: run the model once before converting it"),
        (nn.Conv2d(8, 8, 3, dtype=torch.complex64), "weight is complex64, not real floating point"),
        (nn.Conv2d(8, 8, 3), None),
        (nn.Linear(8, 64), None),
        (nn.Linear(8, 63), "tiny: 504 weights, fewer than 512"),
        (nn.Conv2d(1, 64, 3), None),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_kinds_of_layers(module, why):
    assert why_not(Site("layer", module, "", 1), Rules()) == why


def test_nothing_is_silently_untouched():
    assert reasons(Attention()) == {
        "stem": "first layer: reads the image",
        "attention": "MultiheadAttention: no binary form",
        "attention.out_proj": "its weight is read directly by nn.MultiheadAttention 'attention'",
        "tied": "its weight is read directly by linear (get_attr)",
        "volume": "tiny: 27 weights, fewer than 512",
        "head": "last layer: gives the predictions",
    }


def test_an_auxiliary_head_is_said_to_be_silent():
    found = {site.name: site for site in sites(capture(Auxiliary().train()))}
    assert (found["aux"].graph, found["aux"].calls) == (None, 0)
    assert why_not(found["aux"], Rules(convert=("*",))) == "never called in eval mode (aux head)"


def test_a_weight_that_is_also_read_by_another_stays():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x):
            return self.c(self.b(self.a(x)) @ self.b.weight)

    assert reasons(Tied())["b"] == "its weight is read directly by matmul (get_attr)"


def test_by_parts_the_first_reads_the_image_and_the_last_is_found_by_order():
    model = ControlFlow()
    assert ends(copy.deepcopy(model)) == (["body.0.0"], ["fc"])
    found = {site.name: site for site in sites(capture(model))}
    assert [found[name].graph for name in ("body.0.0", "body.1", "loose", "fc")] == ["body", "body", None, None]
    assert [found[name].calls for name in ("body.0.0", "loose")] == [1, 1]
    assert why_not(found["loose"], Rules()) is None


def test_a_layer_in_two_parts_stays():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
            self.b = nn.Sequential(self.a[0], nn.SiLU())

        def forward(self, x):
            return self.b(self.a(x)) if x.sum() > 0 else x

    assert reasons(Two())["a.0"] == "shared between parts that were traced apart: 'a', 'b'"


def test_a_site_without_blocks_can_be_put_in_its_place():
    for model in (Residual(), ControlFlow(), Grouped()):
        captured = capture(model)
        for site in sites(captured):
            assert captured.root.get_submodule(site.name) is site.module
            put(captured.root, site.name, copy.deepcopy(site.module))
        assert captured.root(torch.rand(2, 3, 12, 12)).shape[0] == 2


ENDS = {
    "resnet18": ({}, ["conv1"], ["fc"]),
    "squeezenet1_1": ({}, ["features.0"], ["classifier.1"]),
    "mobilenet_v2": ({}, ["features.0.0"], ["classifier.1"]),
    "deeplabv3_mobilenet_v3_large": (
        {"weights_backbone": None, "aux_loss": True},
        ["backbone.0.0"],
        ["classifier.4", "aux_classifier.4"],
    ),
    "lraspp_mobilenet_v3_large": (
        {"weights_backbone": None},
        ["backbone.0.0"],
        ["classifier.low_classifier", "classifier.high_classifier"],
    ),
    "maskrcnn_resnet50_fpn": (
        {"weights_backbone": None},
        ["backbone.body.conv1"],
        [
            *("rpn.head.cls_logits", "rpn.head.bbox_pred", "roi_heads.box_predictor.cls_score"),
            *("roi_heads.box_predictor.bbox_pred", "roi_heads.mask_predictor.mask_fcn_logits"),
        ],
    ),
    "ssdlite320_mobilenet_v3_large": (
        {"weights_backbone": None},
        ["backbone.features.0.0.0"],
        [f"head.{kind}_head.module_list.{i}.1" for kind in ("classification", "regression") for i in range(6)],
    ),
    "raft_large": (
        {},
        [
            *("feature_encoder.convnormrelu.0", "context_encoder.convnormrelu.0"),
            "update_block.motion_encoder.convflow1.0",
        ],
        ["update_block.flow_head.conv2", "mask_predictor.conv"],
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_first_and_last_layers_of_torchvision(name):
    options, first, last = ENDS[name]
    assert ends(torchvision_model(name, **options)) == (first, last)


def test_swin_reads_weights_past_their_layers_and_says_so():
    found = reasons(torchvision_model("swin_t"))
    direct = [name for name, why in found.items() if why and "shifted_window_attention (get_attr)" in why]
    assert len(direct) == 24
    assert all(name.endswith(("qkv", "proj")) for name in direct)


def test_googlenet_lists_its_silent_heads():
    found = reasons(torchvision_model("googlenet", init_weights=False))
    assert sum(why == "never called in eval mode (aux head)" for why in found.values()) == 6
    assert sum(why is None for why in found.values()) == 56
