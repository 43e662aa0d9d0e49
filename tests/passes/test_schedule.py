"""Packed networks by schedules: the same bits as node by node, and torch sees every operation whenever it has to."""

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from schedules import by_nodes, programs
from torch import nn

import binarize
from binarize.errors import ModelError
from binarize.kernels.dispatch import LEVELS
from binarize.kernels.schedule import why_not_compiled
from binarize.passes.schedule import ScheduledGraph, coverage, runner_of

pytestmark = pytest.mark.skipif(why_not_compiled() is not None, reason="no kernels are compiled")

SCHEMES = ("xnor-net", "encoding:w=4,a=4", "encoding:w=8,a=8", "pa-net:m=2,n=3", "residual:m=2,a=3", "group-net:k=3")
IMAGES = torch.randn(2, 16, 9, 9, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Residual, shared input, channel groups, padding that is not zeros, pooling, linear layers."""

    def __init__(self):
        super().__init__()
        self.a, self.na = nn.Conv2d(16, 20, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(20)
        self.short = nn.Conv2d(16, 20, 1, stride=2)
        self.b = nn.Conv2d(20, 20, 3, padding=2, dilation=2, groups=2)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.c = nn.Conv2d(20, 12, (3, 1), padding=(1, 0), padding_mode="reflect")
        self.d = nn.Conv2d(12, 7, 1)
        self.mean, self.flat, self.drop = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5)
        self.hidden, self.head = nn.Linear(7, 9), nn.Linear(9, 5)

    def forward(self, x):
        y = torch.relu(self.na(self.a(x)))
        y = self.pool(torch.relu(self.b(y) + self.short(x)))
        y = self.flat(self.mean(self.d(self.c(y))))
        return self.head(self.drop(torch.relu(self.hidden(y))))


def packed(scheme="xnor-net", keep=()):
    torch.manual_seed(0)
    recipe = binarize.Recipe(
        scheme=scheme, convert=("*",), keep=keep, keep_first=False, keep_last=False, smallest=0
    )  # fmt: skip
    return binarize.pack(binarize.convert(Net().eval(), IMAGES, recipe=recipe))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("route", ["popcount", "int8"])
def test_a_scheduled_network_gives_the_bits_of_its_layers(scheme, route, monkeypatch):
    monkeypatch.setenv("BINARIZE_ROUTE", route)
    net = packed(scheme)
    with torch.no_grad():
        for x in (IMAGES, IMAGES[:1], IMAGES.contiguous(memory_format=torch.channels_last), IMAGES[..., 1:]):
            assert torch.equal(net(x), by_nodes(net, x, monkeypatch=monkeypatch))
    torchs = {"it pads by reflect", "c of a branch: it pads by reflect", "getitem has no kernel"}
    assert set(coverage(net).left.values()) <= torchs
    assert None not in programs(net)


@pytest.mark.parametrize("route", ["popcount", "int8"])
@pytest.mark.parametrize("scheme", ["xnor-net", "encoding:w=2,a=2"])
def test_borders_of_one_axis_only_are_those_of_the_layers(scheme, route, monkeypatch):
    monkeypatch.setenv("BINARIZE_ROUTE", route)
    torch.manual_seed(0)
    wide, high = nn.Conv2d(16, 12, (1, 5), padding=(0, 2)), nn.Conv2d(12, 8, (5, 1), padding=(2, 0))
    recipe = binarize.Recipe(scheme, convert=("*",), keep_first=False, keep_last=False, smallest=0)
    net = binarize.pack(binarize.convert(nn.Sequential(wide, nn.Sigmoid(), high).eval(), IMAGES, recipe=recipe))
    assert net.get_submodule("0").activation.low != 0  # with 0 no border differs

    with torch.no_grad():
        assert torch.equal(net(IMAGES), by_nodes(net, IMAGES, monkeypatch=monkeypatch))


@pytest.mark.parametrize("level", LEVELS[:-1], ids=lambda level: level.name)
def test_every_level_gives_the_same_bits(level, monkeypatch):
    if why := level.why_not():
        pytest.skip(why)
    wanted = by_nodes(packed("encoding:w=2,a=2"), IMAGES, monkeypatch=monkeypatch)
    monkeypatch.setenv("BINARIZE_ROUTE", "popcount" if "planes" in level.forms else "int8")
    net = packed("encoding:w=2,a=2")
    monkeypatch.setenv("BINARIZE_KERNEL", level.name)

    with torch.no_grad():
        assert torch.equal(net(IMAGES), wanted)


def test_float_layers_agree_within_their_roundings(monkeypatch):
    net = packed(keep=("hidden", "head"))
    with torch.no_grad():
        seen, wanted = net(IMAGES), by_nodes(net, IMAGES, monkeypatch=monkeypatch)

    assert coverage(net).left == {"c": "it pads by reflect"}
    # 17 products, each rounded to half an ulp of a sum below 16: 17 * 16 * 2^-24.
    torch.testing.assert_close(seen, wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("scheme", ["xnor-net", "encoding:w=2,a=3"])
def test_what_stands_between_a_pooling_and_a_packing_is_run(scheme, monkeypatch):
    """A pooling is packed in one pass only where it is packed itself, as behind the second convolution."""
    torch.manual_seed(1)
    layers = [
        nn.AvgPool2d(2), nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 24, 3), nn.ReLU(),
        nn.MaxPool2d(2), nn.PReLU(24), nn.Conv2d(24, 32, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(32, 32, 3),
        nn.Flatten(), nn.Linear(32, 5),
    ]  # fmt: skip
    images = torch.randn(2, 3, 28, 28)
    recipe = binarize.Recipe(scheme=scheme, smallest=0)
    net = binarize.pack(binarize.convert(nn.Sequential(*layers).eval(), images, recipe=recipe))
    wanted = by_nodes(net, images, monkeypatch=monkeypatch)

    seen = net(images)

    # The first convolution sums 27 products in another order, which may move a code; most maps stay as they are.
    assert (seen - wanted).abs().median() < 1e-6 * wanted.abs().max()
    (program,) = programs(net)[-1:]
    assert {"pack", "pack_1", "pack_2"} - set(program.names) == {"pack_2"}  # the last pooling packs


def test_the_reference_runs_node_by_node(monkeypatch):
    net = packed()
    wanted = net(IMAGES)
    monkeypatch.setenv("BINARIZE_KERNEL", "reference")

    assert "reference" in str(coverage(net).reason)
    torch.testing.assert_close(net(IMAGES), wanted, rtol=0, atol=0)


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: nn.functional.adaptive_avg_pool2d(x, (1, 1)),
        lambda x: nn.functional.adaptive_avg_pool2d(x, 1).flatten(1),
        lambda x: x.mean((2, 3)),
        lambda x: x.mean([-1, -2], keepdim=True),
        lambda x: torch.mean(x, [2, 3]),
        lambda x: x.mean((1, 3)),  # over channels: torch's
        lambda x: x.mean(1),
    ],
)
def test_means_over_pixels_are_those_of_torch(pool, monkeypatch):
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 6, 3)

        def forward(self, x):
            return pool(self.b(torch.relu(self.a(x))))

    torch.manual_seed(0)
    x = torch.randn(2, 8, 9, 7)
    recipe = binarize.Recipe("xnor-net", convert=("*",), keep_first=False, keep_last=False, smallest=0)
    net = binarize.pack(binarize.convert(Pooled().eval(), x, recipe=recipe))
    with torch.no_grad():
        seen, wanted = net(x), by_nodes(net, x, monkeypatch=monkeypatch)
    # 15 sums of values below 16, each rounded to half an ulp.
    torch.testing.assert_close(seen, wanted, rtol=0, atol=15 * 2**-20)


def test_what_has_no_kernel_is_left_to_torch_and_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
            self.ceil = nn.MaxPool2d(2, ceil_mode=True)

        def forward(self, x):
            return self.c(self.ceil(torch.sigmoid(self.b(torch.relu(self.a(x))))))

    torch.manual_seed(0)
    x = torch.randn(2, 8, 7, 7)
    recipe = binarize.Recipe("xnor-net", convert=("*",), keep_first=False, keep_last=False, smallest=0)
    net = binarize.pack(binarize.convert(Odd().eval(), x, recipe=recipe))

    found = coverage(net)

    assert found.left == {"sigmoid": "sigmoid has no kernel", "ceil": "it pools by ceil_mode or gives indices"}
    assert found.stretches == 2
    with torch.no_grad():
        assert net(x).shape == (2, 8, 4, 4)


def test_answers_have_memory_of_their_own():
    net = packed()
    with torch.no_grad():
        first = net(IMAGES)
        kept = first.clone()
        net(-IMAGES)

    assert torch.equal(first, kept)


@pytest.fixture
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("cached", [1, 30_000])
def test_a_batch_that_the_caches_do_not_hold_runs_in_slices(layout, cached, monkeypatch):
    monkeypatch.setattr("binarize.passes.stretch._CACHED_BYTES", cached)
    net = packed("encoding:w=2,a=2")
    x = torch.randn(23, 16, 9, 9, generator=torch.Generator().manual_seed(3)).contiguous(memory_format=layout)
    with torch.no_grad():
        seen = net(x)

    assert torch.equal(seen, by_nodes(net, x, monkeypatch=monkeypatch))
    sizes = {program.outputs[0].shape[0] for program in programs(net)}
    assert sizes == {1} if cached == 1 else sizes >= {1, 5, 3}  # five at a time, and what is left over
    assert max(program.arena_bytes for program in programs(net)) <= max(cached, 6_000)


def test_slices_change_no_map_that_is_given_in_channels_last(monkeypatch):
    monkeypatch.setattr("binarize.passes.stretch._CACHED_BYTES", 1)

    class Maps(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 6, 3)

        def forward(self, x):
            y = self.a(x)
            return self.b(torch.relu(y)), y.flatten(1)

    torch.manual_seed(0)
    x = torch.randn(5, 8, 9, 7)
    recipe = binarize.Recipe("xnor-net", convert=("*",), keep_first=False, keep_last=False, smallest=0)
    net = binarize.pack(binarize.convert(Maps().eval(), x, recipe=recipe))
    with torch.no_grad():
        seen, wanted = net(x), by_nodes(net, x, monkeypatch=monkeypatch)

    assert all(torch.equal(y, z) for y, z in zip(seen, wanted, strict=True))


def test_threads_share_one_network(monkeypatch):
    net = packed()
    batches = [torch.randn(1, 16, 9, 9, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    wanted = [by_nodes(net, x, monkeypatch=monkeypatch) for x in batches]
    with ThreadPoolExecutor(8) as pool, torch.no_grad():
        seen = list(pool.map(lambda x: net(x).detach(), batches * 25))

    assert all(torch.equal(y, z) for y, z in zip(seen, wanted * 25, strict=True))


def test_hooks_and_gradients_see_every_layer():
    net = packed(keep=("head",))
    seen = []
    handle = net.get_submodule("d").register_forward_hook(lambda *_: seen.append("d"))
    net(IMAGES)
    assert seen == ["d"]
    handle.remove()

    net.get_submodule("head").weight.requires_grad_(True)
    net(IMAGES).sum().backward()
    assert net.get_submodule("head").weight.grad is not None


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.get_submodule("d").bias.add_(1.0),
        lambda net: net.get_submodule("d").multiply(torch.full((7,), 2.0), torch.ones(7)),
        lambda net: net.load_state_dict(
            {k: v * 2 if v.is_floating_point() else v for k, v in net.state_dict().items()}
        ),
        lambda net: setattr(net, "head", nn.Linear(9, 5)),
        lambda net: setattr(net.get_submodule("head").weight, "data", net.get_submodule("head").weight * 2),
        lambda net: setattr(net.get_submodule("d"), "maximum", 0.0),
        lambda net: setattr(net, "mean", nn.AdaptiveMaxPool2d(1)),
    ],
)
@torch.no_grad()
def test_a_network_that_was_changed_is_planned_anew(change, monkeypatch):
    net = packed(keep=("head",))
    before = net(IMAGES)

    change(net)

    torch.manual_seed(0)
    seen = net(IMAGES)
    torch.manual_seed(0)
    torch.testing.assert_close(seen, by_nodes(net, IMAGES, monkeypatch=monkeypatch), rtol=0, atol=2e-5)
    assert not torch.equal(seen, before)


def test_copies_and_pickles_run_their_own_schedules(monkeypatch):
    net = packed()
    wanted = net(IMAGES)
    copied, buffer = copy.deepcopy(net), io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert isinstance(loaded, ScheduledGraph)
    with torch.no_grad():
        net.get_submodule("head").bias.add_(1.0)

        for other in (copied, loaded, pickle.loads(pickle.dumps(copied))):
            assert torch.equal(other(IMAGES), wanted)
    assert isinstance(copied, ScheduledGraph)


def test_a_pickle_does_not_grow_with_use():
    net = packed("pa-net:m=2,n=3")
    before = len(pickle.dumps(net))

    with torch.no_grad():
        net(IMAGES)

    assert len(pickle.dumps(net)) < before + 100  # the name of the place for its schedules


def test_an_artifact_is_scheduled_when_it_is_loaded(tmp_path):
    net = packed()
    binarize.save(net, tmp_path / "net.safetensors")

    loaded = binarize.load(tmp_path / "net.safetensors")

    assert coverage(loaded).scheduled == coverage(net).scheduled
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES), net(IMAGES))


def test_torch_compiles_and_exports_every_operation():
    net = packed()
    with torch.no_grad():
        wanted = net(IMAGES)
        exported = torch.export.export(net, (IMAGES,)).module()
        compiled = torch.compile(net, backend="aot_eager")

        assert torch.equal(exported(IMAGES), wanted)
        assert torch.equal(compiled(IMAGES), wanted)


def test_what_is_no_plain_batch_runs_by_torch():
    net = packed()
    with torch.no_grad():
        assert net(IMAGES[:0]).shape == (0, 5)
        assert torch.equal(net(IMAGES.double()), net(IMAGES))
        with pytest.warns(UserWarning, match="batching rule"):
            assert torch.vmap(net)(IMAGES[None]).shape == (1, 2, 5)


def test_an_image_of_other_channels_is_refused_though_its_words_are_as_many(monkeypatch):
    """As the original does; 15 channels fill the same words as 16."""
    net = packed()
    with torch.no_grad(), pytest.raises(ModelError, match=r"must be 16, got 9; give a batch, such as x\[None\]"):
        net(IMAGES[0])
    with torch.no_grad(), pytest.raises(ModelError, match=r"no float64: call \.float"):
        copy.deepcopy(net).double()(IMAGES.double())
    with torch.no_grad(), pytest.raises(ModelError, match="must be 16, got 15"):
        net(IMAGES[:, :15])
    with pytest.raises(ModelError, match="must be 16, got 15"):
        by_nodes(net, IMAGES[:, :15], monkeypatch=monkeypatch)


def test_sizes_are_kept_up_to_a_limit():
    net = packed()
    with torch.no_grad():
        for width in range(9, 40):
            net(torch.randn(1, 16, 9, width))

    assert len(programs(net)) <= 16 * len(runner_of(net).items)


def test_autocast_reaches_the_layers_that_stay_in_full_precision(monkeypatch):
    net = packed(keep=("head",))

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, wanted = net(IMAGES), by_nodes(net, IMAGES, monkeypatch=monkeypatch)

    assert found.dtype == torch.bfloat16
    assert torch.equal(found, wanted)
