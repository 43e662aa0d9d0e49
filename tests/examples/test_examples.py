import runpy
from pathlib import Path

from binarize.recipe import Recipe

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_quickstart_runs_and_writes_what_it_says(tmp_path, capsys):
    runpy.run_path(str(EXAMPLES / "quickstart.py"))["main"](tmp_path)

    printed = capsys.readouterr().out
    assert "first layer: reads the image" in printed
    assert "original " in printed.splitlines()[-1]
    assert {path.name for path in tmp_path.iterdir()} == {"digits.onnx", "digits.safetensors"}


def test_the_recipe_can_be_read():
    assert Recipe.from_toml(EXAMPLES / "recipe.toml").layers["*.downsample.0"] == "fp"
