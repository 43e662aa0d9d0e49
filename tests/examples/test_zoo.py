"""The networks that come with the examples can still be read, and run."""

from pathlib import Path

import pytest
import torch

import binarize

ZOO = Path(__file__).parents[2] / "examples" / "zoo"
FILES = sorted(ZOO.glob("*.safetensors"))


def test_the_zoo_has_networks_small_enough_to_ship():
    assert len(FILES) >= 4
    assert all(path.stat().st_size < 1_000_000 for path in FILES)


@torch.no_grad()
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_network_is_loaded_runs_and_has_its_log(path):
    net, images = binarize.load(path), torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    scores = net((images - 0.45) / 0.225)

    assert scores.shape == (2, 10)
    assert bool(torch.isfinite(scores).all())
    assert not torch.equal(scores[0], scores[1])
    last = path.with_suffix(".csv").read_text().splitlines()[-1].split(",")
    assert int(last[1]) == len(path.with_suffix(".csv").read_text().splitlines()) - 1
