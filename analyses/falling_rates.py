"""Learning rates that fall by halves, and the power of the rate with which something falls along."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from tvgrad.problem.objective import Objective
from tvgrad.recipes.catalogue import load_recipes
from tvgrad.record.options import TraceOptions
from tvgrad.record.training_loop import prepare
from tvgrad.theory.expansion import expand
from tvgrad.update_rules.linear import LinearRule

TRIED = 1e-3


def objectives_of(target: str) -> dict[str, Objective]:
    """Load the tasks of a recipe as full-batch problems in float64.

    Args:
        target: the recipe.

    Returns:
        Task -> its objective.
    """
    options = TraceOptions(optimizer="gd", dtype="float64", target=target)
    return {recipe.name: prepare(recipe, options).objective for recipe in load_recipes(target)}


def falling_rates(
    objectives: Iterable[Objective],
    rule_of: Callable[[float], LinearRule],
    steps: int,
    *,
    relative_error: float,
    count: int,
) -> list[float]:
    """Choose rates small enough for an expansion, from one gradient and one Hessian-vector product a task.

    Args:
        objectives: the tasks.
        rule_of: learning rate -> update rule.
        steps: full-batch steps.
        relative_error: the predicted second-order error of the worst task at the largest rate, over the task vector.
        count: how many rates.

    Returns:
        The rates, each half the one before.
    """
    rule = rule_of(TRIED)
    factors = [expand(one, rule).rate_factor_within(rule, steps, relative_error) for one in objectives]
    return [TRIED * min(factors) / 2**halving for halving in range(count)]


def fitted_order(rates: Sequence[float], errors: Sequence[float]) -> float:
    """The power of the learning rate that errors follow.

    Args:
        rates: learning rates, at least two.
        errors: one positive number for each.

    Returns:
        The slope of the least-squares line through the logarithms.
    """
    return float(np.polyfit(np.log(np.asarray(rates)), np.log(np.asarray(errors)), 1)[0])


def fitted_orders(table: pd.DataFrame, by: Sequence[str], columns: Iterable[str]) -> pd.DataFrame:
    """Fit the order of each column over the rates of each group.

    Args:
        table: has the columns lr, `by` and `columns`.
        by: columns that tell the groups apart.
        columns: what is fitted.

    Returns:
        One row a group: `by`, and the order of each column.
    """
    return pd.DataFrame([
        {
            **dict(zip(by, keys, strict=True)),
            **{column: fitted_order(part["lr"], part[column]) for column in columns},
        }
        for keys, part in table.groupby(list(by), sort=False)
    ])


def draw_falling(ax: Axes, table: pd.DataFrame, guides: Mapping[str, int], **options: object) -> None:
    """Draw values over rates on logarithmic axes, a line for each of the table's kinds.

    Args:
        ax: where.
        table: the columns lr, value and variable (the kind).
        guides: kind -> the order that a theorem gives it, drawn below its points.
        options: more of `seaborn.lineplot`.
    """
    sns.lineplot(
        table, x="lr", y="value", hue="variable", style="variable", ax=ax,
        **{"markers": True, "dashes": False, "palette": "colorblind", **options},
    )  # fmt: skip
    ax.set(xscale="log", yscale="log")
    for kind, order in guides.items():
        _guide_line(ax, table[table["variable"] == kind], order)


def _guide_line(ax: Axes, table: pd.DataFrame, order: int) -> None:
    first, last = float(table["lr"].min()), float(table["lr"].max())
    # Under all points, half a decade away from the nearest.
    height = float((table["value"] / table["lr"] ** order).min()) / 3
    ax.plot([first, last], [height * first**order, height * last**order], color="0.4", linewidth=0.9, linestyle="--")
    middle = math.sqrt(first * last)
    ax.annotate(
        f"slope {order}", (middle, height * middle**order), (3, -11),
        textcoords="offset points", fontsize=8, color="0.3",
    )  # fmt: skip
