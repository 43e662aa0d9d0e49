"""Rows of results: JSON lines of a sweep, one process for each so that memory is given back, and summaries of times."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

__all__ = ["read", "run_row", "summary"]


def summary(times: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Return median and tenth percentile of each contender's times in microseconds."""
    return {
        "median_us": {name: round(median(taken), 1) for name, taken in times.items()},
        "p10_us": {name: round(sorted(taken)[len(taken) // 10], 1) for name, taken in times.items()},
    }


def read(path: str) -> list[dict[str, Any]]:
    """Return the rows that a file holds; none where there is no file."""
    file = Path(path)
    return [json.loads(row) for row in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def run_row(script: str, path: str, words: list[str], known: dict[str, Any], hidden: tuple[str, ...] = ()) -> None:
    """Run ``script PATH --one WORDS...``, which prints a row; append it to the file and print it.

    Args:
        script: The sweep.
        path: Of the results.
        words: Which row.
        known: What the row holds unless the process says otherwise, also where it fails.
        hidden: Keys that are not printed.
    """
    command = [sys.executable, script, path, "--one", *words]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode == 0:
        found = json.loads(finished.stdout.strip().splitlines()[-1])
    else:
        last = (finished.stderr.strip().splitlines() or [""])[-1]  # one line, as it stands in a table
        found = {"error": f"{finished.returncode}: {last[-300:]}"}
    row = {**known, **found}
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps({key: value for key, value in row.items() if key not in hidden}), flush=True)
