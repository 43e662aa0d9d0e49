"""Layers: the training form (`binary`) and the packed form (`packed`)."""
