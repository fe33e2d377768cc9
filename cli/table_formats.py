"""`--format` of commands that print tables: csv, md, json or latex on standard output, sentences beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import pandas as pd

CHOICES = ("csv", "md", "json", "latex")
_FORMAT, _TABLES = "tvgrad.format", "tvgrad.tables"


def _noted(ctx: click.Context, _: click.Parameter, given: str | None) -> str | None:
    if given is not None:
        begin(ctx, given)
    return given


option = click.option(
    "--format",
    "table_format",
    type=click.Choice(CHOICES),
    callback=_noted,
    expose_value=False,
    help="Print tables in this format, all columns and digits; sentences go to the error stream.",
)
"""The option; nothing is passed to the command, whose `print_table` looks it up."""


def begin(ctx: click.Context, chosen: str) -> None:
    """Collect the tables of a command, and print them in a format when it ends.

    Args:
        ctx: click's context of the command.
        chosen: one of `CHOICES`.
    """
    ctx.meta[_FORMAT], ctx.meta[_TABLES] = chosen, []
    ctx.call_on_close(lambda: click.echo(_text(chosen, ctx.meta[_TABLES]), nl=False))


def tables_format() -> str | None:
    """The format that was asked for, or None for tables as people read them."""
    context = click.get_current_context(silent=True)
    return None if context is None else context.meta.get(_FORMAT)


def keep_table(name: str, table: pd.DataFrame) -> None:
    """Keep a table until the command ends.

    Args:
        name: what it is called.
        table: the table.
    """
    click.get_current_context().meta[_TABLES].append((name, table))


def _text(chosen: str, tables: list[tuple[str, Any]]) -> str:
    """One table as it is; several each under its name, as a comment in csv and a heading in Markdown."""
    from tvgrad.report.documents import FORMATS
    from tvgrad.results import json_text

    if chosen == "json":
        found = {name: table.to_dict("records") for name, table in tables}
        return json_text(next(iter(found.values())) if len(found) == 1 else found) + "\n" if tables else ""
    above = {"csv": "# {}\n", "md": "## {}\n\n", "latex": "% {}\n"}[chosen]
    return "\n".join(
        (above.format(name) if len(tables) > 1 else "") + FORMATS[chosen](table, name, "") for name, table in tables
    )
