"""Passes: how a traced model is read and rewritten, one step per file."""

if __name__ != "binarize.passes":  # reached as ./passes from the repository root
    raise ImportError("this folder installs as binarize.passes; import it under that name")
