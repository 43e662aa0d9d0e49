"""Arguments as JSON: plain values as they are, the rest as a dict of one tag, such as ``{"slice": [0, null, 2]}``.

A JSON list is a list; a tuple is ``{"tuple": [...]}``.
"""

import keyword
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from binarize.errors import ArtifactError

__all__ = ["decode", "encode", "identifier", "is_plain", "path_of"]

_NAMED: dict[str, dict[str, Any]] = {
    tag: {str(value): value for value in vars(torch).values() if isinstance(value, kind)}
    for tag, kind in (
        ("dtype", torch.dtype),
        ("layout", torch.layout),
        ("memory_format", torch.memory_format),
    )
}
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PATH = re.compile(r"[\w-]+(\.[\w-]+)*", re.ASCII)


def encode(value: Any) -> Any:
    """Return ``value`` as JSON values.

    Raises:
        ArtifactError: it holds something that is neither a plain value nor a node of the graph.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if value is ...:
        return {"ellipsis": None}
    return _encode_container(value) if isinstance(value, list | tuple | dict | slice | range) else _encode_named(value)


def _encode_container(value: Any) -> Any:
    if isinstance(value, slice | range):
        ends = [value.start, value.stop, value.step]
        return {type(value).__name__: [encode(end) for end in ends]}
    if isinstance(value, OrderedDict):
        return {"ordered": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if hasattr(value, "_fields"):
        raise ArtifactError(f"cannot save a {type(value).__name__} in a graph; return a plain tuple from forward")
    items = [encode(item) for item in value]
    return items if isinstance(value, list) else {"tuple": items}


def _encode_named(value: Any) -> Any:
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for tag, known in _NAMED.items():
        if known.get(str(value)) is value:
            return {tag: str(value)}
    raise ArtifactError(f"cannot save a {type(value).__name__} as an argument; numbers, texts and tensors can be saved")


def is_plain(value: Any) -> bool:
    """Return whether ``value`` can be encoded, nodes apart."""
    try:
        encode(value)
    except ArtifactError:
        return False
    return not isinstance(value, fx.Node)


def decode(data: Any, nodes: Mapping[str, fx.Node] | None = None) -> Any:
    """Return the value that `encode` was given; ``nodes`` are those already made, by name.

    Raises:
        ArtifactError: the tag is unknown.
        Exception: what is under the tag makes no sense, in whatever way Python puts it.
    """
    if isinstance(data, list):
        return [decode(item, nodes) for item in data]
    if not isinstance(data, dict):
        return data
    ((tag, inner),) = data.items()
    if tag == "node":
        if nodes is None:
            raise ArtifactError("cannot read a value: it refers to a node outside a graph")
        return nodes[inner]
    if tag in _NAMED:
        return _NAMED[tag][inner]
    if tag not in _DECODERS:
        raise ArtifactError(f"cannot read a value: unknown tag {tag!r}")
    return _DECODERS[tag](inner if tag == "float" else decode(inner, nodes))


def _float(text: str) -> float:
    return {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[text]


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "float": _float,
    "ellipsis": lambda _: ...,
    "slice": lambda ends: slice(*ends),
    "range": lambda ends: range(*ends),
    "dict": dict,
    "ordered": OrderedDict,
    "tuple": tuple,
    "device": torch.device,
}


def identifier(text: Any, what: str) -> str:
    """Return ``text`` if it is a name that may stand in generated code.

    Raises:
        ArtifactError: it is anything else.
    """
    if isinstance(text, str) and _IDENTIFIER.fullmatch(text) and not keyword.iskeyword(text):
        return text
    raise ArtifactError(f"cannot use {str(text)[:60]!r} as {what}: it is not a plain name")


def path_of(text: Any, what: str) -> str:
    """Return ``text`` if it is a module path, of names joined by dots, that may stand in generated code.

    Raises:
        ArtifactError: it is anything else.
    """
    if isinstance(text, str) and _PATH.fullmatch(text):
        return text
    raise ArtifactError(f"cannot use {str(text)[:60]!r} as {what}: only letters, digits, '_' and '-' may be in a path")
