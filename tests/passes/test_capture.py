import copy

import pytest
import torch
import torch.nn.functional as F
from models import (
    Auxiliary,
    Caller,
    ControlFlow,
    Grouped,
    NamedConv2d,
    Overwriting,
    Residual,
    SameConv2d,
    Shared,
    Switches,
    TwoUsers,
    conv_norm_relu,
    subclasses,
    weight_norm,
)
from torch import fx, nn

from binarize.errors import CaptureError
from binarize.passes.capture import capture
from binarize.passes.graph import calls, module_uses
from binarize.passes.operations import is_inplace


def torchvision_model(name, **options):
    """Build a model without weights in memory."""
    import torchvision

    with torch.device("meta"):
        return torchvision.models.get_model(name, weights=None, **options)


@pytest.mark.parametrize(
    "build", [conv_norm_relu, Residual, Shared, TwoUsers, Grouped, Overwriting, subclasses, weight_norm]
)
@pytest.mark.parametrize("shape", [(1, 3, 12, 12), (3, 3, 17, 9)])
def test_a_traceable_model_is_one_graph_that_computes_the_same(build, shape):
    model, x = build().eval(), torch.randn(shape)
    captured = capture(copy.deepcopy(model))
    assert list(captured.graphs) == [""]
    assert captured.root is captured.graphs[""]
    assert captured.reasons == captured.loose == {}
    assert torch.equal(captured.root(x), model(x))
    assert captured.root.state_dict().keys() == model.state_dict().keys()


def test_parts_are_traced_where_the_whole_cannot_be():
    model, x = ControlFlow().eval(), torch.randn(2, 3, 12, 12)
    captured = capture(copy.deepcopy(model))
    assert list(captured.graphs) == ["body"]
    assert list(captured.loose) == ["loose", "fc"]
    assert captured.root.get_submodule("body") is captured.graphs["body"]
    assert captured.graphs["body"].out_channels == 16
    assert captured.graphs["body"].meta["path"] == "body"
    assert torch.equal(captured.root(x), model(x))
    assert captured.root.state_dict().keys() == model.state_dict().keys()


def test_the_reason_names_the_line_of_the_models_code():
    reason = capture(ControlFlow()).reasons[""]
    assert reason.startswith("models.py:")
    assert "TraceError: symbolically traced variables cannot be used as inputs to control flow" in reason
    assert "/" not in reason


def test_a_child_whose_methods_are_called_stays_what_it_is():
    model, x = Caller().eval(), torch.randn(2, 3, 12, 12)
    captured = capture(copy.deepcopy(model))
    assert list(captured.graphs) == ["child"]
    assert list(captured.loose) == ["helper.conv"]
    assert captured.reasons["helper"] == "Caller uses self.helper.prepare; only what is called alone is traced"
    assert torch.equal(captured.root(x), model(x))


def test_tracing_is_done_in_evaluation_and_the_modes_come_back():
    model = Auxiliary().train()
    model.stem.eval()
    captured = capture(model)
    assert list(captured.layers) == ["stem", "aux", "head"]
    assert [call.name for call in calls(captured.root, nn.Conv2d)] == ["stem", "head"]
    assert captured.root.training
    assert captured.root.head.training
    assert not captured.root.stem.training


def test_training_flags_of_traced_away_modules_are_kept_too():
    model = Residual().train()
    model.block1.eval()
    root = capture(model).root
    assert [root.block1.training, root.block1.bn1.training, root.block2.training] == [False, False, True]


def test_layers_are_leaves_wherever_their_class_is_from():
    captured = capture(subclasses())
    assert [type(call.module) for call in calls(captured.root, nn.Conv2d)] == [
        *(nn.Conv2d, SameConv2d, NamedConv2d, nn.Conv2d),
    ]


def test_named_modules_are_kept_whole():
    captured = capture(Residual(), leaves=("block*",))
    assert list(module_uses(captured.root))[-3:] == ["block1", "block2", "fc"]
    with pytest.raises(CaptureError, match=r"cannot keep 'blok1' whole.*did you mean 'block1'"):
        capture(Residual(), leaves=("blok1",))


def test_a_part_kept_whole_inside_untraceable_code_is_loose():
    captured = capture(ControlFlow(), leaves=("body",))
    assert list(captured.graphs) == []
    assert list(captured.loose) == ["body", "loose", "fc"]


def test_a_single_layer_is_refused():
    with pytest.raises(CaptureError, match="itself one Linear; wrap it"):
        capture(nn.Linear(2, 2))


def test_a_model_without_layers_is_left_alone():
    captured = capture(nn.Sequential(nn.ReLU()))
    assert (captured.graphs, captured.loose, captured.layers) == ({}, {}, {})


def test_switches_of_a_whole_model_are_fixed_and_gone():
    model, x = Switches().eval(), torch.randn(1, 3, 6, 6)
    root = capture(copy.deepcopy(model)).root
    assert torch.equal(root(x), model(x))
    with pytest.raises(TypeError, match="mask"):
        root(x, mask=x)


def test_switches_of_a_part_refuse_what_they_were_not_captured_for():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Switches()

        def forward(self, x, features=False):
            return self.inner(x, features=features) if x.sum() > -1e9 else x

    root, x = capture(Outer()).root, torch.randn(1, 3, 6, 6)
    assert root(x).shape[1] == 4
    with pytest.raises(CaptureError, match="features=True: the model was captured with features=False"):
        root(x, features=True)


def test_an_argument_that_forward_cannot_do_without_is_not_fixed():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x, y=None):
            return torch.cat([self.conv(x), y])

    x = torch.randn(1, 3, 4, 4)
    assert capture(Both()).root(x, x).shape[0] == 2


def test_adding_in_place_is_seen_and_done_apart():
    class Aliased(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            y = z = self.conv(x)
            y += x
            return F.relu(z) + y

    model, x = Aliased().eval(), torch.randn(1, 3, 4, 4)
    root = capture(copy.deepcopy(model)).root
    assert torch.equal(root(x), model(x))
    assert not any(is_inplace(root, node) for node in root.graph.nodes)


def test_a_graph_is_taken_as_it_is():
    gm = fx.symbolic_trace(Residual())
    assert capture(gm).graphs == {"": gm}


def test_a_graph_that_trades_its_graph_in_train_is_traced_again():
    from torchvision.models.feature_extraction import create_feature_extractor

    extractor = create_feature_extractor(Residual(), ["block1.add", "fc"])
    captured = capture(copy.deepcopy(extractor))
    assert captured.root is not extractor
    before = [call.name for call in calls(captured.root, nn.Conv2d)]
    captured.root.train().eval()
    assert [call.name for call in calls(captured.root, nn.Conv2d)] == before
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(captured.root(x)["fc"], extractor.eval()(x)["fc"])


def test_what_a_forward_remembers_while_it_is_traced_is_forgotten():
    class Remembering(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.seen = nn.Conv2d(3, 3, 1), None

        def forward(self, x):
            self.seen = x.sum() if self.seen is None else self.seen
            return self.conv(x) if self.seen > 0 else x

    captured = capture(Remembering())
    assert list(captured.reasons) == [""]
    assert captured.root.seen is None


def test_a_module_in_two_places_is_one_graph_in_two_places():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = conv_norm_relu(3)
            self.b = nn.ModuleList([self.a])

        def forward(self, x):
            return self.a(x) if x.sum() > 0 else self.b[0](x)

    captured = capture(Twice())
    assert list(captured.graphs) == ["a"]
    assert captured.root.b[0] is captured.root.a


WHOLE = {
    "alexnet": {},
    "vgg11_bn": {},
    "resnet50": {},
    "resnext50_32x4d": {},
    "densenet121": {},
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
    "squeezenet1_1": {},
    "shufflenet_v2_x0_5": {},
    "mobilenet_v2": {},
    "mobilenet_v3_small": {},
    "mnasnet0_5": {},
    "efficientnet_b0": {},
    "convnext_tiny": {},
    "vit_b_16": {},
    "swin_t": {},
    "deeplabv3_mobilenet_v3_large": {"weights_backbone": None, "aux_loss": True},
    "lraspp_mobilenet_v3_large": {"weights_backbone": None},
    "r3d_18": {},
}


@pytest.mark.parametrize(("name", "options"), WHOLE.items(), ids=list(WHOLE))
def test_each_traceable_family_is_one_graph(name, options):
    captured = capture(torchvision_model(name, **options))
    assert list(captured.graphs) == [""]


PARTS = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": ["backbone", "rpn.head.conv", "roi_heads.box_head"],
    "retinanet_resnet50_fpn": ["backbone", "head.classification_head.conv", "head.regression_head.conv"],
    "fcos_resnet50_fpn": ["backbone", "head.classification_head.conv", "head.regression_head.conv"],
    "maskrcnn_resnet50_fpn": [
        *("backbone", "rpn.head.conv", "roi_heads.box_head", "roi_heads.mask_head", "roi_heads.mask_predictor"),
    ],
    "ssd300_vgg16": ["backbone"],
    "raft_small": ["feature_encoder", "context_encoder", "update_block"],
}


@pytest.mark.parametrize(("name", "parts"), PARTS.items(), ids=list(PARTS))
def test_detection_and_flow_are_reached_completely_by_their_parts(name, parts):
    options = {} if name.startswith("raft") else {"weights_backbone": None}
    captured = capture(torchvision_model(name, **options))
    assert list(captured.graphs) == parts
    called = {call.module for gm in captured.graphs.values() for call in calls(gm, (nn.Conv2d, nn.Linear))}
    wanted = {module for module in captured.layers.values() if isinstance(module, (nn.Conv2d, nn.Linear))}
    assert wanted == (called | set(captured.loose.values())) & wanted


def test_a_captured_detector_detects_the_same():
    import torchvision

    model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=5,
        min_size=64,
        max_size=96,
        box_score_thresh=0.0,
        rpn_post_nms_top_n_test=20,
    ).eval()
    captured, images = capture(copy.deepcopy(model)), [torch.rand(3, 64, 80), torch.rand(3, 70, 64)]
    assert captured.root.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        for ours, theirs in zip(captured.root(images), model(images), strict=True):
            assert len(theirs["boxes"]) > 0
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_what_callers_read_of_a_part_survives_a_copy():
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.width = nn.Conv2d(3, 4, 1), 4

        def forward(self, x):
            return self.conv(x)

    class Reading(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = Part()

        def forward(self, x):
            return self.part(x)[:, : self.part.width - 1] if float(x.sum()) < 1e9 else x

    captured = capture(Reading())

    assert isinstance(captured.root.part, fx.GraphModule)
    assert copy.deepcopy(captured.root)(torch.randn(1, 3, 2, 2)).shape == (1, 3, 2, 2)
