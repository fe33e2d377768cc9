"""What momentum and Adam do to one epoch, even at a vanishing learning rate, and which term of the budget it is.

Mini-batches of equal size, every sample once: plain SGD's task vector becomes minus the gradient as the rate falls.
Momentum weighs the epoch's batches unequally, and Adam rescales each coordinate: their relative residuals stay.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes

from tvgrad.problem.recipe import Recipe
from tvgrad.recipes.catalogue import load_recipes
from tvgrad.recipes.of_run import objective_of
from tvgrad.record.options import TraceOptions
from tvgrad.record.training_loop import prepare, trace
from tvgrad.theory.error_budget import error_budget

from .analysis_result import AnalysisResult, outcome_of
from .falling_rates import draw_falling, fitted_order

RATES = (1e-2, 1e-3, 1e-4, 1e-5)
BATCHES = 8
EXPECTED = {"sgd": "curvature", "momentum": "batch order", "nesterov": "batch order", "adam": "preconditioner"}
CLOSURE = 1e-12
OFFSETS = {"nesterov": (8, -11), "sgd": (14, -5)}  # points, where a label would stand on a line


def analyse(target: str = "digits", rates: Sequence[float] = RATES) -> AnalysisResult:
    """Trace one epoch by four optimizers at falling rates, and explain each.

    Args:
        target: a recipe; its first task is used.
        rates: learning rates, falling.

    Returns:
        The result.
    """
    recipe = _equal_batches(load_recipes(target)[0])
    table = pd.DataFrame([_one_epoch(recipe, target, name, rate) for name in EXPECTED for rate in rates])
    plain = table[table["optimizer"] == "sgd"].nsmallest(3, "lr")
    falls = fitted_order(plain["lr"], plain["relative_residual"])
    last = table[table["lr"] == min(rates)].set_index("optimizer")
    others = {name: term for name, term in EXPECTED.items() if name != "sgd"}
    held = (
        all(last.loc[name, "largest_term"] == term for name, term in others.items())
        and bool((table["closure"] <= CLOSURE).all())
        and abs(falls - 1) <= 0.1
        and all(last.loc[name, "relative_residual"] > 0.01 for name in others)
    )
    evidence = (
        f"at lr {min(rates):g} the relative residual is "
        + ", ".join(
            f"{row.relative_residual:.2g} for {row.Index} ({row.largest_term} {row.largest_share:.0%})"
            for row in last.itertuples()
        )
        + f"; SGD's falls with power {falls:.2f} of the rate; the terms sum to the residual within "
        f"{table['closure'].max():.0e}"
    )
    claim = (
        "With equal mini-batches one epoch of SGD tends to minus the gradient as the rate falls; momentum and Adam do "
        "not, and the error budget puts this down to batch order and preconditioner."
    )
    return AnalysisResult(claim, outcome_of(bool(held)), evidence, table, partial(_draw, table, recipe.name))


def _one_epoch(recipe: Recipe, target: str, optimizer: str, rate: float) -> dict[str, object]:
    """Trace one epoch, and name the largest term of its error budget."""
    options = TraceOptions(
        optimizer=optimizer,
        lr=rate,
        epochs=1,
        batch_size=len(recipe.train) // BATCHES,
        dtype="float64",
        record=("gradients", "batches"),
        target=target,
    )
    with tempfile.TemporaryDirectory() as folder:
        run = trace(prepare(recipe, options), Path(folder) / "run")
        budget = error_budget(run, objective_of(run, recipe, torch.float64), remainder=True)
    largest = max(budget.rows, key=lambda row: row.share)
    return {
        "optimizer": optimizer,
        "lr": rate,
        "relative_residual": budget.relative_residuals[1],
        "largest_term": largest.term,
        "largest_share": largest.share,
        "closure": budget.closure,
    }


def _draw(table: pd.DataFrame, task: str, ax: Axes) -> None:
    draw_falling(ax, table.rename(columns={"optimizer": "variable", "relative_residual": "value"}), {})
    ax.set(xlabel="learning rate", ylabel=r"$\|\tau_1 + \kappa S g_0\| \;/\; \|\tau_1\|$")
    ax.set_title(f"Distance of one epoch's task vector from minus the gradient: {task}")
    for name, part in table.groupby("optimizer"):
        first = part.nsmallest(1, "lr").iloc[0]
        ax.annotate(
            f"{first['largest_term']} {first['largest_share']:.0%}", (first["lr"], first["relative_residual"]),
            OFFSETS.get(name, (8, 4)), textcoords="offset points", fontsize=8, color="0.3",
        )  # fmt: skip
    sns.move_legend(ax, "lower right", title=None, frameon=False)


def _equal_batches(recipe: Recipe) -> Recipe:
    """The recipe on as many samples as fill all batches."""
    count = len(recipe.train) // BATCHES * BATCHES
    return Recipe(
        recipe.model,
        recipe.loss,
        recipe.train.subset(range(count)),
        name=recipe.name,
        forward=recipe.forward,
        count=recipe.count,
        allow=recipe.allow,
    )
