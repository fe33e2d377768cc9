"""What commands show on a terminal: tables, and progress bars that keep quiet when nobody watches."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pandas.api.types import is_numeric_dtype
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from tvgrad.report.documents import shown
from tvgrad.wording import printable

if TYPE_CHECKING:
    import pandas as pd

    from tvgrad.record.training_loop import Progress as TrainingProgress

MOST_ROWS = 40
ESTIMATES = ("predicted_norm", "predicted_norm_order2", "interference_on_a", "interference_on_b")
"""Columns of reports that hold estimates, of which a terminal shows no digits that mean nothing."""
PIPE_WIDTH = 200  # columns of a table that no terminal wraps


def console() -> Console:
    """The terminal, or a wide page where the output goes into a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)


def print_table(title: str, table: pd.DataFrame, most: int = MOST_ROWS, estimates: Collection[str] = ESTIMATES) -> None:
    """Print a table, shortened in the middle when it is long.

    Args:
        title: stands above it.
        table: what to print.
        most: rows to print at the most.
        estimates: columns of which three digits are as many as they deserve.
    """
    drawn = Table(title=Text(title), title_justify="left", header_style="bold")
    for column in table.columns:
        drawn.add_column(
            Text(str(column)), justify="right" if is_numeric_dtype(table[column]) else "left", overflow="fold"
        )
    rows = [
        [
            Text(printable(shown(cell, column, 3 if column in estimates else 6)))
            for column, cell in zip(table, row, strict=True)
        ]
        for row in table.itertuples(index=False)
    ]
    if len(rows) > most:
        rows = [*rows[: most // 2], [Text("...")] * len(table.columns), *rows[-(most // 2) :]]
    for row in rows:
        drawn.add_row(*row)
    console().print(drawn)


@contextmanager
def epochs_bar(name: str, epochs: int, quiet: bool) -> Generator[Callable[[TrainingProgress], None]]:
    """A progress bar of a fine-tuning: loss, time left, cosine of the task vector to minus the first gradient.

    Args:
        name: the task.
        epochs: planned epochs.
        quiet: show nothing; so does an error stream that is no terminal.

    Yields:
        What `tvgrad.record.training_loop.trace` calls after each epoch.
    """
    fields = TextColumn("loss {task.fields[loss]}  cos(task vector, -g0) {task.fields[cosine]}")
    with _bar(quiet, MofNCompleteColumn(), fields) as bar:
        task = bar.add_task(printable(name), total=epochs, loss="-", cosine="-")

        def on_epoch(progress: TrainingProgress) -> None:
            loss, cosine = ("-" if math.isnan(value) else f"{value:.4f}" for value in (progress.loss, progress.cosine))
            # a resumed run may have more epochs than its recipe
            bar.update(task, completed=progress.epoch, total=progress.epochs, loss=loss, cosine=cosine)

        yield on_epoch


@contextmanager
def percent_bar(title: str, quiet: bool = False) -> Generator[Callable[[int, int], None]]:
    """A progress bar of something whose size is known, such as a pass over files.

    Args:
        title: what is done.
        quiet: show nothing; so does an error stream that is no terminal.

    Yields:
        A function of how much is done and how much there is.
    """
    with _bar(quiet, TextColumn("{task.percentage:>3.0f} %"), transient=True) as bar:
        task = bar.add_task(printable(title), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _bar(quiet: bool, *columns: ProgressColumn, transient: bool = False) -> Progress:
    """A bar on the error stream, between its title and the time left, that only a terminal sees."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        *columns,
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=quiet or not sys.stderr.isatty(),
        transient=transient,
    )
