"""How a table fits a terminal: short headings, three digits, columns left out by width and named, no word cut."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pandas.api.types import is_numeric_dtype
from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from tvgrad.report.documents import shown
from tvgrad.report.headings import heading
from tvgrad.wording import OUTWARD, printable

if TYPE_CHECKING:
    import pandas as pd

DIGITS = 3
FRAME = 3  # columns of the terminal that a column takes beside its content
PROSE = 26  # letters from which a cell is prose, that may be broken between words
TRANSPOSED = 4  # a single row of more columns is shown as a list

FIRST_LEFT_OUT = (
    "nodes",
    "reason",
    "rule",
    "cause",
    "predicted_norm_order2",
    "closed_form_bound",
    "worst_ratio_to_budget",
)
"""Columns that a narrow terminal does without first."""
KEPT = (
    "run", "run_a", "run_b", "task", "task_a", "task_b", "epoch", "group", "term", "holds", "gradient_holds", "trouble",
    "error_bound", "lower_bound", "cos_task_vector_descent", "cos_task_vectors", "gradient_norm_share", "recipe",
)  # fmt: skip
"""Columns that are left out last."""

COLOURS = {
    "exact": "green", "yes": "green", "ok": "green", "fails": "bold red", "no": "bold red", "failed": "bold red",
    "does not apply": "yellow", "unknown": "yellow", "warning": "yellow",
}  # fmt: skip
"""Word of a verdict -> its colour."""


@dataclass(frozen=True)
class Layout:
    """A table as it is drawn.

    Attributes:
        drawn: what rich prints.
        left_out: headings of the columns for which there was no room.
    """

    drawn: Table
    left_out: list[str]


def lay_out(table: pd.DataFrame, width: int, most: int, estimates: Collection[str]) -> Layout:
    """Fit a table into a width.

    Args:
        table: what is shown.
        width: columns of the terminal.
        most: rows to show at the most; the middle is left out.
        estimates: columns of which three digits are as many as they deserve, whatever `DIGITS` is.

    Returns:
        The layout.
    """
    names = [str(column) for column in table.columns]
    cells = [
        [
            text_of(cell, name, min(DIGITS, 3) if name in estimates else DIGITS)
            for name, cell in zip(names, row, strict=True)
        ]
        for row in table.itertuples(index=False)
    ]
    heads = [printable(heading(name)) for name in names]
    if len(cells) == 1 and len(names) > TRANSPOSED:
        return Layout(_list(heads, cells[0], width), [])
    if len(cells) > most:
        cells = [*cells[: most // 2], ["..."] * len(names), *cells[-(most // 2) :]]
    kept, widths = _fitting(names, heads, cells, width)
    drawn = _frame()
    for place in kept:
        numeric = is_numeric_dtype(table[table.columns[place]])
        drawn.add_column(
            Text(heads[place]), justify="right" if numeric else "left", overflow="fold", width=widths[place]
        )
    for row in cells:
        drawn.add_row(*(_coloured(row[place]) for place in kept))
    return Layout(drawn, [heads[place] for place in range(len(names)) if place not in kept])


def text_of(cell: Any, name: str, digits: int = DIGITS) -> str:
    """Write a cell: numbers of a few digits, large ones whole.

    Args:
        cell: a number or a word.
        name: its column.
        digits: significant digits.

    Returns:
        Printable text.
    """
    if isinstance(cell, float) and name not in OUTWARD and math.isfinite(cell) and 1000 <= abs(cell) < 1e7:
        return f"{cell:,.0f}"
    return printable(shown(cell, name, digits))


def _frame() -> Table:
    return Table(header_style="bold", box=box.ROUNDED)


def _coloured(text: str) -> Text:
    return Text(text, style=COLOURS.get(text, ""))


def _list(heads: Sequence[str], cells: Sequence[str], width: int) -> Table:
    """One row as a list of names and values."""
    drawn = _frame()
    drawn.show_header = False
    named = max(map(cell_len, heads))
    drawn.add_column(style="bold", width=named)
    most = max(map(cell_len, cells))
    drawn.add_column(overflow="fold", width=max(8, min(most, width - named - 2 * FRAME - 1)))
    for head, cell in zip(heads, cells, strict=True):
        if cell:
            drawn.add_row(Text(head), _coloured(cell))
    return drawn


def _fitting(
    names: Sequence[str], heads: Sequence[str], cells: Sequence[Sequence[str]], width: int
) -> tuple[list[int], dict[int, int]]:
    """The columns that there is room for, and how wide each is."""
    natural, least = {}, {}
    for place, head in enumerate(heads):
        column = [row[place] for row in cells]
        word = max([_longest_word(head), *map(_longest_word, column)])
        whole = max(map(cell_len, column), default=0)
        natural[place] = max(whole, word, cell_len(head))
        least[place] = word if whole > PROSE else max(whole, _longest_word(head))
        if whole > PROSE:
            least[place] = max(min(whole, PROSE), min(word, max(PROSE, width // 3)))
    kept = list(range(len(names)))
    while len(kept) > 1 and sum(least[place] + FRAME for place in kept) + 1 > width:
        kept.remove(_dispensable(names, kept))
    room = width - 1 - sum(least[place] + FRAME for place in kept)
    widths = {}
    for place in kept:
        more = max(0, min(natural[place] - least[place], room))
        widths[place] = least[place] + more
        room -= more
    return kept, widths


def _dispensable(names: Sequence[str], kept: Sequence[int]) -> int:
    """Which column to leave out next: prose first, then from the right, what tells rows apart last."""
    for name in FIRST_LEFT_OUT:
        for place in kept:
            if names[place] == name:
                return place
    others = [place for place in kept[1:] if names[place] not in KEPT]
    return others[-1] if others else kept[-1]


def _longest_word(text: str) -> int:
    return max(map(cell_len, re.split(r"\s+", text)), default=0)
