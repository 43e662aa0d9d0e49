"""What commands print: tables and progress for people, plain lines for pipes, one JSON object for machines."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import click

from binarize.errors import BinarizeError, NothingConvertedError

__all__ = ["Progress", "fail", "note", "one_line", "print_json", "print_lines", "print_table", "progress_bar"]

Progress = Callable[[str, int, int], None]


def fail(message: str) -> None:
    """Print the one line that ends a run."""
    click.echo(f"binarize: {message}", err=True)


def note(message: str) -> None:
    """Print a sentence that a user should read; never on stdout, which belongs to the result."""
    click.echo(f"binarize: {message}", err=True)


def one_line(error: BinarizeError) -> str:
    """Return an error's message on one line; a long list of reasons is grouped."""
    if isinstance(error, NothingConvertedError):
        counts: dict[str, int] = {}
        for reason in error.reasons.values():
            counts[reason] = counts.get(reason, 0) + 1
        grouped = "; ".join(f"{count} x {reason}" for reason, count in counts.items())
        remedy = "`binarize inspect` lists them; a recipe's `convert` patterns overrule the defaults"
        return f"no layer was converted: {grouped or 'the model has no Conv2d and no Linear layer'}; {remedy}"
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())


def print_json(values: Mapping[str, Any]) -> None:
    """Print one JSON object on one line of stdout; what JSON has no word for becomes null or text."""
    click.echo(json.dumps(_plain(values), default=str, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value - value != 0:  # NaN or infinite
        return None
    return value


def print_lines(lines: Sequence[str]) -> None:
    """Print sentences on stdout."""
    for line in lines:
        click.echo(line)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> None:
    """Print a table on stdout: drawn on a terminal, aligned plain text otherwise."""
    if not sys.stdout.isatty():
        from binarize.tables import plain_table

        click.echo(plain_table(columns, rows, left))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*[_escaped(cell) for cell in row])
    Console().print(table)


def _escaped(cell: str) -> str:
    from rich.markup import escape

    return escape(cell)


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress | None]:
    """Give a callback ``(stage, done, total)`` that draws a bar with the time left, or None without a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        stages: dict[str, Any] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in stages:
                stages[stage] = bar.add_task(stage, total=total)
            bar.update(stages[stage], completed=done, total=total)

        yield report
