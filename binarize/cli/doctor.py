"""`binarize doctor`: what is installed, which kernels run here, and why the others do not."""

import os
import platform
from importlib import metadata
from typing import Any

import click

from binarize.cli.options import json_option
from binarize.cli.output import print_json, print_lines, print_table

__all__ = ["doctor"]

ROUTE_OF_FORM = {"planes": "popcount", "codes": "int8"}

# Distribution -> the extra that brings it; None for what is always installed.
PACKAGES: dict[str, str | None] = {
    "torch": None, "torchvision": None, "numpy": None, "safetensors": None, "click": None, "rich": None,
    "onnx": None, "onnxscript": None, "onnxruntime": None,
    "jinja2": "report", "matplotlib": "report", "scikit-learn": "demo", "accelerate": "distributed",
    "cuda-core": "cuda",
}  # fmt: skip


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what is installed and which kernels run here."""
    found = _examine()
    if as_json:
        print_json(found)
        return
    print_table("packages", ("package", "version", "note"), _package_rows(found["packages"]), left=(0, 1, 2))
    click.echo()
    kernels = [
        (row["name"], " and ".join(row["routes"]), "runs" if row["reason"] is None else "no", row["reason"] or "")
        for row in found["kernels"]
    ]
    print_table("kernels, best first", ("kernel", "routes", "here", "because"), kernels, left=(0, 1, 2, 3))
    print_lines(["", *_sentences(found)])


def _examine() -> dict[str, Any]:
    import torch

    from binarize import __version__
    from binarize.kernels.cuda.devices import cuda_why_not
    from binarize.kernels.dispatch import LEVELS
    from binarize.kernels.speeds import speeds

    return {
        "binarize": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "packages": {name: _version(name) for name in PACKAGES},
        "kernels": [
            {"name": level.name, "reason": level.why_not(), "routes": [ROUTE_OF_FORM[form] for form in level.forms]}
            for level in LEVELS
        ],
        "forced_kernel": os.environ.get("BINARIZE_KERNEL") or None,
        "asked_route": os.environ.get("BINARIZE_ROUTE") or None,
        "products_per_nanosecond": {"popcount": speeds().planes, "int8": speeds().codes},
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "cuda_device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cuda_reason": cuda_why_not(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _package_rows(packages: dict[str, str | None]) -> list[tuple[str, str, str]]:
    return [
        (name, version or "missing", "" if version else f"optional: pip install 'binarize[{PACKAGES[name]}]'")
        for name, version in packages.items()
    ]


def _sentences(found: dict[str, Any]) -> list[str]:
    rates = found["products_per_nanosecond"]
    forced = " (BINARIZE_KERNEL)" if found["forced_kernel"] else ""
    routed = f"{found['asked_route']} (BINARIZE_ROUTE)" if found["asked_route"] else "the quicker route"
    device = found["cuda_device"] or "none"
    gpu = "packed networks run on it" if found["cuda_reason"] is None else found["cuda_reason"]
    return [
        f"binarize {found['binarize']}, Python {found['python']} on {found['machine']}",
        *(
            f"route {route}: {_kernel(found, route)}{forced}, {rates[route]:.0f} products a nanosecond"
            for route in rates
        ),
        f"packed layers take {routed}, on {found['threads']} of {found['cpus']} CPUs",
        f"GPU: {device}; {gpu}",
        *_wrong(found),
    ]


def _wrong(found: dict[str, Any]) -> list[str]:
    """Return what is wrong with the environment's wishes: names that do not exist or do not run here."""
    from binarize.errors import nearest
    from binarize.kernels.dispatch import names_in

    reasons = {row["name"]: row["reason"] for row in found["kernels"]}
    lines = []
    for name in names_in(found["forced_kernel"]) if found["forced_kernel"] else ():
        why = reasons[name] if name in reasons else f"there is no such kernel{nearest(name, list(reasons))}"
        if why is not None:
            lines.append(f"BINARIZE_KERNEL names {name!r}: {why}")
    route = found["asked_route"]
    if route and route not in found["products_per_nanosecond"]:
        lines.append(f"BINARIZE_ROUTE is {route!r}: there is no such route{nearest(route, ROUTE_OF_FORM.values())}")
    return lines


def _kernel(found: dict[str, Any], route: str) -> str:
    """Return the name of the kernel that runs a route, or "none"."""
    from binarize.kernels.dispatch import names_in

    rows = [row for row in found["kernels"] if row["reason"] is None and route in row["routes"]]
    forced = found["forced_kernel"]
    wanted = names_in(forced) if forced else [row["name"] for row in rows]
    return next((row["name"] for row in rows if row["name"] in wanted), "none")
