"""What `convert` refuses: patterns that match nothing."""

import pytest
from models import Residual

from binarize.convert import plan
from binarize.errors import RecipeError
from binarize.recipe import Recipe


@pytest.mark.parametrize("where", ["keep", "convert", "layers"])
def test_a_pattern_that_matches_no_layer_names_the_nearest(where):
    name = plan(Residual())[1].name
    wrong = f"{name}x"
    recipe = Recipe(**{where: {wrong: "xnor-net"} if where == "layers" else (wrong,)})

    with pytest.raises(RecipeError) as caught:
        plan(Residual(), recipe)
    assert repr(wrong) in str(caught.value)
    assert f"did you mean {name!r}" in str(caught.value)


def test_a_pattern_that_matches_one_layer_is_taken():
    name = plan(Residual())[1].name

    assert any(layer.reason and repr(name) in layer.reason for layer in plan(Residual(), Recipe(keep=(name,))))
