"""Task arithmetic against multitask training after several epochs: the gap is `-alpha lr^2 C_k` up to third order.

The order of convergence decides: subtracted with the coefficient that was derived, the prediction leaves a residual
that falls with the third power of the rate; half the coefficient would leave one that falls with the second. C_k is
frozen at the pretrained weights: one gradient and two Hessian-vector products a task serve all alphas and all rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from tvgrad.errors import TvgradError
from tvgrad.problem.objective import Objective
from tvgrad.recipes.catalogue import load_recipes
from tvgrad.record.options import TraceOptions
from tvgrad.record.training_loop import prepare
from tvgrad.theory.expansion import expand
from tvgrad.theory.multitask import gap_parts, multitask_gap
from tvgrad.update_rules.rules import GD
from tvgrad.vectors.algebra import combination
from tvgrad.vectors.parameters import norm

from .analysis_result import Finding, fitted_order, guide_line

HALVINGS, LARGEST_ERROR = 6, 0.02
ALPHAS = (0.2, 0.4, 1.0)
DRAWN = 0.4
EPOCHS = 5
SLACK = 0.1


def analyse(target: str = "digits", rates: Sequence[float] = (), epochs: int = EPOCHS) -> Finding:
    """Train tasks and their sum at falling rates, and fit the order of what the prediction leaves.

    Args:
        target: a recipe with several tasks.
        rates: learning rates; by default six, each half the one before, the largest of which keeps the predicted
            second-order error of every task under 2 %.
        epochs: k.

    Returns:
        The finding.

    Raises:
        TvgradError: the recipe has one task.
    """
    options = TraceOptions(optimizer="gd", dtype="float64", target=target)
    tasks = [prepare(recipe, options).objective for recipe in load_recipes(target)]
    if len(tasks) < 2:
        raise TvgradError(f"{target} has one task, and task arithmetic adds several: give a recipe with two or more")
    rates = [float(rate) for rate in rates] or _falling(tasks, epochs)
    frozen = gap_parts(tasks, rates[0], epochs)
    rows = []
    for rate in rates:
        trained = multitask_gap(tasks, rate, epochs, ALPHAS, predict=False)
        parts = replace(frozen, lr=rate)
        for row in trained.rows:
            measured, predicted = trained.measured[row.alpha], parts.gap(row.alpha)
            rows.append({
                "alpha": row.alpha,
                "lr": rate,
                "relative_gap": row.relative_gap,
                "gap": row.measured_norm,
                "predicted": norm(predicted),
                "residual": norm(combination((1.0, measured), (-1.0, predicted))),
                "residual_with_half": norm(combination((1.0, measured), (-0.5, predicted))),
            })
    table = pd.DataFrame(rows)
    orders = {
        column: [fitted_order(part["lr"], part[column]) for _, part in table.groupby("alpha")]
        for column in ("gap", "residual", "residual_with_half")
    }
    held = all(abs(order - 3) <= SLACK for order in orders["residual"])
    held = held and all(abs(order - 2) <= SLACK for order in orders["gap"] + orders["residual_with_half"])
    said = {column: ", ".join(f"{order:.2f}" for order in found) for column, found in orders.items()}
    evidence = (
        f"fitted orders for alpha {', '.join(f'{alpha:g}' for alpha in ALPHAS)}: gap {said['gap']}; residual "
        f"{said['residual']}; residual with half the coefficient {said['residual_with_half']}"
    )

    def draw(ax: Axes) -> None:
        mine = ALPHAS.index(DRAWN)
        names = {
            column: f"{words}: {orders[column][mine]:.2f}"
            for column, words in (
                ("gap", "gap"),
                ("residual_with_half", "less half the prediction"),
                ("residual", "less the prediction"),
            )
        }
        long = table[table["alpha"] == DRAWN].rename(columns=names).melt("lr", list(names.values()))
        sns.lineplot(
            long, x="lr", y="value", hue="variable", style="variable", markers=True, dashes=False, ax=ax,
            palette="colorblind",
        )  # fmt: skip
        ax.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="norm")
        ax.set_title(rf"$\theta_{{TA}} - \theta_{{MT}}$ after {epochs} epochs, $\alpha$ = {DRAWN:g}, {target}")
        guide_line(ax, long[long["variable"] == names["residual_with_half"]], 2)
        guide_line(ax, long[long["variable"] == names["residual"]], 3)
        ax.set_ylim(top=100 * long["value"].max())  # room for the legend
        sns.move_legend(ax, "upper left", title="norm of the gap, and fitted order", frameon=False, alignment="left")

    claim = (
        f"After {epochs} epochs task arithmetic and multitask training of {target} differ by -alpha lr^2 C_k, up to a "
        "residual of third order."
    )
    return Finding(claim, held, evidence, table, draw)


def _falling(tasks: Sequence[Objective], epochs: int) -> list[float]:
    """Rates small enough for an expansion, from one gradient and one product a task."""
    rule = GD(1e-3)
    largest = min(1e-3 * expand(task, rule).rate_factor_within(rule, epochs, LARGEST_ERROR) for task in tasks)
    return [largest / 2**halving for halving in range(HALVINGS)]
