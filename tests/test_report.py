import dataclasses
import json
import sys

import pytest
import torch
from models import Residual

from binarize.calibration import reconstruct
from binarize.convert import convert
from binarize.cost import tensor_bytes
from binarize.errors import ModelError, OutputError
from binarize.page import require_html, write_html
from binarize.passes.pack import pack
from binarize.recipe import Recipe
from binarize.record import record_of
from binarize.report import summary
from binarize.schemes.presets import build_scheme
from binarize.tables import plain_table, size


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


def test_several_schemes_are_named_with_their_layers():
    recipe = Recipe("xnor-net", ends="encoding:w=8,a=8", exactness="int8", smallest=0)
    net = convert(Residual().eval(), torch.randn(2, 3, 8, 8), recipe=recipe)

    lines = summary(net).closing()

    assert " layers converted (" in lines[0]
    assert "2 encoding:w=8,a=8" in lines[0]
    assert " xnor-net" in lines[0]
    assert "exactness int8 is accepted on route int8; popcount is always exact" in lines


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
    monkeypatch.setattr(reconstruct, "WHOLE_STEPS", 2)
    recipe = Recipe(scheme="encoding:w=2,a=2", reconstruct=True)
    net = convert(Residual().eval(), recipe=recipe, data=torch.randn(16, 3, 8, 8).split(8))
    found = summary(net)

    assert not summary(forms["training"]).groups()
    assert list(found.groups()) == ["block1", "block2", reconstruct.WHOLE]
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


@pytest.fixture(scope="module")
def branched():
    torch.manual_seed(0)
    model, recipe = Residual().eval(), Recipe(scheme="group-net:k=3", keep=("block2.shortcut",))
    net = convert(model, torch.randn(8, 3, 8, 8), recipe=recipe)
    return {"original": model, "training": net, "packed": pack(net), "recipe": recipe}


def test_layers_of_branches_count_every_copy(branched):
    found = summary(branched["packed"])
    rows = {layer.name: layer for layer in found.layers}
    one = summary(branched["original"], recipe=Recipe(scheme="xnor-net"), input_shape=(3, 8, 8))
    ones = {layer.name: layer for layer in one.layers}

    for name in ("block1.conv1", "block2.conv2"):
        assert rows[name].group == name.partition(".")[0]
        assert rows[name].bytes == 3 * ones[name].bytes
        assert (rows[name].macs, rows[name].products) == (ones[name].macs, 3)
    kept = rows["block2.shortcut"]  # in full precision in each of the three branches
    assert (kept.bytes, kept.macs) == (3 * kept.fp32_bytes, 3 * ones["block2.shortcut"].macs)
    assert found.totals.binary_macs == 3 * sum(layer.macs for layer in found.layers if layer.scheme)
    assert found.totals.bytes == tensor_bytes(branched["packed"])


def test_all_forms_say_the_same_about_branches(branched):
    forms = [summary(branched[form], recipe=branched["recipe"], input_shape=(3, 8, 8)) for form in
             ("original", "training", "packed")]  # fmt: skip

    assert forms[1].layers == forms[2].layers
    assert {layer.route for layer in forms[2].layers if layer.scheme} <= {"popcount", "int8"}
    assert forms[0].layers == tuple(dataclasses.replace(layer, route=None) for layer in forms[1].layers)
    assert forms[0].branches == forms[1].branches == forms[2].branches
    assert forms[1].totals == forms[2].totals
    assert forms[0].totals.binary_macs == forms[1].totals.binary_macs


def test_branches_do_not_make_the_original_larger(branched):
    single = summary(pack(convert(branched["original"], torch.randn(8, 3, 8, 8), "xnor-net")))

    assert summary(branched["packed"]).totals.fp32_bytes == single.totals.fp32_bytes


def test_the_table_of_groups_names_kind_count_and_connection(branched, tmp_path):
    found = summary(branched["packed"])

    assert found.branch_rows() == [
        ("block1", "residual", "3", "its input is not the output of a group of branches"),
        ("block2", "residual", "3", "gated"),
    ]
    assert "2 groups of branches, 1 gated" in str(found)
    assert "1 group of branches, 0 gated" in str(dataclasses.replace(found, branches=found.branches[:1]))
    write_html(found, tmp_path / "page.html", title="net")
    assert "<td>block2</td><td>residual</td><td>3</td><td>gated</td>" in (tmp_path / "page.html").read_text()
    assert json.loads(json.dumps(found.to_dict()))["branches"][1]["gate"] == "gated"


def test_a_group_without_branches_says_why_and_its_layers_have_as_many_planes():
    class Tied(Residual):
        def forward(self, x):
            return self.block2.conv2(self.block2(self.block1(self.stem(x)))).flatten(1)

    found = summary(convert(Tied().eval(), torch.randn(8, 3, 8, 8), "group-net:k=3"))
    schemes = {layer.name: layer.scheme for layer in found.layers}

    assert schemes["block1.conv1"] == build_scheme("group-net:k=3").spec
    assert schemes["block2.conv1"] == build_scheme("group-net:k=3,unit=layer").spec
    assert found.branch_rows()[1] == ("block2", "", "", "layer by layer: 'block2.conv2' is also called elsewhere")
    assert "1 layer by layer" in str(found)


def test_routed_branches_count_those_that_run_and_the_router():
    torch.manual_seed(0)
    net = convert(Residual().eval(), torch.randn(8, 3, 8, 8), "group-net:k=2,stored=4")
    found, static = (summary(n) for n in (net, convert(Residual().eval(), torch.randn(8, 3, 8, 8), "group-net:k=2")))

    assert found.totals.binary_macs == static.totals.binary_macs
    assert [layer.bytes for layer in found.layers if layer.scheme] == [
        2 * layer.bytes for layer in static.layers if layer.scheme
    ]
    routers = 2 * (8 * 8 + 8 * 4)  # two groups of 8 channels, 8 hidden features, 4 branches
    assert found.totals.float_macs == static.totals.float_macs + routers
    assert found.branch_rows()[0][2] == "2 of 4"
