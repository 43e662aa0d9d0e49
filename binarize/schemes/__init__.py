"""Schemes: how weights and activations become binary planes, and what of the graph is replaced."""

from binarize.schemes.base import ActivationBasis, Levels, Planes, WeightBasis, sign
from binarize.schemes.encoding import EncodingActivation, EncodingWeight
from binarize.schemes.presets import PRESETS, Preset, Scheme, build_scheme
from binarize.schemes.residual import ResidualWeight
from binarize.schemes.sign import SignActivation, SignWeight
from binarize.schemes.structures import Groupwise, Layerwise, Structure

__all__ = [
    "PRESETS",
    "ActivationBasis",
    "EncodingActivation",
    "EncodingWeight",
    "Groupwise",
    "Layerwise",
    "Levels",
    "Planes",
    "Preset",
    "ResidualWeight",
    "Scheme",
    "SignActivation",
    "SignWeight",
    "Structure",
    "WeightBasis",
    "build_scheme",
    "sign",
]
