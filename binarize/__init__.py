"""binarize: a trained CNN rewritten into aggregated binary branches that really run on xnor/popcount kernels."""

__version__ = "0.1.0"

from binarize.artifact import load, save
from binarize.benchmark import benchmark
from binarize.convert import convert
from binarize.errors import BinarizeError
from binarize.evaluate import evaluate
from binarize.export.onnx import export_onnx
from binarize.passes.pack import pack
from binarize.recipe import Recipe
from binarize.report import summary
from binarize.sources import open_model

__all__ = [
    "BinarizeError",
    "Recipe",
    "__version__",
    "benchmark",
    "convert",
    "evaluate",
    "export_onnx",
    "load",
    "open_model",
    "pack",
    "save",
    "summary",
]
