"""Task arithmetic against multitask training after several epochs: the gap is `-alpha lr^2 C_k` up to third order.

The order of convergence decides: subtracted with the coefficient that was derived, the prediction leaves a residual
that falls with the third power of the rate; half the coefficient would leave one that falls with the second. C_k is
frozen at the pretrained weights: one gradient and two Hessian-vector products a task serve all alphas and all rates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from tvgrad.errors import TvgradError
from tvgrad.problem.objective import Objective
from tvgrad.theory.multitask import gap_parts, multitask_gap
from tvgrad.update_rules.rules import GD
from tvgrad.vectors.algebra import combination
from tvgrad.vectors.parameters import norm

from .analysis_result import AnalysisResult, outcome_of
from .falling_rates import draw_falling, falling_rates, fitted_orders, objectives_of

HALVINGS, LARGEST_ERROR = 6, 0.02
ALPHAS = (0.2, 0.4, 1.0)
DRAWN = 0.4
EPOCHS = 5
SLACK = 0.1
FITTED = {
    "gap": ("gap", 2),
    "residual_with_half": ("less half the prediction", 2),
    "residual": ("less the prediction", 3),
}
"""What is fitted -> its name in the figure, and its order by theory."""


def analyse(target: str = "digits", rates: Sequence[float] = (), epochs: int = EPOCHS) -> AnalysisResult:
    """Train tasks and their sum at falling rates, and fit the order of what the prediction leaves.

    Args:
        target: a recipe with several tasks.
        rates: learning rates; by default six, each half the one before, the largest of which keeps the predicted
            second-order error of every task under 2 %.
        epochs: k.

    Returns:
        The result.

    Raises:
        TvgradError: the recipe has one task.
    """
    tasks = list(objectives_of(target).values())
    if len(tasks) < 2:
        raise TvgradError(f"{target} has one task, and task arithmetic adds several: give a recipe with two or more")
    rates = [float(rate) for rate in rates] or falling_rates(
        tasks, GD, epochs, relative_error=LARGEST_ERROR, count=HALVINGS
    )
    table = pd.DataFrame(_gaps(tasks, rates, epochs))
    orders = fitted_orders(table, ("alpha",), FITTED)
    off = [float((orders[column] - order).abs().max()) for column, (_, order) in FITTED.items()]
    said = {column: ", ".join(f"{order:.2f}" for order in orders[column]) for column in FITTED}
    evidence = (
        f"fitted orders for alpha {', '.join(f'{alpha:g}' for alpha in ALPHAS)}: gap {said['gap']}; residual "
        f"{said['residual']}; residual with half the coefficient {said['residual_with_half']}"
    )
    claim = (
        f"After {epochs} epochs task arithmetic and multitask training of {target} differ by -alpha lr^2 C_k, up to a "
        "residual of third order."
    )
    held = all(one <= SLACK for one in off)
    title = rf"$\theta_{{TA}} - \theta_{{MT}}$ after {epochs} epochs, $\alpha$ = {DRAWN:g}, {target}"
    return AnalysisResult(claim, outcome_of(held), evidence, table, partial(_draw, table, orders, title))


def _gaps(tasks: Sequence[Objective], rates: Sequence[float], epochs: int) -> Iterator[dict[str, float]]:
    """The gap at each rate and alpha, and what is left of it without the prediction, whole and half."""
    frozen = gap_parts(tasks, rates[0], epochs)
    for rate in rates:
        trained = multitask_gap(tasks, rate, epochs, ALPHAS, predict=False)
        parts = replace(frozen, lr=rate)
        for row in trained.rows:
            measured, predicted = trained.measured[row.alpha], parts.gap(row.alpha)
            yield {
                "alpha": row.alpha,
                "lr": rate,
                "relative_gap": row.relative_gap,
                "gap": row.measured_norm,
                "predicted": norm(predicted),
                "residual": norm(combination((1.0, measured), (-1.0, predicted))),
                "residual_with_half": norm(combination((1.0, measured), (-0.5, predicted))),
            }


def _draw(table: pd.DataFrame, orders: pd.DataFrame, title: str, ax: Axes) -> None:
    mine = orders[orders["alpha"] == DRAWN].iloc[0]
    names = {column: f"{words}: {mine[column]:.2f}" for column, (words, _) in FITTED.items()}
    long = table[table["alpha"] == DRAWN].rename(columns=names).melt("lr", list(names.values()))
    draw_falling(ax, long, {names[column]: FITTED[column][1] for column in ("residual_with_half", "residual")})
    ax.set(xlabel="learning rate", ylabel="norm", title=title)
    ax.set_ylim(top=100 * long["value"].max())  # room for the legend
    sns.move_legend(ax, "upper left", title="norm of the gap, and fitted order", frameon=False, alignment="left")
