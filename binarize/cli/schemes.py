"""`binarize schemes`: the named schemes, their options and what they cost."""

from typing import Any

import click

from binarize.cli.options import json_option
from binarize.cli.output import print_json, print_lines, print_table

__all__ = ["schemes"]


@click.command()
@json_option
def schemes(as_json: bool) -> None:
    """List the schemes and what they cost."""
    from binarize.schemes.presets import PRESETS

    found = [_described(name) for name in PRESETS]
    if as_json:
        print_json({"schemes": found})
        return
    columns = ("scheme", "planes w x a", "products", "bits/weight", "what it is", "paper")
    rows = [
        (
            row["default"], f"{row['weight_planes']} x {row['activation_planes']}", str(row["products"]),
            str(row["weight_planes"]), row["summary"], row["paper"],
        )
        for row in found
    ]  # fmt: skip
    print_table("schemes, with their default options", columns, rows, left=(0, 4, 5))
    print_lines(["", *(_ranges(row) for row in found if row["options"])])


def _described(name: str) -> dict[str, Any]:
    from binarize.schemes.presets import PRESETS, build_scheme

    preset, scheme = PRESETS[name], build_scheme(name)
    return {
        "name": name,
        "default": scheme.spec,
        "summary": preset.summary,
        "paper": preset.paper,
        "options": {key: {"default": d, "least": a, "most": b} for key, (d, a, b) in preset.options.items()},
        "weight_planes": scheme.weight.count,
        "activation_planes": scheme.activation.count,
        "products": scheme.products,
    }


def _ranges(row: dict[str, Any]) -> str:
    options = ", ".join(f"{key} from {each['least']} to {each['most']}" for key, each in row["options"].items())
    return f"{row['name']}: {options}; for example {row['default']}"
