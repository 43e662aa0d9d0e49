"""Where the library of operations for ONNX Runtime lies. Imports nothing heavy, torch neither."""

import importlib.util
import sys
from pathlib import Path

from binarize.errors import ExportError

__all__ = ["onnxruntime_library"]

_NAME = "libbinarize_onnxruntime.so"


def onnxruntime_library() -> str:
    """Return the path of the library for `SessionOptions.register_custom_ops_library`.

    With it ONNX Runtime, 1.16 or later, runs the nodes of the domain `binarize` by this package's kernels, on packed
    activations and on its own threads. The file needs neither Python nor torch: a program in C or C++ can load it too.

    Raises:
        ExportError: this installation has no compiled kernels.
    """
    package = importlib.util.find_spec("binarize")
    folders = [] if package is None else package.submodule_search_locations or []
    found = next((path for folder in folders if (path := Path(folder) / "kernels" / _NAME).is_file()), None)
    if found is None:
        raise ExportError(
            f"cannot find {_NAME}: no compiled kernels are installed for {sys.platform}; "
            "reinstall without BINARIZE_NO_KERNELS"
        )
    return str(found)
