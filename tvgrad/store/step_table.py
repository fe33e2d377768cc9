"""Tables of optimizer steps, read from the csv files of a run."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

from tvgrad.errors import DamagedRun
from tvgrad.fields import MOST_PARTS
from tvgrad.files.regular import read_text, reason_of

if TYPE_CHECKING:
    import pandas as pd


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
        if content.count(",") > MOST_PARTS:
            raise ValueError(f"it has more than {MOST_PARTS:,} cells")
        lines = io.StringIO(content, newline="")
        rows = [{name: float(cell or "nan") for name, cell in row.items()} for row in csv.DictReader(lines)]
        return pd.DataFrame(rows).astype({"step": "int64"})
    except (OSError, ValueError, TypeError, KeyError, OverflowError, csv.Error) as error:
        raise DamagedRun(f"{path} cannot be read ({reason_of(error)}): restore it or trace the run again") from None
