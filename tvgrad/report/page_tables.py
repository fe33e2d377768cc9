"""The tables of the page: headings in signs, cells of few digits with all digits behind them, groups as data."""

from __future__ import annotations

import json
import math
from typing import Any

import pandas as pd
from markupsafe import Markup

from tvgrad.report.columns import TABLES, defined, sentences
from tvgrad.report.empty_columns import without_empty_columns
from tvgrad.report.first_epochs import even_shares
from tvgrad.report.headings import column_of, heading, signs, with_symbols
from tvgrad.report.latex import escaped, latex_heading
from tvgrad.vectors.parameters import ALL
from tvgrad.wording import counted, printed

MOST_ROWS = 2000
DIGITS = 4

VERDICTS = {
    "exact": "good", "yes": "good", "fails": "bad", "no": "bad", "does not apply": "plain", "unknown": "plain",
}  # fmt: skip
"""A verdict's word -> how it is coloured."""


def page_table(name: str, table: pd.DataFrame) -> dict[str, Any]:
    """Arrange a table for the page: rows of the whole model as HTML, those of groups as data that is shown on demand.

    Args:
        name: the table's name.
        table: the table.

    Returns:
        What the template shows.
    """
    table = without_empty_columns(table)
    whole, groups = table, None
    if "group" in table and table["group"].nunique() > 1:
        whole = without_empty_columns(table[table["group"] == ALL].drop(columns="group"))
        blocks = without_empty_columns(table[table["group"] != ALL])
        said = f"By group of parameters ({blocks['group'].nunique()} groups, {len(blocks)} rows)"
        if len(blocks) > MOST_ROWS:
            said += f"; the first {MOST_ROWS} are shown, all are in the csv files"
        groups = {"said": said, "heads": heads(blocks, name), "rows": _as_json(blocks.head(MOST_ROWS))}
    title = TABLES[name].title if name in TABLES else name.replace("_", " ").capitalize()
    return {
        "name": name,
        "title": with_symbols(title),
        "size": counted(len(table), "row"),
        "heads": heads(whole, name),
        "rows": rows(whole),
        "groups": groups,
        "caption": with_symbols(table_caption(name, table)),
    }


def table_caption(name: str, table: pd.DataFrame) -> str:
    """Write the caption of a table: its symbols, and what each column that is shown means.

    Args:
        name: the table's name.
        table: what is shown of it.

    Returns:
        Sentences; empty for a table without definitions.
    """
    if name not in TABLES:
        return ""
    text = TABLES[name]
    meanings = []
    for column in defined(name, list(table)):
        head = heading(column.name, name)
        words = column.name.replace("_", " ")
        meanings.append(f"{words}: {column.meaning}" if head in {words, signs(column.meaning)} else
                        f"{head}, {words}: {column.meaning}")  # fmt: skip
    return sentences(text.symbols, *meanings, text.note, even_shares(table) if name == "norms" else "")


def heads(table: pd.DataFrame, name: str = "") -> list[dict[str, Any]]:
    """Head the columns of a table: in signs for people, by its name for csv, as a formula for LaTeX.

    Args:
        table: the table.
        name: its name, where it is one of a report.

    Returns:
        One head a column.
    """
    found = []
    for column in map(str, table.columns):
        definition = column_of(column, name)
        found.append({
            "name": column,
            "text": heading(column, name),
            "meaning": "" if definition is None else signs(definition.meaning),
            "latex": escaped(column.replace("_", " ")) if definition is None else latex_heading(definition),
            "numeric": bool(pd.api.types.is_numeric_dtype(table[column])),
        })
    return found


def rows(table: pd.DataFrame) -> list[list[Markup]]:
    """Render rows as cells of HTML; whatever comes from a run is escaped.

    Args:
        table: the table.

    Returns:
        One list of cells a row.
    """
    numeric = [bool(pd.api.types.is_numeric_dtype(table[column])) for column in table]
    return [
        [_cell(value, str(column), number) for column, value, number in zip(table.columns, row, numeric, strict=True)]
        for row in table.itertuples(index=False)
    ]


def _cell(value: Any, column: str, numeric: bool) -> Markup:
    if isinstance(value, float):
        if math.isnan(value):
            return Markup("<td></td>")
        return Markup('<td data-order="{}">{}</td>').format(repr(value), printed(value, column, DIGITS))
    if numeric:
        return Markup("<td>{}</td>").format(value)
    text = str(value)
    if column in {"holds", "gradient_holds"} and text in VERDICTS:
        return Markup('<td class="word"><span class="answer {}">{}</span></td>').format(VERDICTS[text], text)
    return Markup('<td class="{}">{}</td>').format("long" if len(text) > 48 else "word", text)


def _as_json(table: pd.DataFrame) -> Markup:
    """Rows as JSON that may stand in a script element: nothing in it can end the element."""
    columns = []
    for column in table:
        values = table[column].tolist()
        if pd.api.types.is_float_dtype(table[column]):
            values = [None if math.isnan(value) else [printed(value, str(column), DIGITS), value] for value in values]
        columns.append(values)
    return json_element([list(row) for row in zip(*columns, strict=True)])


def json_element(value: Any) -> Markup:
    """Encode a value as JSON for a script element.

    Args:
        value: what `json` takes; infinities are words.

    Returns:
        Text without `<`, so that nothing in it ends the element.
    """
    text = json.dumps(_finite(value), separators=(",", ":"), ensure_ascii=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))  # noqa: S704


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, (list, tuple)) else value


def plain_table(table: pd.DataFrame) -> dict[str, Any]:
    """Arrange a table that is no table of a report, with its own words as headings.

    Args:
        table: the table.

    Returns:
        What the template shows.
    """
    return {"heads": heads(table), "rows": rows(table)}
