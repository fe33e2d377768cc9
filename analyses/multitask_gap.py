"""Task arithmetic against multitask training after several epochs: the gap is `-alpha lr^2 C_k` up to third order.

The order of convergence decides: subtracted with the coefficient that was derived, the prediction leaves a residual
that falls with the third power of the rate; half the coefficient would leave one that falls with the second.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from tvgrad.parameters import norm
from tvgrad.recipes.catalogue import load_recipes
from tvgrad.record.training import TraceOptions, prepare
from tvgrad.theory.combination import combination
from tvgrad.theory.multitask import multitask_gap

from .finding import Finding, fitted_order

__all__ = ["analyse"]

RATES = (0.004, 0.002, 0.001, 0.0005, 0.00025, 0.000125)
ALPHAS = (0.2, 0.4, 1.0)
EPOCHS = 5
SLACK = 0.1


def analyse(target: str = "digits", rates: Sequence[float] = RATES, epochs: int = EPOCHS) -> Finding:
    """Train tasks and their sum at falling rates, and fit the order of what the prediction leaves.

    Args:
        target: a recipe with several tasks.
        rates: learning rates.
        epochs: k.

    Returns:
        The finding.
    """
    options = TraceOptions(optimizer="gd", dtype="float64", target=target)
    tasks = [prepare(recipe, options).objective for recipe in load_recipes(target)]
    rows = []
    for rate in rates:
        for alpha in ALPHAS:
            gap = multitask_gap(tasks, rate, epochs, alpha)
            row = gap.rows[0]
            half = norm(combination((1.0, gap.measured[alpha]), (-0.5, gap.predicted[alpha])))
            rows.append({
                "alpha": alpha,
                "lr": rate,
                "relative_gap": row.relative_gap,
                "gap": row.measured_norm,
                "predicted": row.predicted_norm,
                "residual": row.residual_norm,
                "residual_with_half": half,
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
        names = {"gap": "gap", "residual": "gap - prediction", "residual_with_half": "gap - half the prediction"}
        long = table[table["alpha"] == ALPHAS[1]].rename(columns=names).melt("lr", list(names.values()))
        sns.lineplot(long, x="lr", y="value", hue="variable", style="variable", markers=True, dashes=False, ax=ax)
        ax.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="norm")
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_title(rf"$\theta_{{TA}} - \theta_{{MT}}$ after {epochs} epochs, $\alpha$ = {ALPHAS[1]:g}")
        sns.move_legend(ax, "lower right", title=None, frameon=False)

    claim = (
        f"After {epochs} epochs task arithmetic and multitask training of {target} differ by -alpha lr^2 C_k, up to a "
        "residual of third order."
    )
    return Finding(claim, held, evidence, table, draw)
