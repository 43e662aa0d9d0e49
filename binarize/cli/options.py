"""Options that several commands share, and how their text becomes values."""

from collections.abc import Callable
from typing import Any, TypeVar, final

import click

from binarize.specs import FORMS

__all__ = ["FLOATS", "SHAPE", "arch_option", "data_options", "json_option", "model_options", "seed_option"]

_Command = TypeVar("_Command", bound=Callable[..., Any])


@final
class _Shape(click.ParamType[tuple[int, ...]]):
    """``c,h,w``, whole numbers above 0."""

    name = "C,H,W"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = str(value).replace("x", ",").split(",")
        if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
            self.fail(f"{value!r} is not channels,height,width; write 3,224,224", param, ctx)
        return tuple(int(part) for part in parts)


@final
class _Floats(click.ParamType[tuple[float, ...]]):
    """Numbers separated by commas, one per channel."""

    name = "A,B,C"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers; write 0.485,0.456,0.406", param, ctx)


SHAPE, FLOATS = _Shape(), _Floats()


def json_option(command: _Command) -> _Command:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")(command)


def seed_option(command: _Command) -> _Command:
    """Add --seed."""
    return click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of every random choice.")(
        command
    )


def arch_option(command: _Command) -> _Command:
    """Add --arch."""
    text = "What builds the network of a state_dict: a torchvision name or path/to/file.py:factory."
    return click.option("--arch", metavar="NAME", help=text)(command)


def model_options(command: _Command) -> _Command:
    """Add what opening a MODEL takes: --arch and --trust."""
    text = "Package whose classes a pickled module may use; repeatable. Its code runs when the file is opened."
    return arch_option(click.option("--trust", metavar="PACKAGE", multiple=True, help=text)(command))


def data_options(required: bool, text: str) -> Callable[[_Command], _Command]:
    """Add --data, --mean, --std and --channels."""

    def add(command: _Command) -> _Command:
        order = click.option(
            "--channels", type=click.Choice(["rgb", "bgr"]), default="rgb", show_default=True,
            help="The order that the model reads; --mean and --std are in it.",
        )(command)  # fmt: skip
        std = click.option("--std", type=FLOATS, help="Divided by after --mean, per channel.")(order)
        mean = click.option(
            "--mean", type=FLOATS, help="Subtracted after division by 255; 0, for RGB imagefolder ImageNet's."
        )(std)
        return click.option("--data", metavar="SPEC", required=required, help=f"{text}: {FORMS}.")(mean)

    return add
