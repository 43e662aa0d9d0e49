"""`binarize schemes`: the named schemes, their options and what they cost."""

from typing import Any

import click

from binarize.cli.options import json_option
from binarize.cli.output import print_json, print_lines, print_table

__all__ = ["schemes"]

NETWORKS = {"ResNet-18": "resnet18", "ResNet-34": "resnet34", "ResNet-50": "resnet50"}
SIZE = 224


@click.command()
@json_option
def schemes(as_json: bool) -> None:
    """List the schemes and what they cost."""
    from binarize.schemes.presets import PRESETS

    splits = {title: _split(name) for title, name in NETWORKS.items()}
    found = [_described(name, splits) for name in PRESETS]
    full = {title: _cost(split, None) for title, split in splits.items()}
    if as_json:
        print_json({"schemes": found, "full_precision": full})
        return
    columns = ("scheme", "planes w x a", "products per MAC", "bits per weight", *NETWORKS)
    rows = [("full precision", "", "", "32", *_cells(full))]
    rows += [
        (
            row["default"], f"{row['weight_planes']} x {row['activation_planes']}", str(row["products"]),
            str(row["bits"]), *_cells(row["costs"]),
        )
        for row in found
    ]  # fmt: skip
    print_table("schemes, with their default options", columns, rows)
    print_lines([
        "", f"ResNets of torchvision at {SIZE}x{SIZE}: Mbit of weights / 1e8 operations.",
        "Operations are float MACs + binary products / 64; scales and biases are not counted.",
        "The first and the last layer stay in full precision, everything else is binary.",
    ])  # fmt: skip
    for row in found:
        print_lines(["", f"{row['name']}: {row['summary']}", *_ranges(row), f"  {row['paper']}"])


def _split(name: str) -> Any:
    """Count a network's weights and MACs without making it: on the meta device."""
    import torch
    import torchvision

    from binarize.cost import split_of
    from binarize.passes.select import Rules

    with torch.device("meta"):
        return split_of(torchvision.models.get_model(name).eval(), torch.empty(1, 3, SIZE, SIZE), Rules())


def _cost(split: Any, scheme: Any) -> dict[str, float]:
    bits, products = (32, 64) if scheme is None else (scheme.bits, scheme.products)
    return {"megabits": split.memory(bits) / 1e6, "operations": split.operations(products)}


def _cells(costs: dict[str, dict[str, float]]) -> list[str]:
    return [f"{cost['megabits']:.1f} / {cost['operations'] / 1e8:.2f}" for cost in costs.values()]


def _described(name: str, splits: dict[str, Any]) -> dict[str, Any]:
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
        "bits": scheme.bits,
        "costs": {title: _cost(split, scheme) for title, split in splits.items()},
    }


def _ranges(row: dict[str, Any]) -> list[str]:
    options = "; ".join(f"{key}: {each['wanted']}" for key, each in row["options"].items())
    return [f"  {options}"] if options else []
