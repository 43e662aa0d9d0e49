"""What `convert` refuses: patterns that match nothing, networks that are converted already."""

import pytest
import torch
from models import Residual

from binarize.convert import convert, plan
from binarize.errors import ModelError, RecipeError
from binarize.passes.pack import pack
from binarize.recipe import Recipe

IMAGES = torch.linspace(-2, 2, 2 * 3 * 8 * 8).sin().reshape(2, 3, 8, 8)


@pytest.mark.parametrize("where", ["keep", "convert", "layers"])
def test_a_pattern_that_matches_no_layer_names_the_nearest(where):
    name = plan(Residual()).layers[1].name
    wrong = f"{name}x"
    recipe = Recipe(**{where: {wrong: "xnor-net"} if where == "layers" else (wrong,)})

    with pytest.raises(RecipeError) as caught:
        plan(Residual(), recipe)
    assert repr(wrong) in str(caught.value)
    assert f"did you mean {name!r}" in str(caught.value)


def test_a_pattern_that_matches_one_layer_is_taken():
    name = plan(Residual()).layers[1].name

    assert any(layer.reason and repr(name) in layer.reason for layer in plan(Residual(), Recipe(keep=(name,))).layers)


@pytest.mark.parametrize("first", ["encoding:w=2,a=2", "fp"])
def test_of_patterns_that_match_a_layer_the_first_counts(first):
    name = plan(Residual()).layers[1].name
    rest = "fp" if first != "fp" else "encoding:w=2,a=2"

    found = {layer.name: layer for layer in plan(Residual(), Recipe(layers={name: first, "*": rest})).layers}

    for layer in found.values():
        wanted = first if layer.name == name else rest
        assert layer.scheme == (None if wanted == "fp" else wanted), layer


def test_a_converted_network_is_not_converted_again():
    net = convert(Residual().eval(), IMAGES)

    for again in (net, pack(net)):
        with pytest.raises(ModelError, match="already converted"):
            convert(again, IMAGES)


def test_a_packed_network_is_not_packed_again():
    packed = pack(convert(Residual().eval(), IMAGES))

    with pytest.raises(ModelError, match="already packed"):
        pack(packed)


def schemes_of(recipe):
    return [layer.scheme for layer in plan(Residual(), recipe).layers]


def test_the_ends_take_their_own_scheme_where_they_would_stay_in_full_precision():
    kept = schemes_of(Recipe("xnor-net", smallest=0))
    ended = schemes_of(Recipe("xnor-net", ends="encoding:w=8,a=8", smallest=0))

    assert kept[0] is None
    assert kept[-1] is None
    assert ended == ["encoding:w=8,a=8", *kept[1:-1], "encoding:w=8,a=8"]


def test_what_names_a_layer_says_more_than_the_ends():
    first = plan(Residual()).layers[0].name
    ends = {"scheme": "xnor-net", "ends": "encoding:w=8,a=8", "smallest": 0}

    assert schemes_of(Recipe(**ends, keep=(first,)))[0] is None
    assert schemes_of(Recipe(**ends, layers={first: "encoding:w=4,a=4"}))[0] == "encoding:w=4,a=4"
    assert schemes_of(Recipe(**ends, convert=(first,)))[0] == "xnor-net"
    assert schemes_of(Recipe(**ends, keep_first=False))[0] == "xnor-net"


def test_an_unknown_scheme_of_the_ends_is_refused():
    with pytest.raises(RecipeError, match="encodign"):
        plan(Residual(), Recipe(ends="encodign:w=8,a=8"))
