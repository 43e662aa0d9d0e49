"""A summary as one self-contained HTML page."""

import base64
from collections.abc import Mapping
from pathlib import Path

from binarize.artifact import replacing
from binarize.errors import OutputError
from binarize.report import Summary
from binarize.tables import count, size
from binarize.training.curves import curves_of

__all__ = ["require_html", "write_html"]


def require_html(path: Path | str) -> None:
    """Raise OutputError if an HTML report cannot be made here."""
    import importlib.util

    if importlib.util.find_spec("jinja2") is None:
        raise OutputError(
            f"cannot write the report {path}: jinja2 is not installed; run pip install 'binarize[report]'"
        )


def write_html(found: Summary, path: Path | str, *, title: str, pictures: Mapping[str, bytes] | None = None) -> None:
    """Write a self-contained page: no scripts, nothing loaded from elsewhere.

    Args:
        found: what was done.
        path: file to write.
        title: of the page.
        pictures: PNG files to show at the end, by what stands above them; see `binarize.pictures`.

    Raises:
        OutputError: jinja2 is missing, or the file cannot be written.
    """
    require_html(path)
    import jinja2

    shown = {name: base64.b64encode(held).decode() for name, held in (pictures or {}).items()}
    curves = curves_of(found.details.get("training", {}))
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_PAGE)
    text = page.render(
        title=title, summary=found, size=size, count=count, widest=_widest(found), curves=curves, pictures=shown
    )
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


def _widest(found: Summary) -> int:
    return max((layer.fp32_bytes for layer in found.layers), default=1) or 1


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
td.why { white-space: normal; color: #666; }
td svg { display: block; }
tr.kept td { background: #fafafa; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for line in summary.closing() %}
<p>{{ line }}</p>
{% endfor %}
<h2>Layers</h2>
<table>
<tr><th>layer</th><th>kind</th><th>scheme</th><th>route</th><th class="n">fp32</th><th class="n">packed</th>
<th>bytes</th><th class="n">MACs</th><th>stays fp because</th></tr>
{% for layer in summary.layers %}
<tr{% if not layer.scheme %} class="kept"{% endif %}>
<td>{{ layer.name }}</td><td>{{ layer.kind }}</td><td>{{ layer.scheme or "fp" }}</td>
<td>{{ layer.route or "" }}</td>
<td class="n">{{ size(layer.fp32_bytes) }}</td><td class="n">{{ size(layer.bytes) }}</td>
<td><svg width="120" height="10" role="img" aria-label="share of the largest layer">
<rect width="{{ (120 * layer.fp32_bytes / widest)|round(1) }}" height="10" fill="#d5dbe3"/>
<rect width="{{ (120 * layer.bytes / widest)|round(1) }}" height="10" fill="#2f6db5"/></svg></td>
<td class="n">{{ count(layer.macs) if layer.macs is not none }}</td><td class="why">{{ layer.reason or "" }}</td>
</tr>
{% endfor %}
</table>
{% if summary.reasons() %}
<h2>Kept in full precision</h2>
<ul>
{% for reason, names in summary.reasons().items() %}
<li>{{ reason }}: {{ names | join(", ") }}</li>
{% endfor %}
</ul>
{% endif %}
{% if summary.branches %}
<h2>Groups</h2>
<table>
<tr>{% for heading in summary.branch_columns() %}<th>{{ heading }}</th>{% endfor %}</tr>
{% for row in summary.branch_rows() %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% endif %}
{% if summary.groups() %}
<h2>Reconstruction</h2>
<table>
<tr><th>group</th><th class="n">error before</th><th class="n">error after</th></tr>
{% for name, before, after in summary.group_rows() %}
<tr><td>{{ name }}</td><td class="n">{{ before }}</td><td class="n">{{ after }}</td></tr>
{% endfor %}
</table>
<p>Squared difference to the original's output of that group, over its variance, on images that were not trained on.</p>
{% endif %}
{% if curves %}
<h2>Fine-tuning</h2>
{% for curve in curves %}
<p>{{ curve.name }}: {{ "%.4g to %.4g"|format(curve.first, curve.last) }}</p>
<svg width="480" height="130" viewBox="-4 -4 488 128" role="img" aria-label="{{ curve.name }} by epoch">
<polyline points="{{ curve.points }}" fill="none" stroke="#2f6db5" stroke-width="2"/></svg>
{% endfor %}
{% endif %}
{% for name, held in pictures.items() %}
<h2>{{ name }}</h2>
<img src="data:image/png;base64,{{ held }}" alt="{{ name }}" style="max-width: 100%">
{% endfor %}
<h2>Where it came from</h2>
<dl>
{% for name, values in summary.details.items() if values %}
<dt>{{ name }}</dt>
{% for key, value in values.items() if key not in ("groups", "epochs") %}
<dd>{{ key }}: {{ value }}</dd>
{% endfor %}
{% endfor %}
</dl>
</body>
</html>
"""
