"""Tables as files: csv, Markdown, JSON; every format holds the same rows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from tvgrad.errors import TvgradError
from tvgrad.tensor_files import write_atomically

__all__ = ["FORMATS", "shown", "write_tables"]


def shown(value: Any) -> str:
    """Render a cell for people: six significant digits, empty where there is nothing.

    Args:
        value: a number, a word or NaN.

    Returns:
        Its text.
    """
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return str(value)


def _csv(table: pd.DataFrame) -> str:
    return str(table.to_csv(index=False))


def _markdown(table: pd.DataFrame) -> str:
    lines = ["| " + " | ".join(table.columns) + " |", "|" + " --- |" * len(table.columns)]
    for row in table.itertuples(index=False):
        lines.append("| " + " | ".join(shown(cell).replace("|", "\\|") for cell in row) + " |")
    return "\n".join(lines) + "\n"


def _json(table: pd.DataFrame) -> str:
    rows = [
        {name: None if isinstance(cell, float) and math.isnan(cell) else cell for name, cell in row.items()}
        for row in table.to_dict("records")
    ]
    return json.dumps(rows, indent=1) + "\n"


FORMATS: dict[str, Callable[[pd.DataFrame], str]] = {"csv": _csv, "md": _markdown, "json": _json}
"""Format (and file ending) -> how a table is rendered."""


def write_tables(tables: Mapping[str, pd.DataFrame], directory: Path, formats: Iterable[str]) -> list[Path]:
    """Write tables, each in each format.

    Args:
        tables: name -> table.
        directory: where to; it is made.
        formats: names of `FORMATS`.

    Returns:
        The files.

    Raises:
        TvgradError: a format is unknown, or the directory cannot be made.
    """
    wanted = list(dict.fromkeys(formats))
    for name in wanted:
        if name not in FORMATS:
            raise TvgradError(f"unknown format {name!r}: choose from {', '.join(FORMATS)}")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TvgradError(f"{directory} cannot be made a folder for the report: {error.strerror}") from None
    written = []
    for name, table in tables.items():
        for ending in wanted:
            path = directory / f"{name}.{ending}"
            text = FORMATS[ending](table)
            write_atomically(path, lambda temporary, text=text: temporary.write_text(text, encoding="utf-8"))  # type: ignore[misc]
            written.append(path)
    return written
