"""Named schemes: a weight basis, an activation basis and a structure, written as one string.

``PRESETS`` is the whole registry; its order is the order in which `binarize schemes` lists them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, final

from binarize.errors import RecipeError, nearest
from binarize.recipe import SchemeSpec
from binarize.schemes.base import ActivationBasis, WeightBasis
from binarize.schemes.encoding import EncodingActivation, EncodingWeight
from binarize.schemes.estimators import STES
from binarize.schemes.options import Option, Rates, Whole, Word
from binarize.schemes.piecewise import PiecewiseActivation, PiecewiseWeight
from binarize.schemes.residual import ResidualWeight
from binarize.schemes.shifted import ShiftedActivation, ShiftedWeight
from binarize.schemes.sign import SignActivation, SignWeight
from binarize.schemes.structures import Groupwise, Layerwise, Structure

__all__ = ["PRESETS", "Preset", "Scheme", "build_scheme"]

Parts = tuple[WeightBasis, ActivationBasis, Structure]


@final
@dataclasses.dataclass(frozen=True)
class Scheme:
    """What one layer becomes.

    Attributes:
        spec: the string it was written as, with the numbers that were left out.
        weight: how its weight becomes planes.
        activation: how its input becomes planes.
        structure: what is replaced as one.
    """

    spec: str
    weight: WeightBasis
    activation: ActivationBasis
    structure: Structure = dataclasses.field(default_factory=Layerwise)

    @property
    def products(self) -> int:
        """Binary products per multiply-accumulate of the original layer."""
        return self.weight.count * self.activation.count * self.structure.executed

    @property
    def bits(self) -> int:
        """Bits stored for each weight of the original layer."""
        return self.weight.count * self.structure.stored


@final
@dataclasses.dataclass(frozen=True)
class Preset:
    """A named family of schemes.

    Attributes:
        summary: one line for a person.
        paper: where it comes from.
        options: what each option may be, by its name.
        build: from the options' values to the scheme's parts.
    """

    summary: str
    paper: str
    options: Mapping[str, Option]
    build: Callable[[Mapping[str, Any]], Parts]


def _abc_net(options: Mapping[str, Any]) -> Parts:
    return ShiftedWeight(options["m"]), ShiftedActivation(options["n"], ste=options["ste"]), Layerwise()


def _pa_net(options: Mapping[str, Any]) -> Parts:
    return PiecewiseWeight(options["m"]), PiecewiseActivation(options["n"], ste=options["ste"]), Layerwise()


def _xnor_net(options: Mapping[str, Any]) -> Parts:
    structure: Structure = Layerwise()
    if options["shortcuts"] == "on":  # a branch is a copy that shortcuts can be added to
        structure = Groupwise(1, gates="off", scales="mean", shortcuts=True)
    return SignWeight(), SignActivation(options["shift"], ste=options["ste"]), structure


def _encoding(options: Mapping[str, Any]) -> Parts:
    return EncodingWeight(options["w"]), EncodingActivation(options["a"]), Layerwise()


def _residual(options: Mapping[str, Any]) -> Parts:
    activation = SignActivation() if options["a"] == 1 else EncodingActivation(options["a"])
    return ResidualWeight(options["m"]), activation, Layerwise()


def _group_net(options: Mapping[str, Any]) -> Parts:
    unit, activation = options["unit"], SignActivation(options["shift"], ste=options["ste"])
    if unit == "layer":
        return ResidualWeight(options["k"]), activation, Layerwise()
    structure = Groupwise(
        options["k"], unit, options["gates"], options["scales"], options["stored"], options["rates"],
        options["strides"], options["shortcuts"] == "on",
    )  # fmt: skip
    return SignWeight(), activation, structure


PRESETS: dict[str, Preset] = {
    "xnor-net": Preset(
        "one plane each: scaled sign of weights and of activations",
        "Rastegari et al., ECCV 2016, arXiv:1603.05279",
        {"shift": Word(("tensor", "channel")), "ste": Word(STES), "shortcuts": Word(("off", "on"))},
        _xnor_net,
    ),
    "abc-net": Preset(
        "m signs of shifted weights times n signs of shifted activations, learnt scales and shifts",
        "Lin et al., NIPS 2017, arXiv:1711.11294",
        {"m": Whole(5, 1, 8), "n": Whole(5, 1, 8), "ste": Word(STES)},
        _abc_net,
    ),
    "pa-net": Preset(
        "m pieces of weights times n pieces of activations, learnt endpoints and coefficients",
        "PA-Net, ECAI 2020, arXiv:2008.03520",
        {"m": Whole(4, 1, 8), "n": Whole(5, 1, 8), "ste": Word(STES)},
        _pa_net,
    ),
    "encoding": Preset(
        "w-bit weights and a-bit activations, each bit a {-1,+1} branch",
        "Sun et al., AAAI 2019, arXiv:1905.13389",
        {"w": Whole(4, 1, 8), "a": Whole(4, 1, 8)},
        _encoding,
    ),
    "residual": Preset(
        "m weight planes with real scales, signs of the nearest sum; a-bit activations",
        "Li et al., ICCV 2017 (residual planes); Sun et al., arXiv:1905.13389 (activations)",
        {"m": Whole(2, 1, 8), "a": Whole(4, 1, 8)},
        _residual,
    ),
    "group-net": Preset(
        "k binary copies of each group (of each layer with unit=layer), added up with learnt scales",
        "Zhuang et al., CVPR 2019, arXiv:1811.10413; IJCV 2022, arXiv:1909.09934",
        {
            "k": Whole(5, 1, 8),
            "unit": Word(("group", "layer", "stage", "network")),
            "gates": Word(("block", "branch", "off")),
            "scales": Word(("learnt", "mean")),
            "stored": Whole(0, 0, 16),
            "rates": Rates(),
            "strides": Word(("keep", "drop")),
            "shortcuts": Word(("off", "on")),
            "shift": Word(("tensor", "channel")),
            "ste": Word(STES),
        },
        _group_net,
    ),
}


def build_scheme(text: str) -> Scheme:
    """Build the scheme that a string such as ``encoding:w=4,a=4`` names.

    Raises:
        RecipeError: the name or an option is unknown, or a value is out of range.
    """
    spec = SchemeSpec.parse(text)
    preset = PRESETS.get(spec.name)
    if preset is None:
        hint = nearest(spec.name, PRESETS)
        raise RecipeError(
            f"cannot use scheme {text!r}: unknown name {spec.name!r}{hint}; known are {', '.join(PRESETS)}"
        )
    texts = {name: option.examples[0] for name, option in preset.options.items()} | dict(spec.options)
    values = {name: _read(text, preset, name, value) for name, value in texts.items()}
    said = {name: value for name, value in texts.items() if not _goes_without_saying(preset.options[name], value)}
    try:
        return Scheme(str(SchemeSpec(spec.name, said)), *preset.build(values))
    except ValueError as cause:
        raise RecipeError(f"cannot use scheme {text!r}: {cause}") from None


def _goes_without_saying(option: Option, value: str) -> bool:
    return option.is_optional and value == option.examples[0]


def _read(text: str, preset: Preset, name: str, value: str) -> Any:
    if name not in preset.options:
        known = ", ".join(preset.options) or "none"
        raise RecipeError(f"cannot use scheme {text!r}: unknown option {name!r}; its options: {known}")
    read = preset.options[name].read(value)
    if read is None:
        raise RecipeError(f"cannot use scheme {text!r}: {name}={value}; give {preset.options[name].wanted}")
    return read
