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
    columns = ("scheme", "planes w x a", "products per MAC", "bits per weight")
    rows = [
        (
            row["default"], f"{row['weight_planes']} x {row['activation_planes']}", str(row["products"]),
            str(row["weight_planes"]),
        )
        for row in found
    ]  # fmt: skip
    print_table("schemes, with their default options", columns, rows)
    for row in found:
        print_lines(["", f"{row['name']}: {row['summary']}", *_ranges(row), f"  {row['paper']}"])


def _described(name: str) -> dict[str, Any]:
    from binarize.schemes.presets import PRESETS, build_scheme

    preset, scheme = PRESETS[name], build_scheme(name)
    return {
        "name": name,
        "default": scheme.spec,
        "summary": preset.summary,
        "paper": preset.paper,
        "options": {
            key: {"default": option.examples[0], "wanted": option.wanted} for key, option in preset.options.items()
        },
        "weight_planes": scheme.weight.count,
        "activation_planes": scheme.activation.count,
        "products": scheme.products,
    }


def _ranges(row: dict[str, Any]) -> list[str]:
    options = "; ".join(f"{key}: {each['wanted']}" for key, each in row["options"].items())
    return [f"  {options}"] if options else []
