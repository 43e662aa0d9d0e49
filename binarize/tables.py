"""Text for people: sizes and counts in three digits, aligned tables."""

from collections.abc import Sequence

__all__ = ["count", "plain_table", "size"]


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
