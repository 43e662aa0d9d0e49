"""Saving and loading: one safetensors file with the network as data, no pickle, no code."""

from binarize.artifact.files import is_artifact, replacing
from binarize.artifact.store import load, save

__all__ = ["is_artifact", "load", "replacing", "save"]
