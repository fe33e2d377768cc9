"""Tables as files: csv, Markdown, JSON, LaTeX; every format but LaTeX holds all rows and all digits that matter."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from tvgrad.errors import TvgradError
from tvgrad.files.atomic import write_text_atomically
from tvgrad.files.writable import make_folder
from tvgrad.report.empty_columns import COMPUTED_BY
from tvgrad.report.latex import latex_table
from tvgrad.results import json_text
from tvgrad.wording import near, printable, printed, without_formula


def shown(value: Any, column: object = "", digits: int = 6) -> str:
    """Render a cell for people: significant digits, empty where there is nothing; bounds are rounded outward.

    Args:
        value: a number, a word or NaN.
        column: the name of its column.
        digits: significant digits.

    Returns:
        Its text.
    """
    if isinstance(value, float):
        return "" if math.isnan(value) else printed(value, column, digits)
    return str(value)


def _markdown(table: pd.DataFrame, name: str, lead: str = "") -> str:
    # Not `DataFrame.to_markdown`: it pads every cell, for files two and a half times as long written eight times as
    # slowly, and leaves a | in a cell as it is.
    lines = ["| " + " | ".join(table.columns) + " |", "|" + " --- |" * len(table.columns)]
    if not len(table) and name in COMPUTED_BY:
        lines += ["", f"No rows: {COMPUTED_BY[name]} makes them."]
    for row in table.itertuples(index=False):
        lines.append(
            "| " + " | ".join(_markdown_cell(cell, column) for column, cell in zip(table, row, strict=True)) + " |"
        )
    if lead:
        lines = [re.sub(r"([\\*_<\[])", r"\\\1", printable(lead)), "", *lines]
    return "\n".join(lines) + "\n"


def _markdown_cell(cell: Any, column: object) -> str:
    text = shown(cell, column)
    return re.sub(r"([\\*<\[|])", r"\\\1", printable(text)) if isinstance(cell, str) else text


def _csv(table: pd.DataFrame) -> str:
    safe = table.copy()
    for name in safe:
        if not pd.api.types.is_numeric_dtype(safe[name]):
            safe[name] = safe[name].map(_no_formula)
    return str(safe.to_csv(index=False))


def _no_formula(cell: Any) -> Any:
    return without_formula(cell) if isinstance(cell, str) else cell


FORMATS: dict[str, Callable[[pd.DataFrame, str, str], str]] = {
    "csv": lambda table, _, __: _csv(table),
    "md": _markdown,
    "json": lambda table, _, __: json_text(table.to_dict("records")) + "\n",
    "latex": latex_table,
}
"""Format -> how a table of some name is rendered, with a sentence above it where the format is for people."""

PAGE = "html"
"""The format that is one page of everything, see `tvgrad.report.publishing`."""

ENDINGS = {"latex": "tex"}


def check_formats(formats: Iterable[str]) -> list[str]:
    """Check names of formats before any long work.

    Args:
        formats: names of `FORMATS`, or html.

    Returns:
        Each name once.

    Raises:
        TvgradError: a format is unknown.
    """
    wanted, known = list(dict.fromkeys(formats)), [*FORMATS, PAGE]
    for name in wanted:
        if name not in FORMATS and name != PAGE:
            raise TvgradError(f"unknown format {name!r}: choose from {', '.join(known)}{near(name, known)}")
    return wanted


def write_tables(
    tables: Mapping[str, pd.DataFrame],
    directory: Path,
    formats: Iterable[str],
    leads: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write tables, each in each format.

    Args:
        tables: name -> table.
        directory: where to; it is made.
        formats: names of `FORMATS`; html is left to the page.
        leads: table -> a sentence that stands above it in md, and in its caption in latex.

    Returns:
        The files.

    Raises:
        TvgradError: a format is unknown, or the directory cannot be made.
    """
    wanted = [name for name in check_formats(formats) if name != PAGE]
    make_folder(directory, "a folder for the report")
    written = []
    for name, table in tables.items():
        for ending in wanted:
            path = directory / f"{name}.{ENDINGS.get(ending, ending)}"
            text = FORMATS[ending](table, name, (leads or {}).get(name, ""))
            write_text_atomically(path, text)
            written.append(path)
    return written
