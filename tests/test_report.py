import json
import sys

import pytest
import torch
from models import Residual

from binarize.calibration import reconstruct
from binarize.convert import convert
from binarize.cost import tensor_bytes
from binarize.errors import ModelError, OutputError
from binarize.passes.pack import pack
from binarize.recipe import Recipe
from binarize.record import record_of
from binarize.report import plain_table, require_html, size, summary, write_html


@pytest.fixture(scope="module")
def forms():
    torch.manual_seed(0)
    model = Residual().eval()
    net = convert(model, torch.randn(8, 3, 8, 8), "encoding:w=2,a=2")
    return {"original": model, "training": net, "packed": pack(net)}


@pytest.mark.parametrize("form", ["original", "training", "packed"])
def test_a_summary_lists_every_layer_with_scheme_or_reason(form, forms):
    found = summary(forms[form], input_shape=(3, 8, 8))

    assert found.form == form
    assert len(found.layers) == 7
    assert all((layer.scheme is None) != (layer.reason is None) for layer in found.layers)
    assert found.totals.converted + found.totals.kept == 7


def test_training_and_packed_form_have_the_same_figures(forms):
    training, packed = (summary(forms[form]) for form in ("training", "packed"))

    assert training.layers == packed.layers
    assert training.totals == packed.totals


def test_the_total_of_the_packed_form_is_what_it_holds(forms):
    assert summary(forms["packed"]).totals.bytes == tensor_bytes(forms["packed"])


def test_the_total_of_the_original_is_what_it_holds(forms):
    assert summary(forms["original"]).totals.fp32_bytes == tensor_bytes(forms["original"])


def test_binary_macs_count_one_product_per_pair_of_planes(forms):
    found = summary(forms["packed"])
    converted = sum(layer.macs for layer in found.layers if layer.scheme)

    assert found.totals.binary_macs == 2 * 2 * converted


def test_the_text_names_layers_reasons_and_sums(forms):
    text = str(summary(forms["packed"]))

    assert "first layer: reads the image" in text
    assert "encoding:w=2,a=2" in text
    assert "times smaller" in text


def test_reasons_are_grouped(forms):
    reasons = summary(forms["packed"]).reasons()

    assert [names for reason, names in reasons.items() if reason.startswith("first")] == [["stem.0"]]


def test_an_original_without_a_shape_is_not_run():
    found = summary(Residual())

    assert found.totals.binary_macs is None
    assert all(layer.macs is None for layer in found.layers)


def test_a_shape_that_does_not_fit_is_an_error(forms):
    with pytest.raises(ModelError, match="1x1x8x8"):
        summary(forms["packed"], input_shape=(1, 8, 8))


def test_json_holds_only_plain_values(forms):
    values = summary(forms["packed"]).to_dict()

    assert json.loads(json.dumps(values))["totals"] == values["totals"]


def test_a_summary_leaves_the_network_as_it_was(forms):
    before = {name: tensor.clone() for name, tensor in forms["training"].state_dict().items()}
    summary(forms["training"])

    after = forms["training"].state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert record_of(forms["training"]).input_shape == (3, 8, 8)


def test_the_page_escapes_what_it_is_given(forms, tmp_path):
    write_html(summary(forms["packed"]), tmp_path / "page.html", title="<b>net</b>")

    page = (tmp_path / "page.html").read_text()
    assert "&lt;b&gt;net" in page
    assert "block1.conv1" in page


def test_groups_show_their_error_before_and_after(forms, monkeypatch, tmp_path):
    monkeypatch.setattr(reconstruct, "STEPS", 2)
    recipe = Recipe(scheme="encoding:w=2,a=2", reconstruct=True)
    net = convert(Residual().eval(), recipe=recipe, data=torch.randn(16, 3, 8, 8).split(8))
    found = summary(net)

    assert not summary(forms["training"]).groups()
    assert list(found.groups()) == ["block1", "block2"]
    assert found.group_rows()[0] == ("block1", *(f"{found.groups()['block1'][key]:.4f}" for key in ("before", "after")))
    assert "of 2 groups closer" in str(found)
    assert "error before" in str(found)
    write_html(found, tmp_path / "page.html", title="net")
    assert f'<td class="n">{found.group_rows()[1][1]}</td>' in (tmp_path / "page.html").read_text()


def test_without_jinja2_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(OutputError, match=r"binarize\[report\]"):
        require_html("page.html")


@pytest.mark.parametrize(
    ("amount", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_960, "100 kB"), (46_800_000, "46.8 MB")]
)
def test_sizes_read_in_three_digits(amount, text):
    assert size(amount) == text


def test_a_plain_table_is_aligned():
    assert plain_table(("name", "n"), [("a", "1"), ("bcdef", "22")]).splitlines() == [
        "name    n", "-----  --", "a       1", "bcdef  22",
    ]  # fmt: skip
