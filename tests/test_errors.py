"""Suggestions read well whether or not a known word is near."""

import re

import pytest

from binarize.data import DataSpec
from binarize.errors import BinarizeError, nearest
from binarize.schemes.presets import build_scheme
from binarize.sources import open_model


@pytest.mark.parametrize("word", ["encodin", "qqqq"])
@pytest.mark.parametrize(
    "reader",
    [
        DataSpec.parse,
        lambda word: DataSpec.parse(f"torchvision:{word}:d"),
        lambda word: DataSpec.parse(f"digits:{word}"),
        build_scheme,
        lambda word: open_model(f"torchvision:{word}"),
        lambda word: open_model(f"{__file__}:{word}"),
    ],
)
def test_what_is_known_is_set_apart_from_the_unknown_word(reader, word):
    with pytest.raises(BinarizeError) as caught:
        reader(word)
    text = re.sub(r" \(did you mean '\w+'\?\)", "", str(caught.value))
    assert re.search(rf"{word}(:d)?'( in [^;]*)?; \w", text), text


def test_the_nearest_word_is_offered_and_a_far_one_is_not():
    assert nearest("resnt", ["resnet", "vgg"]) == " (did you mean 'resnet'?)"
    assert nearest("qqqq", ["resnet", "vgg"]) == ""
