"""What a user has lying on the desk, and the command line run in this process."""

import json
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from binarize.cli import main

NETWORK = """
from torch import nn


def network():
    def conv(inputs, outputs):
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 7)]
    return nn.Sequential(*conv(3, 16), *conv(16, 16), *conv(16, 16), *head)
"""


@dataclass
class Desk:
    """What a user has lying on the desk: a model file, a checkpoint, data, and a converted network."""

    folder: Path
    factory: str
    checkpoint: str
    data: str
    net: str


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def run_json(*words):
    result = run(*words, "--json")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 1, result.stdout
    return json.loads(lines[0])


def refused(*words):
    """Run what must be refused; return the one line that says why."""
    result = run(*words)
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    assert result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert last.startswith(("binarize: cannot", "binarize: no "))
    assert "Traceback" not in result.stderr
    return last
