"""``python -m binarize``: the command line."""

from binarize.cli import main

main()
