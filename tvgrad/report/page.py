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
from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape

from tvgrad.report.columns import TABLES, defined, printed, sentences
from tvgrad.report.empty_columns import missing_results, without_empty_columns
from tvgrad.report.first_epochs import even_shares
from tvgrad.vectors.parameters import ALL

MOST_ROWS = 2000

_PAGES = Environment(loader=PackageLoader("tvgrad.report"), autoescape=True, trim_blocks=True)


def html_page(
    tables: Mapping[str, pd.DataFrame],
    figures: Sequence[tuple[Path, str]],
    summary: Sequence[str],
    title: str,
    lead: str,
    refused: Mapping[str, str] | None = None,
) -> str:
    """Render a report as one HTML file that needs nothing beside it.

    Whatever comes from a run (names, reasons) is escaped.

    Args:
        tables: name -> table.
        figures: SVG files and their captions.
        summary: sentences for the top.
        title: the page's title.
        lead: one line under it.
        refused: run -> why it cannot be explained.

    Returns:
        The page.
    """
    # Pictures of one run each follow each other under one caption.
    drawn = [
        {"caption": _with_symbols(caption), "pictures": [_picture(path) for path, _ in same]}
        for caption, same in groupby(figures, key=lambda figure: figure[1])
    ]
    shown = [_table(name, table) for name, table in tables.items() if len(table)]
    return _PAGES.get_template("page.html.j2").render(
        title=title,
        lead=lead,
        summary=summary,
        figures=drawn,
        tables=shown,
        missing=missing_results(tables, refused),
    )


def _picture(path: Path) -> dict[str, str]:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return {"alt": path.stem.replace("_", " "), "data": data}


def _with_symbols(text: str) -> Markup:
    """Escape a text, and set its formulas: g_0, tau_e and their like as symbols, `||` as the bar of a norm."""
    names = {"tau": "τ", "theta": "θ", "delta": "δ"}
    plain = re.sub(r"\bhat g\b", "ĝ", str(escape(text)).replace("`", "").replace("||", "‖"))
    plain = re.sub(r"\bkappa\b", "κ", plain)
    found = re.sub(
        r"\b(g|G|tau|theta|delta|S)_(\w+|\(.+?\))(?:\^(\w))?(?!\w)",
        lambda match: (
            f"<i>{names.get(match[1], match[1])}</i><sub>{match[2].strip('()')}</sub>"
            + (f"<sup>{match[3]}</sup>" if match[3] else "")
        ),
        plain,
    )
    return Markup(found)  # noqa: S704 - escaped above


def _caption(name: str, table: pd.DataFrame) -> str:
    """The symbols of a table, and what each column that is shown means."""
    if name not in TABLES:
        return ""
    text = TABLES[name]
    meanings = [f"{column.name.replace('_', ' ')}: {column.meaning}" for column in defined(name, list(table))]
    return sentences(text.symbols, *meanings, text.note, even_shares(table) if name == "norms" else "")


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
        "caption": _with_symbols(_caption(name, table)),
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
        text = "" if math.isnan(value) else printed(value, column, 5)
        return {"text": text, "kind": "" if numeric else "word"}
    if column == "holds":
        return {"text": str(value), "kind": f"word {str(value).split()[0]}"}
    kind = "" if numeric else "long" if column == "reason" else "word"
    return {"text": str(value), "kind": kind}
