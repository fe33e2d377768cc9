"""Tables of optimizer steps, read from the csv files of a run."""

from __future__ import annotations

import csv
import io
from array import array
from pathlib import Path
from typing import TYPE_CHECKING

from tvgrad.errors import DamagedRun
from tvgrad.fields import MOST_PARTS
from tvgrad.files.regular import read_text, reason_of

if TYPE_CHECKING:
    import pandas as pd

MOST_COLUMNS = 10_000
"""Columns of the widest table of steps that is read: one for each option of each group of parameters."""


def read_steps(path: Path, under: Path) -> pd.DataFrame:
    """Read a table of steps with every digit that was written (the parsers of pandas differ in the last one).

    Args:
        path: the file.
        under: the run directory.

    Returns:
        Column step in whole numbers, the others in floats; NaN where a cell is empty.

    Raises:
        DamagedRun: it cannot be read.
    """  # noqa: DOC501 - the ValueError does not leave
    import pandas as pd  # a traced script makes no table, and would wait for it

    try:
        content = read_text(path, under)
        if content.count(",") + content.count("\n") + content.count("\r") > MOST_PARTS:
            raise ValueError(f"it has more than {MOST_PARTS:,} cells")
        return pd.DataFrame(_columns(content)).astype({"step": "int64"})
    except (OSError, ValueError, TypeError, KeyError, OverflowError, csv.Error) as error:
        raise DamagedRun(f"{path} cannot be read ({reason_of(error)}): restore it or trace the run again") from None


def _columns(content: str) -> dict[str, array[float]]:
    """The cells of each column, eight bytes each: rows as mappings would take a hundred times their text."""
    rows = csv.reader(io.StringIO(content, newline=""))
    names = next(rows, [])
    if len(names) > MOST_COLUMNS:
        raise ValueError(f"it has {len(names):,} columns, and at most {MOST_COLUMNS:,} are read")
    columns = [array("d") for _ in names]
    for row in filter(None, rows):
        if len(row) > len(names):
            raise ValueError(f"a row has {len(row)} cells, and there are {len(names)} columns")
        for column, cell in zip(columns, row + [""] * (len(names) - len(row)), strict=True):
            column.append(float(cell or "nan"))
    return dict(zip(names, columns, strict=True))
