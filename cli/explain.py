"""`tvgrad explain`: predictions against a run, and the error budget of its task vectors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tvgrad.errors import TvgradError

from . import options, table_formats

if TYPE_CHECKING:
    import pandas as pd

    from tvgrad.theory.explain import Explanation

ROUNDING = 1e-12
"""Rows of a budget below this part of the residual are below float64 rounding, and are not shown."""


@click.command()
@options.runs
@click.option("--recipe", "target", help="TARGET of the recipe that made the runs; built-in ones are found by name.")
@click.option("--budget-seconds", type=float, help="Time for each run: leave out, by name, what does not fit.")
@click.option("--remainder", is_flag=True, help="Split third order from batch curvature: a product for each batch.")
@click.option("--epochs", help="Epochs whose error budget is made, separated by commas (default: all that were kept).")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float64"]),
    default="float64",
    show_default=True,
    help="In which gradients at the pretrained weights are computed.",
)
@click.option("--bounds/--no-bounds", default=True, show_default=True, help="Certify the second-order error too.")
@options.device
@options.cost
@table_formats.option
def explain(
    runs: tuple[Path, ...],
    target: str | None,
    budget_seconds: float | None,
    remainder: bool,
    epochs: str | None,
    dtype: str,
    bounds: bool,
    device: str,
    cost: bool,
) -> None:
    """Explain RUNS: how well their task vectors were predicted, and why they are not exactly the gradient.

    The error budget cuts the residual of a task vector into terms that sum to it: rounding, weight decay,
    preconditioner, clipping, curvature, batch order, unequal batches. Mini-batch runs need `--record batches`.
    Everything is kept in RUN/results, where `tvgrad report` finds it.

    \b
    Examples:
      tvgrad explain runs/digits
      tvgrad explain runs/digits --cost
      tvgrad explain runs/mine --recipe my_recipe.py --budget-seconds 60
      tvgrad explain runs/digits/low --epochs 1,5 --remainder

    \b
    A script's run, without a recipe (options: `tvgrad explain --help --`):
      tvgrad explain runs/mine -- python finetune.py
    """
    import time

    import torch
    from tvgrad.cli.terminal import say

    from tvgrad.recipes.of_run import objective_of, recipe_of
    from tvgrad.store.run import open_runs
    from tvgrad.theory.certified import bounds_of_run
    from tvgrad.theory.explain import explain as explained
    from tvgrad.theory.explain import require_place_for_results, with_bounds, write_results
    from tvgrad.theory.explain_cost import explain_cost
    from tvgrad.theory.explainable import why_not_explained

    try:
        wanted = None if epochs is None else [int(part) for part in epochs.split(",")]
    except ValueError:
        raise TvgradError(f"--epochs {epochs!r} is no list of numbers: give --epochs 1,5,10") from None
    opened = open_runs(runs)
    for run in opened:  # before a recipe is asked for that could not help
        why = why_not_explained(run)
        if why is not None:
            raise TvgradError(why)
        if not cost:
            require_place_for_results(run)
    targets = [target or _own_target(run.info.get("recipe"), run.root, "command" in run.info) for run in opened]
    found = []
    for run, from_where in zip(opened, targets, strict=True):
        recipe = recipe_of(run, from_where)
        objective = objective_of(run, recipe, getattr(torch, dtype), device=device)
        if cost:
            click.echo(explain_cost(run, objective, wanted, remainder=remainder).sentence)
            continue
        begin = time.perf_counter()
        made = explained(run, objective, wanted, seconds=budget_seconds, remainder=remainder)
        if bounds and made.second_order:
            # last, with what the predictions and the budget have left of the time
            left = None if budget_seconds is None else budget_seconds - (time.perf_counter() - begin)
            none = ({}, "no bound: no time is left for it")
            certified = none if left is not None and left <= 0 else bounds_of_run(run, recipe, objective, seconds=left)
            made = with_bounds(made, *certified)
        write_results(run, made)
        show(run.name, made)
        found.append((run.name, made))
    if cost:
        return
    say(f"kept in {', '.join(str(run.root / 'results') for run in opened)}")
    for name, made in found:
        close(name, made)


def show(name: str, made: Explanation) -> None:
    """Print the tables of one run, and what there is to say.

    Args:
        name: the run's.
        made: what was found.
    """
    from tvgrad.cli.terminal import print_table, say

    from tvgrad.report.columns import COLUMNS
    from tvgrad.results import frame_of

    if made.second_order:
        print_table(f"{name}: second-order error", _told(frame_of(made.second_order, COLUMNS["second_order"])))
    last = max(row.epoch for row in made.budget.rows)
    rows = [row for row in made.budget.rows if row.epoch == last]
    rounding = ROUNDING * made.budget.residual_norms[last]
    shown = [row for row in rows if row.norm > rounding] or rows
    print_table(f"{name}: error budget of epoch {last}", _told(frame_of(shown, COLUMNS["error_budget"])))
    if len(shown) < len(rows):
        say(f"{name}: zero to rounding: {', '.join(row.term for row in rows if row.norm <= rounding)}")
    for sentence in made.sentences:
        say(f"{name}: {sentence}")


def close(name: str, made: Explanation) -> None:
    """Print the sentence that a reader takes away: what most of the difference at the last epoch is.

    Args:
        name: the run's.
        made: what was found.
    """
    from tvgrad.cli.terminal import say

    from tvgrad.theory.budget_rows import what_it_is

    say(f"{name}: {what_it_is(made.budget.rows, max(row.epoch for row in made.budget.rows))}")


def _told(table: pd.DataFrame) -> pd.DataFrame:
    """Columns in which there is something, without the run's name, which the title says."""
    from tvgrad.report.empty_columns import without_empty_columns

    return without_empty_columns(table).drop(columns="run")


def _own_target(recipe: dict[str, str] | None, root: Path, script: bool) -> str:
    """A built-in recipe's name, as the run gives it; code of the user's is run only when it is named."""
    from tvgrad.recipes.catalogue import BUILT_IN

    found = (recipe or {}).get("target")
    if found in BUILT_IN:
        return str(found)
    said = f"was made by {found}, which" if found else "names no recipe, and one"
    or_else = f", or start the script again: `tvgrad explain {root} -- COMMAND`" if script else ""
    raise TvgradError(f"{root} {said} is only run when you name it: give --recipe TARGET{or_else}")
