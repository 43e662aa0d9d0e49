"""binarize: a trained CNN rewritten into aggregated binary branches that really run on xnor/popcount kernels."""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, final

__version__ = "0.1.0"

if TYPE_CHECKING:
    from binarize.artifact import load, save
    from binarize.benchmark import benchmark
    from binarize.convert import convert
    from binarize.data import load_data
    from binarize.errors import BinarizeError
    from binarize.evaluate import evaluate
    from binarize.export.library import onnxruntime_library
    from binarize.export.onnx import export_onnx
    from binarize.export.openvino import export_openvino
    from binarize.finetune import Losses, Settings, finetune
    from binarize.passes.pack import pack
    from binarize.recipe import Recipe
    from binarize.report import summary
    from binarize.sources import open_model

_HOMES = {
    "BinarizeError": "binarize.errors",
    "Losses": "binarize.finetune",
    "Recipe": "binarize.recipe",
    "Settings": "binarize.finetune",
    "benchmark": "binarize.benchmark",
    "convert": "binarize.convert",
    "evaluate": "binarize.evaluate",
    "export_onnx": "binarize.export.onnx",
    "export_openvino": "binarize.export.openvino",
    "finetune": "binarize.finetune",
    "load": "binarize.artifact",
    "load_data": "binarize.data",
    "onnxruntime_library": "binarize.export.library",
    "open_model": "binarize.sources",
    "pack": "binarize.passes.pack",
    "save": "binarize.artifact",
    "summary": "binarize.report",
}

__all__ = [
    "BinarizeError",
    "Losses",
    "Recipe",
    "Settings",
    "__version__",
    "benchmark",
    "convert",
    "evaluate",
    "export_onnx",
    "export_openvino",
    "finetune",
    "load",
    "load_data",
    "onnxruntime_library",
    "open_model",
    "pack",
    "save",
    "summary",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that `import binarize` stays quick."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'binarize' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


@final
class _Package(ModuleType):
    """Keeps `binarize.convert` the function: importing the module of that name would otherwise put itself there."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _HOMES.get(name) == value.__name__:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted(__all__)
