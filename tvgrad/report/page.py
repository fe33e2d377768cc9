"""The HTML report: one self-contained file with a summary in words, all figures and all tables."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment

from tvgrad.parameters import ALL

__all__ = ["html_page"]

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
.summary { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.25rem; }
.summary p { margin: .4rem 0; max-width: 62rem; }
.figures { display: grid; gap: 1.25rem; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); }
figure { margin: 0; border: 1px solid var(--line); border-radius: 10px; overflow: hidden; background: var(--card); }
figure img { display: block; width: 100%; height: auto; background: #fff; padding: .75rem; }
figcaption { padding: .75rem 1rem; color: var(--soft); font-size: .88rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; max-height: 34rem; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { position: sticky; top: 0; background: var(--card); text-align: right; font-weight: 600; }
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
<figure><img alt="{{ figure.alt }}" src="data:image/svg+xml;base64,{{ figure.data }}">
<figcaption>{{ figure.caption }}</figcaption></figure>{% endfor %}
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
</main>
</body>
</html>
"""

_CAPTIONS = {
    "norms": (
        "g_e: full-batch gradient at the weights after e epochs. Task vector: those weights minus the pretrained ones. "
        "Displacement: change of the weights in epoch e. Share: of g_e's norm in the sum over epochs 0 to K-1, K the "
        "last. Norms are Euclidean, in units of the weights and of the loss per unit of weight."
    ),
    "directions": (
        "Cosines are between vectors of the whole group. Relative residual: norm of what is left of the task vector "
        "after its projection on the first gradient, over the task vector's norm."
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
    drawn = [
        {
            "alt": path.stem.replace("_", " "),
            "data": base64.b64encode(path.read_bytes()).decode("ascii"),
            "caption": caption,
        }
        for path, caption in figures
    ]
    shown = [_table(name, table) for name, table in tables.items() if len(table)]
    return environment.from_string(_TEMPLATE).render(
        title=title, lead=lead, summary=summary, figures=drawn, tables=shown
    )


def _table(name: str, table: pd.DataFrame) -> dict[str, Any]:
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
        "caption": _CAPTIONS.get(name, ""),
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
