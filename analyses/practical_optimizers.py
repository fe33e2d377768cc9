"""What momentum and Adam do to one epoch, even at a vanishing learning rate, and which term of the budget it is.

Mini-batches of equal size, every sample once: plain SGD's task vector becomes minus the gradient as the rate falls.
Momentum weighs the epoch's batches unequally, and Adam rescales each coordinate: their relative residuals stay.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
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
from tvgrad.theory.error_budget import ErrorBudget, error_budget

from .analysis_result import Finding, fitted_order

RATES = (1e-2, 1e-3, 1e-4, 1e-5)
BATCHES = 8
EXPECTED = {"sgd": "curvature", "momentum": "batch order", "nesterov": "batch order", "adam": "preconditioner"}
CLOSURE = 1e-12
OFFSETS = {"nesterov": (8, -11), "sgd": (14, -5)}  # points, where a label would stand on a line


def analyse(target: str = "digits", rates: Sequence[float] = RATES) -> Finding:
    """Trace one epoch by four optimizers at falling rates, and explain each.

    Args:
        target: a recipe; its first task is used.
        rates: learning rates, falling.

    Returns:
        The finding.
    """
    recipe = _equal_batches(load_recipes(target)[0])
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for optimizer in EXPECTED:
            for rate in rates:
                options = TraceOptions(
                    optimizer=optimizer,
                    lr=rate,
                    epochs=1,
                    batch_size=len(recipe.train) // BATCHES,
                    dtype="float64",
                    record=("gradients", "batches"),
                    target=target,
                )
                run = trace(prepare(recipe, options), Path(folder) / f"{optimizer}-{rate}")
                budget = error_budget(run, objective_of(run, recipe, torch.float64), remainder=True)
                rows.append({"optimizer": optimizer, "lr": rate, **_numbers(budget)})
    table = pd.DataFrame(rows)
    plain = table[table["optimizer"] == "sgd"].nsmallest(3, "lr")
    falls = fitted_order(plain["lr"], plain["relative_residual"])
    last = table[table["lr"] == min(rates)].set_index("optimizer")
    named = all(last.loc[name, "largest_term"] == term for name, term in EXPECTED.items() if name != "sgd")
    held = (
        named
        and bool((table["closure"] <= CLOSURE).all())
        and abs(falls - 1) <= 0.1
        and all(last.loc[name, "relative_residual"] > 0.01 for name in EXPECTED if name != "sgd")
    )
    evidence = (
        f"at lr {min(rates):g} the relative residual is "
        + ", ".join(
            f"{last.loc[name, 'relative_residual']:.2g} for {name} ({last.loc[name, 'largest_term']} "
            f"{last.loc[name, 'largest_share']:.0%})"
            for name in EXPECTED
        )
        + f"; SGD's falls with power {falls:.2f} of the rate; the terms sum to the residual within "
        f"{table['closure'].max():.0e}"
    )

    def draw(ax: Axes) -> None:
        sns.lineplot(
            table, x="lr", y="relative_residual", hue="optimizer", style="optimizer", markers=True, dashes=False, ax=ax,
            palette="colorblind",
        )  # fmt: skip
        ax.set(xscale="log", yscale="log", xlabel="learning rate")
        ax.set_ylabel(r"$\|\tau_1 + \kappa S g_0\| \;/\; \|\tau_1\|$")
        ax.set_title(f"Distance of one epoch's task vector from minus the gradient: {recipe.name}")
        for name, part in table.groupby("optimizer"):
            first = part[part["lr"] == min(rates)].iloc[0]
            ax.annotate(
                f"{first['largest_term']} {first['largest_share']:.0%}", (first["lr"], first["relative_residual"]),
                OFFSETS.get(name, (8, 4)), textcoords="offset points", fontsize=8, color="0.3",
            )  # fmt: skip
        sns.move_legend(ax, "lower right", title=None, frameon=False)

    claim = (
        "With equal mini-batches one epoch of SGD tends to minus the gradient as the rate falls; momentum and Adam do "
        "not, and the error budget puts this down to batch order and preconditioner."
    )
    return Finding(claim, bool(held), evidence, table, draw)


def _numbers(budget: ErrorBudget) -> dict[str, object]:
    (epoch,) = budget.residual_norms
    largest = max(budget.rows, key=lambda row: row.share)
    return {
        "relative_residual": budget.relative_residuals[epoch],
        "largest_term": largest.term,
        "largest_share": largest.share,
        "closure": budget.closure,
    }


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
