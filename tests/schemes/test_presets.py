import pytest

from binarize.errors import RecipeError
from binarize.schemes.encoding import EncodingActivation, EncodingWeight
from binarize.schemes.presets import PRESETS, build_scheme
from binarize.schemes.sign import SignActivation
from binarize.schemes.structures import Groupwise, Layerwise


def test_options_left_out_take_their_defaults():
    scheme = build_scheme("encoding:w=2")

    assert scheme.spec == "encoding:w=2,a=4"
    assert scheme.weight == EncodingWeight(2)
    assert scheme.activation == EncodingActivation(4)
    assert scheme.products == 8


@pytest.mark.parametrize("name", PRESETS)
def test_a_scheme_spelled_out_builds_the_same_scheme(name):
    scheme = build_scheme(name)

    assert build_scheme(scheme.spec) == scheme


def test_shortcuts_make_one_branch_of_each_group():
    plain, with_shortcuts = build_scheme("xnor-net:shift=channel"), build_scheme("xnor-net:shift=channel,shortcuts=on")

    assert plain.structure == Layerwise()
    assert with_shortcuts.structure == Groupwise(1, gates="off", scales="mean", shortcuts=True)
    assert with_shortcuts.activation == plain.activation == SignActivation("channel")
    assert (with_shortcuts.products, with_shortcuts.bits) == (1, 1)


@pytest.mark.parametrize("unit", ["group", "layer"])
def test_branches_take_the_shift_and_the_estimator_of_their_signs(unit):
    scheme = build_scheme(f"group-net:k=2,unit={unit},shift=channel,ste=polynomial")

    assert scheme.activation == SignActivation("channel", ste="polynomial")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("encodng", "did you mean 'encoding'"),
        ("encoding:q=3", "unknown option 'q'"),
        ("encoding:w=9", "from 1 to 8"),
        ("encoding:w=four", "from 1 to 8"),
        ("encoding:w", "not key=value"),
        ("", "no name"),
    ],
)
def test_a_wrong_scheme_says_what_to_do(text, said):
    with pytest.raises(RecipeError, match=said) as raised:
        build_scheme(text)

    assert "\n" not in str(raised.value)
