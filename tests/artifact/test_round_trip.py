"""A loaded network is the saved one, bit for bit, and takes no more memory than its file."""

import dataclasses
import re
import subprocess
import sys

import models as zoo
import pytest
import torch
from artifacts import EVERYTHING, IMAGES, assert_same, captured, converted, plain
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import binarize
from binarize.artifact import files, load, save
from binarize.errors import ArtifactError
from binarize.layers.binary import BinaryConv2d
from binarize.layers.packed import PackedLayer
from binarize.record import record_of

NETWORKS = {
    "residual": (zoo.Residual, "encoding:w=3,a=2"),
    "one plane, thresholds between layers": (zoo.Residual, "xnor-net"),
    "several terms, groups, stride, dilation": (zoo.Grouped, "residual:m=3,a=2"),
    "an offset of weights, several activation terms": (zoo.Grouped, "pa-net:m=2,n=3"),
    "shifted planes": (zoo.Residual, "abc-net:m=2,n=2,ste=tanh"),
    "a shift for each channel": (zoo.Attention, "xnor-net:shift=channel"),
    "a layer called twice": (zoo.Shared, "encoding:w=2,a=3"),
    "attention, linear layers, 3-D convolution": (zoo.Attention, "encoding:w=4,a=4"),
}


def test_loading_and_running_a_network_imports_neither_compiler_nor_exporter(packed):
    """Each of them costs more time and memory than the network."""
    heavy = ("torch._dynamo", "torch._inductor", "torchvision", "onnx", "onnxscript", "sympy")
    run = f"net = binarize.load({str(packed[1])!r}); net(torch.zeros({tuple(IMAGES.shape)}))"
    code = f"import sys, torch, binarize; {run}; print([name for name in {heavy} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("form", ["training", "packed"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_loaded_network_is_the_saved_one_bit_for_bit(name, form, tmp_path):
    build, scheme = NETWORKS[name]
    net = converted(build(), scheme)
    net = binarize.pack(net) if form == "packed" else net
    size = save(net, tmp_path / "net.safetensors")
    back = load(tmp_path / "net.safetensors")
    assert size == (tmp_path / "net.safetensors").stat().st_size
    assert_same(net, back, IMAGES)
    assert plain(record_of(back)) == plain(record_of(net))
    assert not any(module.training for module in back.modules())
    assert [p.requires_grad for p in back.parameters()] == [p.requires_grad for p in net.parameters()]
    kind = files.read(tmp_path / "net.safetensors")[0]["kind"]
    assert kind == form


def test_saving_twice_gives_the_same_bytes(packed, tmp_path):
    _, path = packed
    save(load(path), tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_a_loaded_training_form_still_trains_and_packs_like_the_saved_one(tmp_path):
    net = converted(zoo.Residual())
    save(net, tmp_path / "net.safetensors")
    nets = net, load(tmp_path / "net.safetensors")
    for one in nets:
        optimizer = torch.optim.SGD(one.parameters(), lr=0.05)
        F.cross_entropy(one.train()(IMAGES), torch.tensor([1, 3])).backward()
        assert all(p.grad is not None for p in one.parameters())
        optimizer.step()
        one.eval()
    assert_same(*nets, IMAGES)
    assert_same(*map(binarize.pack, nets), IMAGES)


def test_shared_modules_and_tensors_are_stored_once_and_stay_shared(tmp_path):
    net = converted(zoo.Residual(), recipe=dataclasses.replace(EVERYTHING, keep_first=True))
    assert net.block2.conv1.activation is net.block2.shortcut.activation
    net.block1.conv2.weight = net.block1.conv1.weight
    save(net, tmp_path / "net.safetensors")
    back = load(tmp_path / "net.safetensors")
    assert back.block2.conv1.activation is back.block2.shortcut.activation
    assert back.block1.conv2.weight is back.block1.conv1.weight
    with safe_open(tmp_path / "net.safetensors", "pt") as file:
        assert not {"block1.conv2.weight", "block2.shortcut.activation.low"} & set(file.keys())
    assert_same(net, back, IMAGES)


def test_frozen_parameters_and_metrics_are_kept(tmp_path):
    net = converted(zoo.Residual())
    net.block1.conv1.unit.requires_grad_(False)
    save(net, tmp_path / "net.safetensors", metrics={"top1": 0.5})
    back = load(tmp_path / "net.safetensors")
    assert [name for name, p in back.named_parameters() if not p.requires_grad] == ["block1.conv1.unit"]
    assert record_of(back).metrics == {"top1": 0.5}
    assert record_of(net).metrics == {}


def test_bits_are_saved_as_bytes_and_no_prepared_layout_is(packed):
    net, path = packed
    with torch.no_grad():
        net(IMAGES)  # makes the prepared layouts
    before = path.stat().st_size
    assert save(net, path) == before
    with safe_open(path, "pt") as file:
        bits = [key for key in file.keys() if key.endswith("bits")]  # noqa: SIM118  not a dict
        assert len(bits) == sum(isinstance(module, PackedLayer) for module in net.modules())
        assert {file.get_tensor(key).dtype for key in bits} == {torch.uint8}
        assert set(file.metadata()) == {"binarize"}


class _Allocations(TorchDispatchMode):
    """Sizes in bytes of the tensors made in real memory."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and not made.is_meta:
            self.sizes.append(made.numel() * made.element_size())
        return made


def test_loading_never_makes_the_float_weights(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 4, 1))
    net = binarize.pack(converted(model, "encoding:w=1,a=1", binarize.Recipe()))
    path = tmp_path / "net.safetensors"
    size = save(net, path)
    with _Allocations() as made:
        back = load(path)
    assert max(made.sizes) <= size < model[2].weight.nbytes / 4
    kept = [*back.parameters(), *back.buffers()]
    assert sum(tensor.untyped_storage().nbytes() for tensor in kept) < size


def test_memory_order_of_float_layers_is_kept(tmp_path):
    net = captured(nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 1)).to(memory_format=torch.channels_last))
    net.get_submodule("1").weight.data = net.get_submodule("1").weight.data.transpose(0, 1)
    save(net, tmp_path / "net.safetensors")
    assert_same(net, load(tmp_path / "net.safetensors"), torch.randn(1, 4, 9, 9))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_network_can_be_loaded_onto_a_device(packed):
    back = load(packed[1], device="cuda")
    assert {tensor.device.type for tensor in back.state_dict().values()} == {"cuda"}


def test_a_cuda_device_that_is_not_there_is_blamed_not_the_file(packed, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ArtifactError, match="no such CUDA device; give"):
        load(packed[1], device="cuda")


def test_a_device_of_an_unknown_kind_is_named(packed):
    with pytest.raises(ArtifactError, match="onto 'gpu7': there is no such kind of device"):
        load(packed[1], device="gpu7")


def test_the_training_form_keeps_its_latent_weights(tmp_path):
    net = converted(zoo.Residual())
    save(net, tmp_path / "net.safetensors")
    back = load(tmp_path / "net.safetensors")
    pairs = zip(net.modules(), back.modules(), strict=True)
    layers = [(a, b) for a, b in pairs if isinstance(a, BinaryConv2d)]
    assert layers
    assert all(torch.equal(a.weight, b.weight) and a.scheme == b.scheme for a, b in layers)
    assert all(b.activation.fitted and a.activation.basis == b.activation.basis for a, b in layers)


def test_a_network_of_untraceable_code_comes_back_in_a_model_of_its_class(tmp_path):
    model = zoo.ControlFlow()
    for form, net in (("training", converted(model)), ("packed", binarize.pack(converted(model)))):
        path = tmp_path / f"{form}.safetensors"
        save(net, path)
        other = zoo.ControlFlow()
        before = {key: value.clone() for key, value in other.state_dict().items()}
        back = load(path, model=other)
        assert_same(net, back, IMAGES)
        assert back.body.out_channels == 16
        assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())
        with torch.device("meta"):
            skeleton = zoo.ControlFlow()
        assert_same(net, load(path, model=skeleton), IMAGES)


def test_without_that_model_the_error_says_what_is_needed(tmp_path):
    save(converted(zoo.ControlFlow()), tmp_path / "net.safetensors")
    with pytest.raises(ArtifactError, match=r"models\.ControlFlow.*could not be captured.*model=") as caught:
        load(tmp_path / "net.safetensors")
    assert "\n" not in str(caught.value)
    with pytest.raises(ArtifactError, match=r"is models\.ControlFlow, the model given has models\.Residual"):
        load(tmp_path / "net.safetensors", model=zoo.Residual())


def test_a_torchvision_detector_is_rebuilt_by_its_name(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    arch = "ssdlite320_mobilenet_v3_large"
    model = torchvision.models.get_model(arch, weights=None, weights_backbone=None, num_classes=7)
    net = captured(model, arch=f"torchvision:{arch}")
    net.score_thresh = 0.0
    save(net, tmp_path / "net.safetensors")
    state = torch.random.get_rng_state()
    back = load(tmp_path / "net.safetensors")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert back.score_thresh == 0.0
    assert_same(net, back, [torch.rand(3, 64, 64)])


@pytest.mark.parametrize("name", ["swin_t", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1"])
def test_families_of_torchvision_can_be_saved_as_they_are(name, tmp_path):
    torchvision = pytest.importorskip("torchvision")
    net = captured(torchvision.models.get_model(name, weights=None))
    save(net, tmp_path / "net.safetensors")
    back = load(tmp_path / "net.safetensors")
    assert all(torch.equal(value, back.state_dict()[key]) for key, value in net.state_dict().items())
    assert re.sub(r"\s*: *[\w.]+(?=[,)=]| =)| -> [\w.\[\]]+", "", net.code) == back.code
