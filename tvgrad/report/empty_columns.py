"""What a report lacks: tables that another command computes, and columns in which nothing was recorded."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pandas as pd

from tvgrad.vectors.parameters import ALL
from tvgrad.wording import listed

COMPUTED_BY = {
    "second_order": "`tvgrad explain RUN`",
    "error_budget": "`tvgrad explain RUN`",
}
"""Table that needs model and data -> the command that makes it."""

MOST_NAMES = 6


def missing_results(
    tables: Mapping[str, pd.DataFrame], refused: Mapping[str, str] | None = None, scripts: Collection[str] = ()
) -> list[str]:
    """Say which tables lack which runs, and what computes them.

    Args:
        tables: the tables of a report.
        refused: run -> why it cannot be explained.
        scripts: runs that were traced from scripts: their error budget needs no recipe, and they have no expansion.

    Returns:
        One sentence a table, and one for each reason why a run cannot be explained; none where all is there.
    """
    sentences, cannot = [], dict(refused or {})
    for name, command in COMPUTED_BY.items():
        if name not in tables:  # checkpoints without a run have no such table
            continue
        present = set(tables[name]["run"])
        if name == "second_order" and "error_budget" in tables:  # rules that are not linear have no expansion
            present |= set(tables["error_budget"]["run"])
        without = [str(run) for run in dict.fromkeys(tables["norms"]["run"]) if run not in {*present, *cannot}]
        of_scripts = [run for run in without if run in scripts]
        without = [run for run in without if run not in scripts]
        if of_scripts and name == "error_budget":
            sentences.append(
                f"{name} has no rows of {listed(of_scripts, MOST_NAMES)}: `tvgrad explain RUN -- COMMAND` makes them, "
                "with the command that was traced, then report again."
            )
        if without:
            sentences.append(
                f"{name} has no rows of {listed(without, MOST_NAMES)}: {command} makes them "
                "(with `--recipe TARGET` where the recipe is your own), then report again."
            )
    for run, why in cannot.items():
        sentences.append(f"second_order and error_budget have no rows of {run}, and cannot have any: {why}.")
    return sentences


def without_empty_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Leave out the columns in which no row has anything, which only make a table for people wide.

    Args:
        table: any table.

    Returns:
        The table without them; as it is where it has no rows.
    """
    return table.dropna(axis="columns", how="all") if len(table) else table


def whole_model(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Keep the rows of the whole model that have something in a column.

    Args:
        table: has the columns group and `column`.
        column: the one that must not be empty.

    Returns:
        The rows.
    """
    return table[(table["group"] == ALL) & table[column].notna()]
