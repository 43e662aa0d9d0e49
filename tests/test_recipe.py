import pytest
from hypothesis import given
from hypothesis import strategies as st

from binarize.errors import RecipeError
from binarize.recipe import Recipe, SchemeSpec

TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=12)


@given(
    keep=st.lists(TEXT, max_size=3),
    layers=st.dictionaries(TEXT, TEXT, max_size=3),
    smallest=st.integers(0, 10**6),
    first=st.booleans(),
)
def test_a_recipe_survives_toml(tmp_path_factory, keep, layers, smallest, first):
    recipe = Recipe(keep=tuple(keep), layers=layers, smallest=smallest, keep_first=first)
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")

    assert Recipe.from_toml(path) == recipe
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_an_unknown_key_is_named_with_the_nearest(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('shceme = "xnor-net"\n')

    with pytest.raises(RecipeError, match=r"'shceme' \(did you mean 'scheme'"):
        Recipe.from_toml(path)


@pytest.mark.parametrize("text", ["scheme = 3", "keep = 'a'", "layers = 'fp'", "seed = true", "= ", "samples = '9'"])
def test_values_of_the_wrong_type_are_refused_in_one_line(tmp_path, text):
    path = tmp_path / "r.toml"
    path.write_text(text)

    with pytest.raises(RecipeError, match=r"cannot read recipe .*r\.toml"):
        Recipe.from_toml(path)


def test_a_missing_recipe_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"nowhere\.toml"):
        Recipe.from_toml(tmp_path / "nowhere.toml")


def test_a_scheme_spec_reads_back_what_it_writes():
    spec = SchemeSpec.parse(" encoding : w = 4 , a=2")

    assert SchemeSpec.parse(str(spec)).options == {"w": "4", "a": "2"}


@pytest.mark.parametrize("key", ["scheme", "ends"])
def test_no_scheme_at_all_is_refused_with_what_to_give(key):
    with pytest.raises(RecipeError, match=f"{key} is None; give a scheme, or 'fp'"):
        Recipe(**{key: None})
