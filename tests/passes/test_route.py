"""Routes change how long a packed network takes and nothing else; no file holds one."""

import hashlib
import json

import pytest
import torch
from torch import nn

import binarize
from binarize.errors import ModelError
from binarize.kernels import dispatch, speeds
from binarize.kernels.speeds import Speeds
from binarize.layers.packed import PackActivation, PackedConv2d, PackedLayer
from binarize.passes.pack import pack
from binarize.passes.route import ChooseRoutes, route, why_not

PLANES_FAST, CODES_FAST = Speeds(1e6, 1.0), Speeds(1.0, 1e6)
IMAGES = torch.randn(2, 16, 9, 9, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Two readers of one tensor, a residual, channel groups, padding that is not zeros, a linear layer."""

    def __init__(self):
        super().__init__()
        self.a, self.na = nn.Conv2d(16, 20, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(20)
        self.short = nn.Conv2d(16, 20, 1, stride=2)
        self.b = nn.Conv2d(20, 20, 3, padding=2, dilation=2, groups=2)
        self.c = nn.Conv2d(20, 12, (3, 1), padding=(1, 0), padding_mode="reflect")
        self.d = nn.Conv2d(12, 7, 1)
        self.head = nn.Linear(7, 5)

    def forward(self, x):
        y = torch.relu(self.na(self.a(x)))
        y = torch.relu(self.b(y) + self.short(x))
        return self.head(self.d(self.c(y)).mean((2, 3)))


@pytest.fixture(params=["xnor-net", "encoding:w=4,a=4", "encoding:w=8,a=8", "residual:m=2,a=3"])
def net(request):
    torch.manual_seed(0)
    recipe = binarize.Recipe(scheme=request.param, convert=("*",), keep_first=False, keep_last=False, smallest=0)
    return binarize.convert(Net().eval(), IMAGES, recipe=recipe)


def layers_of(net):
    return {name: module for name, module in net.named_modules() if isinstance(module, PackedLayer)}


@pytest.mark.parametrize("asked", ["popcount", "int8"])
def test_the_route_that_is_asked_for_is_taken_and_changes_no_bit(net, asked, monkeypatch):
    reference = pack(net)(IMAGES)
    monkeypatch.setenv("BINARIZE_ROUTE", asked)
    packed = pack(net)

    assert len(layers_of(packed)) == 6
    assert {layer.activation.route for layer in layers_of(packed).values()} == {asked}
    seen = []
    for layer in layers_of(packed).values():
        layer.register_forward_pre_hook(lambda m, args: seen.append(args[0].dtype))
    assert torch.equal(packed(IMAGES), reference)
    assert seen.count(torch.uint8 if asked == "int8" else torch.int32) >= 5  # one layer pads, and packs, by itself


@pytest.mark.parametrize(("measured", "chosen"), [(PLANES_FAST, "popcount"), (CODES_FAST, "int8")])
def test_the_quicker_route_is_chosen(net, measured, chosen, monkeypatch):
    monkeypatch.setattr("binarize.passes.route.speeds", lambda: measured)

    routes = {m.route for m in pack(net).modules() if isinstance(m, PackActivation)}

    assert routes == {chosen}


def test_readers_of_one_packing_take_one_route_and_the_larger_decides():
    """16 channels are a word of 64 bits or 16 bytes: with 16 and 4 pairs of planes, 64 and 16 times the products."""
    torch.manual_seed(0)
    recipe = binarize.Recipe(
        scheme="encoding:w=4,a=4", layers={"short": "encoding:w=1,a=4"}, keep_first=False, keep_last=False, smallest=0
    )
    packed = pack(binarize.convert(Net().eval(), IMAGES, recipe=recipe))
    layers = layers_of(packed)
    costs = Speeds(planes=320.0, codes=10.0)  # 32 times as fast by planes: between the two
    step = ChooseRoutes(costs)

    assert step.quickest([layers["a"]]) == "int8"
    assert step.quickest([layers["short"]]) == "popcount"
    step(packed)
    assert layers["a"].activation.route == layers["short"].activation.route == "int8"


def test_a_second_run_changes_nothing(net):
    packed = pack(net)
    step = ChooseRoutes(CODES_FAST)
    step(packed)

    assert step(packed).changed == ()


@pytest.mark.parametrize(("level", "left"), [("avx512_vpopcntdq", "popcount"), ("avx512_vnni", "int8")])
def test_a_route_that_no_kernel_runs_is_left_with_the_reason(net, level, left, monkeypatch):
    if why := dict(dispatch.levels())[level]:
        pytest.skip(why)
    monkeypatch.setenv("BINARIZE_KERNEL", level)
    asked = "int8" if left == "popcount" else "popcount"
    packed = pack(net)

    result = ChooseRoutes(PLANES_FAST, asked=asked)(packed)

    geometry = layers_of(packed)["a"].geometry
    assert {layer.activation.route for layer in layers_of(packed).values()} == {left}
    assert "multiplies" in str(why_not(geometry, asked))
    assert why_not(geometry, left) is None
    assert result.skipped.keys() == layers_of(packed).keys()
    assert set(result.skipped.values()) == {why_not(geometry, asked)}
    assert torch.isfinite(packed(IMAGES)).all()


def test_a_route_that_does_not_exist_is_refused(net, monkeypatch):
    monkeypatch.setenv("BINARIZE_ROUTE", "int4")

    with pytest.raises(ModelError, match=r"BINARIZE_ROUTE is 'int4'.*use popcount or int8"):
        pack(net)


def test_files_hold_no_route_and_loading_chooses_one(net, tmp_path, monkeypatch):
    sums = set()
    for asked in ("popcount", "int8"):
        monkeypatch.setenv("BINARIZE_ROUTE", asked)
        binarize.save(pack(net), tmp_path / asked)
        sums.add(hashlib.sha256((tmp_path / asked).read_bytes()).hexdigest())
        loaded = binarize.load(tmp_path / "popcount")
        assert {layer.activation.route for layer in layers_of(loaded).values()} == {asked}

    assert len(sums) == 1


def test_one_plane_that_is_read_as_codes_is_the_same_plane(monkeypatch):
    """A convolution that answers in thresholds keeps to its reader's route."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 8, 3), nn.BatchNorm2d(8), nn.Hardtanh(), nn.Conv2d(8, 8, 3)).eval()
    recipe = binarize.Recipe(scheme="xnor-net", keep_first=False, keep_last=False, smallest=0)
    packed = pack(binarize.convert(model, IMAGES, recipe=recipe))
    first = next(module for module in packed.modules() if isinstance(module, PackedConv2d))
    assert first.reader is not None
    found = []
    for asked in ("popcount", "int8"):
        monkeypatch.setenv("BINARIZE_ROUTE", asked)
        route(packed)
        found.append((packed(IMAGES), first(IMAGES).dtype))

    assert torch.equal(found[0][0], found[1][0])
    assert [dtype for _, dtype in found] == [torch.int32, torch.uint8]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    speeds._speeds.cache_clear()
    yield tmp_path / "binarize" / "speeds.json"
    speeds._speeds.cache_clear()


def test_speeds_are_measured_once_and_kept(cache, monkeypatch):
    monkeypatch.delenv("BINARIZE_KERNEL", raising=False)
    first = speeds.speeds()
    assert first.planes > 0
    assert first.codes > 0

    speeds._speeds.cache_clear()
    monkeypatch.setattr(speeds, "measure", lambda: Speeds(1.0, 1.0))
    assert speeds.speeds() == first
    monkeypatch.setenv("BINARIZE_KERNEL", "scalar")  # another kernel: measured by itself
    assert speeds.speeds() == Speeds(1.0, 1.0)
    speeds._speeds.cache_clear()
    monkeypatch.delenv("BINARIZE_KERNEL")
    assert speeds.speeds() == first


def test_the_cache_does_not_grow_for_ever(cache, monkeypatch):
    monkeypatch.setattr(speeds, "measure", lambda: Speeds(2.0, 3.0))
    for number in range(20):
        monkeypatch.setattr(speeds, "_machine", lambda forced, number=number: str(number))
        speeds._speeds.cache_clear()
        speeds.speeds()

    assert list(json.loads(cache.read_text())) == [str(number) for number in range(4, 20)]


@pytest.mark.parametrize("held", ["", "{", "[]", "1", '{"x": 1}'])
def test_a_damaged_cache_is_measured_and_written_anew(cache, held, monkeypatch):
    cache.parent.mkdir()
    cache.write_text(held)
    monkeypatch.setattr(speeds, "measure", lambda: Speeds(2.0, 3.0))

    assert speeds.speeds() == Speeds(2.0, 3.0)
    assert '"codes": 3.0' in cache.read_text()


def test_without_a_place_for_the_cache_speeds_are_measured_all_the_same(cache, monkeypatch):
    cache.parent.write_text("a file where the folder should be")
    monkeypatch.setattr(speeds, "measure", lambda: Speeds(2.0, 3.0))

    assert speeds.speeds() == Speeds(2.0, 3.0)


def test_a_form_that_no_kernel_multiplies_has_no_speed_and_takes_for_ever(monkeypatch):
    level = next((name for name in ("avx512_vpopcntdq", "avx512_vnni") if dict(dispatch.levels())[name] is None), None)
    if level is None:
        pytest.skip("no level here multiplies one form alone")
    monkeypatch.setenv("BINARIZE_KERNEL", level)

    found = speeds.measure()

    assert sorted((found.planes > 0, found.codes > 0)) == [False, True]
    geometry = dispatch.Conv2dProblem(8, 8, (1, 1), (1, 1), (0, 0), (1, 1), 1, (1,), (1,), codes=found.codes == 0)
    assert found.nanoseconds(geometry) == float("inf")
