import pytest

from binarize.schemes.options import Rates, Whole, Word

OPTIONS = [Whole(4, 1, 8), Word(("block", "branch", "off")), Rates()]


@pytest.mark.parametrize("option", OPTIONS, ids=repr)
def test_every_example_is_accepted(option):
    assert all(option.read(text) is not None for text in option.examples)


@pytest.mark.parametrize("option", OPTIONS, ids=repr)
@pytest.mark.parametrize("text", ["", "-", "nine", "9-", "-9", "0", "0-3", "5-2", "1-2-3", "99", "²", "1.5"])
def test_anything_else_is_not(option, text):
    assert option.read(text) is None


def test_rates_name_every_dilation_between_the_ends():
    assert Rates().read("2-6") == (2, 3, 4, 5, 6)
    assert Rates().read("off") == ()
