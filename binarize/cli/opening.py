"""Opens what a user names on the command line: a model, a converted network, or an ONNX file."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, final

from binarize.cli.output import note

if TYPE_CHECKING:
    from torch import nn

    from binarize.sources import Opened

__all__ = ["Subject", "open_net", "open_original", "open_subject", "open_teacher"]


@final
@dataclasses.dataclass(frozen=True)
class Subject:
    """What a command works on.

    Attributes:
        net: the network in evaluation mode.
        converted: whether `convert` made it.
        title: short name.
        input_shape: ``(c, h, w)`` where it is known.
    """

    net: "nn.Module"
    converted: bool
    title: str
    input_shape: tuple[int, ...] | None


def open_original(spec: str, arch: str | None = None, trust: Sequence[str] = ()) -> "Opened":
    """Open a float model and print what its opening has to say."""
    from binarize.sources import open_model

    opened = open_model(spec, arch=arch, trust_packages=trust)
    for sentence in opened.notes:
        note(sentence)
    return opened


def open_net(spec: str, arch: str | None = None, trust: Sequence[str] = (), *, arch_used: bool = False) -> Subject:
    """Open a converted network; ``arch`` builds the outer code of one that was traced by parts.

    A note says where it was not needed, unless the caller uses it elsewhere (``arch_used``).
    """
    from binarize.artifact import load
    from binarize.record import record_of

    net = load(spec, model=None if arch is None else _outer_code(arch, trust))
    record = record_of(net)
    if arch is not None and "" in record.parts and not arch_used:
        note(f"--arch {arch} was not used: {spec} holds the whole network")
    return Subject(net, True, Path(spec).stem, record.input_shape)


def _outer_code(arch: str, trust: Sequence[str]) -> "nn.Module":
    """Build the model whose Python code is wanted; its weights do not matter, nor what there is to say about them."""
    from binarize.sources import open_model
    from binarize.sources.builders import find_builder

    return open_model(arch, trust_packages=trust).model if Path(arch).is_file() else find_builder(arch).build()


def open_subject(spec: str, arch: str | None = None, trust: Sequence[str] = (), *, arch_used: bool = False) -> Subject:
    """Open whatever ``spec`` names: a converted network, an ONNX file or a float model."""
    from binarize.artifact import is_artifact

    if is_artifact(spec):
        return open_net(spec, arch, trust, arch_used=arch_used)
    if spec.endswith(".onnx"):
        return _open_onnx(Path(spec))
    opened = open_original(spec, arch, trust)
    return Subject(opened.model, False, opened.name, opened.input_shape)


def open_teacher(spec: str, arch: str | None = None, trust: Sequence[str] = ()) -> Subject:
    """Open the original that a network is compared with; an error names the option that it has for itself."""
    from binarize.errors import SourceError

    try:
        return open_subject(spec, arch, trust)
    except SourceError as error:
        if "--arch" in str(error):
            error.args = (f"{error}; for a teacher the option is --teacher-arch",)
        raise


def _open_onnx(path: Path) -> Subject:
    from binarize.errors import SourceError
    from binarize.peers import OnnxModel

    if not path.is_file():
        raise SourceError(f"cannot open {str(path)!r}: there is no such file; check the path")
    return Subject(OnnxModel(path).eval(), False, path.stem, None)
