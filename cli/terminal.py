"""What commands show on a terminal: tables, and progress bars that keep quiet when nobody watches."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from textwrap import fill
from typing import TYPE_CHECKING, TextIO

import click
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text
from tvgrad.cli.table_formats import keep_table, tables_format
from tvgrad.cli.table_layout import COLOURS, lay_out

from tvgrad.wording import printable

if TYPE_CHECKING:
    import pandas as pd

    from tvgrad.record.training_loop import Progress as TrainingProgress

MOST_ROWS = 40
ESTIMATES = ("predicted_norm", "predicted_norm_order2", "interference_on_a", "interference_on_b")
"""Columns of reports that hold estimates, of which a terminal shows no digits that mean nothing."""
WHOLE = {"break_long_words": False, "break_on_hyphens": False}
PIPE_WIDTH = 200  # columns of a table that no terminal wraps


def console(err: bool = False) -> Console:
    """The terminal, or a wide page where the output goes into a file or a pipe (COLUMNS says otherwise)."""
    stream = sys.stderr if err else sys.stdout
    if any(os.environ.get(name, "").isdigit() and not _asked(name) for name in ("COLUMNS", "LINES")):
        # The library would take such a size, and fail for it; it looks for none where both are given.
        found = _size(stream)
        return Console(width=_columns() or found.columns, height=found.lines, highlight=False, stderr=err)
    asked = stream.isatty() or _columns()
    return Console(width=None if asked else PIPE_WIDTH, highlight=False, stderr=err)


def _columns() -> int:
    """The width that COLUMNS asks for, 0 where it asks for none."""
    return _asked("COLUMNS")


def _asked(name: str) -> int:
    """The size that a variable asks for, 0 where it asks for none: the word may be anything, a superscript say."""
    asked = os.environ.get(name, "")
    return int(asked) if asked.isdecimal() and len(asked) < 6 else 0


def _size(stream: TextIO) -> os.terminal_size:
    """The size of a terminal as the system tells it, and of a page where there is none."""
    try:
        found = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        return os.terminal_size((PIPE_WIDTH, 25))
    return os.terminal_size((found.columns or 80, found.lines or 25))


def say(text: str, verdict: str = "", *, colour: str = "", err: bool = False) -> None:
    """Print a sentence: on a terminal it is broken between words, and a verdict in it has its colour.

    In a file or a pipe it is one line, so that it can be searched, unless COLUMNS asks for a width. Names and paths
    that it quotes move no cursor and colour nothing.

    Args:
        text: the sentence; spaces at its start indent all of its lines.
        verdict: a word of it that is one, or words that say what was done.
        colour: of the verdict; by default the one that its word has.
        err: print it on the error stream.
    """
    err = err or tables_format() is not None  # where standard output is for tables alone
    text = "\n".join(map(printable, text.split("\n")))
    if not (sys.stderr if err else sys.stdout).isatty():
        spaces = text[: len(text) - len(text.lstrip())]
        broken = (fill(line, _columns(), subsequent_indent=spaces, **WHOLE) for line in text.split("\n"))
        click.echo("\n".join(broken) if _columns() else text, err=err)
    else:
        line = Text(text.lstrip())
        if verdict:
            line.highlight_regex(rf"(?<!\w){re.escape(verdict)}(?!\w)", colour or COLOURS.get(verdict, ""))
        console(err).print(Padding(line, (0, 0, 0, len(text) - len(text.lstrip()))))


def complain(sentence: str) -> None:
    """Print what is wrong on the error stream: on a terminal its first word is red, and lines break between words.

    Args:
        sentence: what, where, and what to do; in a file or a pipe its lines stay as they are.
    """
    if sys.stderr.isatty():
        console(err=True).print(Text.assemble(("Error:", COLOURS["failed"]), f" {sentence}"))
    else:
        click.echo(f"Error: {sentence}", err=True)


def print_table(
    title: str,
    table: pd.DataFrame,
    most: int = MOST_ROWS,
    estimates: Collection[str] = ESTIMATES,
    name: str = "",
) -> None:
    """Print a table as wide as the terminal, shortened in the middle when it is long; or keep it for `--format`.

    Args:
        title: stands above it.
        table: what to print.
        most: rows to print at the most.
        estimates: columns of which three digits are as many as they deserve.
        name: what the table is called in JSON; by default its title.
    """
    if tables_format() is not None:
        keep_table(name or title, table)
        return
    screen = console()
    laid = lay_out(table, screen.width, most, estimates)
    say(printable(title))
    screen.print(laid.drawn)
    if laid.left_out:
        say(f"  left out for want of room: {', '.join(laid.left_out)} (--format csv prints all)")


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
        console=console(err=True),
        disable=quiet or not sys.stderr.isatty(),
        transient=transient,
    )
