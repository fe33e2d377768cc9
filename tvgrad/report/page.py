"""The HTML report: one self-contained file with a summary in words, all figures and all tables."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment
from markupsafe import Markup, escape

from tvgrad.report.empty_columns import missing_results, without_empty_columns
from tvgrad.vectors.parameters import ALL

MOST_ROWS = 2000

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --ink: #1d2530; --soft: #5b6675; --line: #d9dfe7; --paper: #ffffff; --card: #f6f8fa;
  --good: #1a7f4b; --bad: #b42318; --plain: #8a6100; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf2; --soft: #9fabba; --line: #333c49; --paper: #12161c;
  --card: #1a2029; --good: #5ecb93; --bad: #ff8a80; --plain: #e2b75a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
.lead { color: var(--soft); margin: 0 0 1.5rem; }
.summary { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.25rem;
  font-size: 1.02rem; }
.summary p { margin: .5rem 0; max-width: 70rem; overflow-wrap: anywhere; }
.figures { display: grid; gap: 1.25rem; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr));
  align-items: start; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 10px; overflow: hidden; background: var(--card); }
figure img { display: block; width: 100%; height: auto; background: #fff; padding: .75rem; }
figcaption { padding: .75rem 1rem; color: var(--soft); font-size: .88rem; }
figcaption i, .caption i { font-family: Georgia, "Times New Roman", serif; font-size: 1.08em; }
sub { font-size: .72em; line-height: 0; }
.family { grid-column: 1 / -1; }
.family div { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr));
  background: #fff; align-items: center; }
@media (max-width: 40rem) { figure img { padding: .25rem; } main { padding: 1.25rem .75rem 3rem; } }
/* Pictures are drawn on white; a dark page turns their lightness round and keeps their hues. */
@media (prefers-color-scheme: dark) { figure img { filter: invert(.93) hue-rotate(180deg); }
  .family div { background: #121212; } }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; max-height: 34rem; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { position: sticky; top: 0; background: var(--card); text-align: right; font-weight: 600; white-space: normal;
  vertical-align: bottom; }
td.word, th.word { text-align: left; } td.long { white-space: normal; min-width: 18rem; text-align: left; }
tr:last-child td { border-bottom: 0; }
.exact { color: var(--good); font-weight: 600; } .fails { color: var(--bad); font-weight: 600; }
.does { color: var(--plain); font-weight: 600; }
details { margin-top: .75rem; } summary { cursor: pointer; color: var(--soft); }
.caption { color: var(--soft); font-size: .88rem; margin: .5rem 0 0; max-width: 62rem; }
@media print { .scroll { max-height: none; overflow: visible; } }
</style>
</head>
<body>
<main>
<h1>{{ title }}</h1>
<p class="lead">{{ lead }}</p>
<section class="summary">{% for sentence in summary %}<p>{{ sentence }}</p>{% endfor %}</section>
{% if figures %}<h2>Figures</h2>
<div class="figures">{% for figure in figures %}
<figure{% if figure.pictures|length > 1 %} class="family"{% endif %}><div>{% for picture in figure.pictures %}
<img alt="{{ picture.alt }}" src="data:image/svg+xml;base64,{{ picture.data }}">{% endfor %}
</div><figcaption>{{ figure.caption }}</figcaption></figure>{% endfor %}
</div>{% endif %}
{% for table in tables %}<h2 id="{{ table.name }}">{{ table.title }}</h2>
{% for part in table.parts %}{% if part.folded %}<details><summary>{{ part.folded }}</summary>{% endif %}
<div class="scroll"><table><thead><tr>
{% for head in part.heads %}<th{% if head.word %} class="word"{% endif %}>{{ head.text }}</th>{% endfor %}
</tr></thead>
<tbody>{% for row in part.rows %}<tr>
{% for cell in row %}<td{% if cell.kind %} class="{{ cell.kind }}"{% endif %}>{{ cell.text }}</td>{% endfor %}
</tr>{% endfor %}</tbody></table></div>{% if part.folded %}</details>{% endif %}{% endfor %}
<p class="caption">{{ table.caption }}</p>
{% endfor %}
{% if missing %}<h2>Not computed yet</h2>
{% for sentence in missing %}<p class="caption">{{ sentence }}</p>{% endfor %}{% endif %}
</main>
</body>
</html>
"""

_CAPTIONS = {
    "norms": (
        "g_e: full-batch gradient at the weights after e epochs. Task vector: those weights minus the pretrained ones. "
        "Displacement: change of the weights in epoch e. Share: of g_e's norm in the sum over epochs 0 to K-1, K the "
        "last. Mean batch gradient norm: of the gradients that the epoch's steps consumed, at moving weights, where "
        "they were recorded. Relative norm: of the task vector over that of the pretrained weights. Norms are "
        "Euclidean: of gradients in units of the loss per unit of weight, of task vectors and displacements in "
        "units of weights."
    ),
    "directions": (
        "Cos task vector descent: between the task vector tau_e and minus the first gradient g_0. Cos gradient first: "
        "between g_e and g_0. Cos task vector first: between tau_e and tau_1. Cos successive displacements: between "
        "the changes of the weights in epoch e and in the one before. Relative residual: norm of what is left of tau_e "
        "after its projection on g_0, over the norm of tau_e."
    ),
    "equivalence": (
        "Worst ratio to budget: largest deviation of a coordinate from the formula, over a bound on its rounding in "
        "one optimizer step; at most 1 when exact. Frozen share: of the coordinates with a gradient, those that the "
        "step left as they were. Gradient relative error: of the consumed against the full-batch gradient."
    ),
    "cross_task": (
        "Two tasks after the same number of epochs. Sign agreement: share of equal signs among the coordinates where "
        "neither task vector is zero."
    ),
    "second_order": (
        "error_norm: measured norm of the task vector plus S_k g_0. predicted_norm and the residuals are estimates "
        "from the pretrained weights; bound is an upper bound, empty where there is none."
    ),
    "error_budget": (
        "Terms that add up to the task vector plus S g_0. Shares sum to one, may be negative, and depend on the order "
        "of the terms."
    ),
}


def html_page(
    tables: Mapping[str, pd.DataFrame],
    figures: Sequence[tuple[Path, str]],
    summary: Sequence[str],
    title: str,
    lead: str,
) -> str:
    """Render a report as one HTML file that needs nothing beside it.

    Whatever comes from a run (names, reasons) is escaped.

    Args:
        tables: name -> table.
        figures: SVG files and their captions.
        summary: sentences for the top.
        title: the page's title.
        lead: one line under it.

    Returns:
        The page.
    """
    environment = Environment(autoescape=True, trim_blocks=True)
    # Pictures of one run each follow each other under one caption.
    drawn = [
        {"caption": _with_symbols(caption), "pictures": [_picture(path) for path, _ in same]}
        for caption, same in groupby(figures, key=lambda figure: figure[1])
    ]
    shown = [_table(name, table) for name, table in tables.items() if len(table)]
    return environment.from_string(_TEMPLATE).render(
        title=title, lead=lead, summary=summary, figures=drawn, tables=shown, missing=missing_results(tables)
    )


def _picture(path: Path) -> dict[str, str]:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return {"alt": path.stem.replace("_", " "), "data": data}


def _with_symbols(caption: str) -> Markup:
    """Escape a caption, and set g_0, tau_e and their like as symbols."""
    greek = {"tau": "τ", "theta": "θ"}
    found = re.sub(
        r"\b(g|tau|theta|S)_([a-zA-Z0-9]+)\b",
        lambda match: f"<i>{greek.get(match[1], match[1])}</i><sub>{match[2]}</sub>",
        str(escape(caption)),
    )
    return Markup(found)  # noqa: S704 - escaped above


def _table(name: str, table: pd.DataFrame) -> dict[str, Any]:
    table = without_empty_columns(table)
    parts = []
    if "group" in table and table["group"].nunique() > 1:
        parts.append(_part(table[table["group"] == ALL].drop(columns="group")))
        blocks = table[table["group"] != ALL]
        folded = f"By group of parameters ({blocks['group'].nunique()} groups, {len(blocks)} rows)"
        if len(blocks) > MOST_ROWS:
            folded += f"; the first {MOST_ROWS} are shown, all are in the csv files"
        parts.append(_part(blocks.head(MOST_ROWS), folded))
    else:
        parts.append(_part(table))
    return {
        "name": name,
        "title": name.replace("_", " ").capitalize(),
        "parts": parts,
        "caption": _with_symbols(_CAPTIONS.get(name, "")),
    }


def _part(table: pd.DataFrame, folded: str = "") -> dict[str, Any]:
    numeric = {column: pd.api.types.is_numeric_dtype(table[column]) for column in table}
    heads = [{"text": str(column).replace("_", " "), "word": not numeric[column]} for column in table]
    rows = [
        [_cell(value, column, numeric[column]) for column, value in zip(table.columns, row, strict=True)]
        for row in table.itertuples(index=False)
    ]
    return {"heads": heads, "rows": rows, "folded": folded}


def _cell(value: Any, column: str, numeric: bool) -> dict[str, str]:
    if isinstance(value, float):
        text = "" if math.isnan(value) else f"{value:.5g}"
        return {"text": text, "kind": "" if numeric else "word"}
    if column == "holds":
        return {"text": str(value), "kind": f"word {str(value).split()[0]}"}
    kind = "" if numeric else "long" if column == "reason" else "word"
    return {"text": str(value), "kind": kind}
