"""Opens a user's model: files told apart without unpickling, torchvision names, factories."""

from binarize.sources.opening import Opened, open_model, require_finite

__all__ = ["Opened", "open_model", "require_finite"]
