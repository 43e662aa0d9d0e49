"""Text for people: sizes and counts in three digits, measured figures, aligned tables."""

from collections.abc import Sequence

__all__ = ["count", "figure", "heading", "plain_table", "size"]

SHARES = {
    "top1": "top-1", "top5": "top-5", "miou": "mIoU", "pixel_accuracy": "pixel accuracy", "map": "mAP",
    "map50": "mAP at 0.5",
}  # fmt: skip


def size(amount: int) -> str:
    """Return bytes for a person: powers of 1000, three digits."""
    return f"{_scaled(amount)}B"


def count(amount: int) -> str:
    """Return a count for a person: powers of 1000, three digits."""
    return _scaled(amount).rstrip()


def _scaled(amount: int) -> str:
    value = float(amount)
    for unit in ("", "k", "M", "G"):
        if value < 999.5:
            digits = 0 if not unit or value >= 99.95 else 1
            return f"{value:.{digits}f} {unit}"
        value /= 1000
    return f"{value:.1f} T"


def heading(name: str) -> str:
    """Return how a figure of `evaluate` is called in print; others keep their names."""
    return SHARES.get(name, name)


def figure(name: str, value: float) -> str:
    """Return a measured figure with its heading: in percent where it is a share, else with four decimals."""
    if name in SHARES and 0 <= value <= 1:
        return f"{heading(name)} {value:.2%}"
    return f"{heading(name)} {value:.4f}".strip()


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Return an aligned table in plain text; columns are right-aligned but for those in ``left``."""
    table = [list(columns), *[list(row) for row in rows]]
    widths = [max(len(row[index]) for row in table) for index in range(len(columns))]
    cells = [
        [cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        for row in table
    ]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join("  ".join(row).rstrip() for row in cells)
