"""Merged weight terms: within their grid, on one route only, allowed by the recipe, and in no file."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import binarize
from binarize.errors import RecipeError
from binarize.kernels.speeds import Speeds
from binarize.layers.geometry import Geometry
from binarize.layers.merged import allow, merge, merged_geometry
from binarize.layers.packed import PackedLayer, PackedLinear
from binarize.passes.route import route

IMAGES = torch.randn(4, 16, 9, 9, generator=torch.Generator().manual_seed(1))
CODES_FAST = Speeds(1.0, 1e6)


@settings(max_examples=60)
@given(
    planes=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    outputs=st.integers(1, 4),
    terms=st.sampled_from((1, 2)),
    seed=st.integers(0, 2**31 - 1),
)
def test_what_is_merged_is_the_nearest_odd_multiple_of_its_unit(planes, outputs, terms, seed):
    generator = torch.Generator().manual_seed(seed)
    odd = torch.stack([torch.randint(0, 2**m, (outputs, 3, 2, 2), generator=generator) * 2 - 2**m + 1 for m in planes])
    unit = torch.randn(len(planes), outputs, generator=generator)
    weight = torch.einsum("ko,kocyx->ocyx", unit.double(), odd.double())

    seen, units = merge(odd, unit, terms)

    assert seen.shape == (terms, *odd.shape[1:])
    assert (seen % 2 == 1).all()
    assert seen.abs().max() <= 255
    largest = weight.flatten(1).abs().amax(1)
    merged = torch.einsum("ko,kocyx->ocyx", units, seen.double())
    # Odd multiples are two units apart, and the unit is the largest weight over 2^(8 terms) - 1; and float64 rounding.
    bound = largest / (2 ** (8 * terms) - 1) * (1 + 1e-9)
    assert ((merged - weight).abs().flatten(1).amax(1) <= bound).all()


def test_a_channel_of_zeros_stays_near_zero():
    odd = torch.tensor([[[1, -1]], [[1, -1]]])

    seen, units = merge(odd, torch.tensor([[0.5], [-0.5]]), 2)

    assert torch.isfinite(units).all()
    assert torch.einsum("ko,ko...->o...", units, seen.double()).abs().max() < 1e-30


@pytest.mark.parametrize(
    ("terms", "exactness", "merged"),
    [
        ((1,) * 4, "exact", None), ((1,) * 4, "2^-16", (8, 8)), ((1,) * 4, "int8", (8,)),
        ((1, 1), "2^-16", None), ((1, 1), "int8", (8,)), ((4,), "int8", None), ((0, 1, 1), "2^-16", (8, 8)),
    ],
)  # fmt: skip
def test_terms_are_merged_where_that_saves_products(terms, exactness, merged):
    found = merged_geometry(Geometry(8, 8, weight_terms=terms), exactness)

    assert (None if found is None else found.weight_terms) == merged


def packed(scheme, exactness="exact"):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(16, 20, 3, padding=1), nn.ReLU(), nn.Conv2d(20, 12, 3, 2), nn.ReLU(), nn.Flatten())
    net.append(nn.Linear(12 * 16, 5))
    recipe = binarize.Recipe(
        scheme, convert=("*",), keep_first=False, keep_last=False, smallest=0, exactness=exactness
    )  # fmt: skip
    return binarize.pack(binarize.convert(net.eval(), IMAGES, recipe=recipe))


SCHEMES = ("pa-net:m=4,n=3", "abc-net:m=3,n=3", "group-net:k=4,unit=layer")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("exactness", "near"), [("2^-16", 2e-4), ("int8", 5e-2)])
@pytest.mark.parametrize("scheduled", ["on", "off"])
@torch.no_grad()
def test_a_merged_network_is_near_the_exact_one_and_alike_by_schedule(scheme, exactness, near, scheduled, monkeypatch):
    """One layer at a time, as a last bit before a threshold is a whole step after it."""
    monkeypatch.setattr("binarize.passes.route.speeds", lambda: CODES_FAST)
    monkeypatch.setenv("BINARIZE_SCHEDULE", scheduled)
    net, merged = packed(scheme), packed(scheme, exactness)

    for name, layer in net.named_modules():
        if isinstance(layer, PackedLayer):
            other = merged.get_submodule(name)
            shape = (3, layer.channels) if isinstance(layer, PackedLinear) else (3, layer.channels, 7, 7)
            x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
            assert torch.equal(layer.bits, other.bits)  # files hold what they held
            exact, near_it = copy.deepcopy(layer), copy.deepcopy(other)
            for made in (exact, near_it):
                made.activation.route = "int8"
                if hasattr(made, "reader"):
                    made.reader = None
            y = exact(x)
            assert not torch.equal(near_it(x), y)
            assert (near_it(x) - y).abs().max() <= near * y.abs().max()
    assert merged(IMAGES).shape == net(IMAGES).shape


@torch.no_grad()
def test_planes_by_popcount_stay_exact(monkeypatch):
    monkeypatch.setenv("BINARIZE_ROUTE", "popcount")

    assert torch.equal(packed("pa-net:m=4,n=3", "int8")(IMAGES), packed("pa-net:m=4,n=3")(IMAGES))


@torch.no_grad()
def test_a_file_holds_the_planes_and_its_recipe_the_permission(tmp_path, monkeypatch):
    monkeypatch.setattr("binarize.passes.route.speeds", lambda: CODES_FAST)
    net = packed("pa-net:m=4,n=3", "2^-16")
    binarize.save(net, tmp_path / "net.safetensors")

    loaded = binarize.load(tmp_path / "net.safetensors")

    assert torch.equal(loaded(IMAGES), net(IMAGES))
    allow(loaded, "exact")
    route(loaded)
    assert torch.equal(loaded(IMAGES), packed("pa-net:m=4,n=3")(IMAGES))
    routes = {layer.route for layer in binarize.summary(net).layers}
    assert routes == {"int8 (2^-16)"}


def test_merging_makes_the_route_int8_cheaper(monkeypatch):
    """Four terms by three: 12 products of codes, 6 where two terms take the place of four."""
    monkeypatch.setattr("binarize.passes.route.speeds", lambda: Speeds(8.0, 1.0))

    def routes(exactness):
        return {m.activation.route for m in packed("pa-net:m=4,n=3", exactness).modules() if isinstance(m, PackedLayer)}

    assert routes("exact") == {"popcount"}
    assert "int8" in routes("int8")


def test_an_unknown_exactness_is_refused():
    with pytest.raises(RecipeError, match=r"exactness is '2\^-8'; it may be exact, 2\^-16, int8"):
        binarize.Recipe(exactness="2^-8")
