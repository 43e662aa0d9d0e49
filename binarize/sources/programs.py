"""Opens `.pt2` exported programs, after a scan: torch.export.load by itself runs what a crafted archive asks for.

The ways in that the scan closes: nested pickles, compiled libraries, opaque objects, symbolic expressions
(sympy evaluates them as Python), operators outside the operator sets, and tree specs that import modules.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from binarize.errors import SourceError
from binarize.passes.lift import lift
from binarize.sources.pickles import unsafe_globals

__all__ = ["load_program"]

ENTRIES = re.compile(
    r"archive_format|archive_version|byteorder|version|\.\w+|\.data/\w+"
    r"|models/[^/]+\.json|data/(weights|constants|sample_inputs)/[^/]+|extra/.*"
)
OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims|torchvision|higher_order)\.(?!from_file)\w+(\.\w+)?"
    r"|math\.\w+|torch\.(_?sym_\w+)"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|xor|not_|getitem)"
)
EXPRESSION = re.compile(r"[\w\s+\-*/%(),<>=!&|~.]*")
DECLARATION = re.compile(r"Symbol\('[a-z]{1,5}\d+'(, [a-z_]+=(True|False))*\)")
# The functions torch writes in sizes, and its symbols: s77, u0, zf3.
WORD = re.compile(
    r"Add|Mul|Rational|Max|Min|Mod|PythonMod|(Floor|Ceil|Clean)Div|(Int|Float)TrueDiv|ModularIndexing|Where|Piecewise|Identity"
    r"|PowByNatural|FloatPow|(Floor|Ceil|Trunc|Round)To(Int|Float)|ToFloat|RoundDecimal|[LR]Shift"
    r"|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|True|False|Abs|Pow|floor|ceiling|Integer|Float|(int_)?oo|[a-z]{1,5}\d+"
)


def load_program(path: Path) -> tuple[nn.Module, tuple[int, ...] | None, tuple[str, ...]]:
    """Return the program as a module of layers, the shape of one input image, and remarks.

    Returns:
        The lifted module; ``(c, h, w)`` of the example input, None if the input is no batch of tensors; notes.

    Raises:
        SourceError: The archive is damaged, or holds something that could run code.
    """
    from torch.export import load

    if (why := _why_unsafe(path)) is not None:
        remedy = "export the model again with torch.export.save, or give its state_dict with --arch"
        raise SourceError(f"cannot open {str(path)!r}: {why}; {remedy}")
    try:
        program = load(path)
    except Exception as error:  # whatever the deserialiser stumbles over
        raise _damaged(path, error) from error
    shape, notes = _input_of(program)
    return lift(program), shape, notes + _mode_of(program)


def _why_unsafe(path: Path) -> str | None:
    from torch.export.pt2_archive import PT2ArchiveReader

    try:
        # The reader that torch.export.load uses itself: a second zip parser could see other entries.
        with PT2ArchiveReader(str(path)) as reader:
            names = reader.get_file_names()
            reasons = (why for name in names if (why := _why_entry_unsafe(reader, name)) is not None)
            return next(reasons, None)
    except Exception as error:
        raise _damaged(path, error) from error


def _why_entry_unsafe(reader: Any, name: str) -> str | None:
    if not ENTRIES.fullmatch(name):
        return f"the archive holds {name!r}, which is not part of a plain exported program"
    if name.startswith("data/sample_inputs/"):
        return _why_pickle_unsafe(name, reader.read_bytes(name))
    if name.endswith(".json") and name.startswith(("data/weights/", "data/constants/")):
        return _why_payload_unsafe(reader, name)
    if name.startswith("models/"):
        unsafe = (why for why in map(_why_text_unsafe, _items(json.loads(reader.read_bytes(name)))) if why is not None)
        return next(unsafe, None)
    return None


def _why_payload_unsafe(reader: Any, name: str) -> str | None:
    folder = name[: name.rindex("/") + 1]
    for payload in json.loads(reader.read_bytes(name))["config"].values():
        file = str(payload["path_name"])
        if not re.fullmatch(r"(weight|tensor)_\d+", file):
            return f"the archive holds the opaque object {file!r}, which could run code"
        if payload["use_pickle"] and (why := _why_pickle_unsafe(file, reader.read_bytes(folder + file))) is not None:
            return why
    return None


def _why_pickle_unsafe(name: str, data: bytes) -> str | None:
    if not data:
        return None
    try:
        names = sorted(unsafe_globals(data))
    except Exception:  # the parser of torch raises whatever it stumbles over
        return f"its entry {name!r} is a pickle of a kind that cannot be checked"
    return f"its entry {name!r} names {names[0]}, which could run code" if names else None


def _items(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every string in a JSON value with the key it stands under."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for inner, item in value.items():
            yield from _items(item, inner)
    elif isinstance(value, list):
        for item in value:
            yield from _items(item, key)


def _why_text_unsafe(item: tuple[str, str]) -> str | None:
    key, text = item
    if key == "expr_str" and not _is_plain_expression(text):
        return f"it holds the expression {text[:60]!r}, which is more than arithmetic on sizes"
    if key == "target" and text.startswith(("torch", "_operator", "math", "#")) and not OPERATORS.fullmatch(text):
        return f"it calls {text[:60]!r}, which is no tensor operator"
    if key.endswith("_spec") and ("__enum__" in text or "defaultdict" in text or "\\" in text.replace('\\"', "")):
        return f"its {key} names Python objects to import"
    return None


def _is_plain_expression(text: str) -> bool:
    text = DECLARATION.sub("s0", text)
    words = re.findall(r"[^\W\d]\w*", text)
    no_attributes = re.search(r"\.\s*[^\W\d]", text) is None
    plain = EXPRESSION.fullmatch(text) is not None and no_attributes
    return plain and all(WORD.fullmatch(word) for word in words)


def _input_of(program: torch.export.ExportedProgram) -> tuple[tuple[int, ...] | None, tuple[str, ...]]:
    names = program.graph_signature.user_inputs
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    if not tensors or tensors[0].ndim < 2:
        return None, ()
    batch, *sizes = tensors[0].shape
    examples = [x for x in torch.utils._pytree.tree_leaves(program.example_inputs or ()) if isinstance(x, torch.Tensor)]
    if any(not isinstance(size, int) for size in sizes):
        sizes = list(examples[0].shape[1:]) if examples else []
    remark = f"the program was exported for batches of {batch} only; export it with a dynamic batch to lift that"
    return tuple(map(int, sizes)) or None, (remark,) if isinstance(batch, int) else ()


def _mode_of(program: torch.export.ExportedProgram) -> tuple[str, ...]:
    norms = [node for node in program.graph.nodes if node.target is torch.ops.aten.batch_norm.default]
    if not any(node.args[5] for node in norms):
        return ()
    return ("the program was exported in train mode: its batch norms use each batch's statistics; export model.eval()",)


def _damaged(path: Path, error: Exception) -> SourceError:
    text = str(error).strip() or type(error).__name__
    detail = text.splitlines()[0][:160]
    return SourceError(f"cannot open {str(path)!r}: its exported program is damaged or of another version ({detail})")
