"""One gradient and one Hessian-vector product, before training, predict the second-order error after several epochs.

The norm of `tau_k - order 1` is held against its prediction from one product, with and without saturation, at learning
rates that people would use and for several numbers of epochs. A vector is more than its norm: how far the second-order
error is from its order-2 prediction as a vector stands beside it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import partial

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from tvgrad.problem.objective import Objective
from tvgrad.theory.expansion import expand
from tvgrad.update_rules.rules import GD
from tvgrad.vectors.algebra import add_scaled, combination, difference, zeros_like
from tvgrad.vectors.parameters import Weights, norm

from .analysis_result import AnalysisResult, outcome_of
from .falling_rates import objectives_of

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
EPOCHS = (2, 5, 10)
SMALL_ERROR, CLOSE = 0.2, 0.25
BINS = (0.0, 0.01, 0.05, SMALL_ERROR, 0.5, 1.0, math.inf)


def analyse(target: str = "digits", rates: Sequence[float] = RATES, epochs: Sequence[int] = EPOCHS) -> AnalysisResult:
    """Predict, train, compare, for every task, rate and number of epochs.

    Args:
        target: a recipe.
        rates: learning rates.
        epochs: numbers of epochs.

    Returns:
        The result.
    """
    table = pd.DataFrame([
        {"task": task, **row} for task, one in objectives_of(target).items() for row in _errors(one, rates, epochs)
    ])
    for place, column in ((6, "predicted_norm"), (8, "predicted_norm_order2")):
        table.insert(place, column.replace("predicted_norm", "ratio"), table[column] / table["measured_norm"])
    small = table[table["relative_error"] < SMALL_ERROR]
    close, plain = _close(small)
    evidence = (
        f"{close} of {len(small)} cases under {SMALL_ERROR:.0%} are predicted within {CLOSE:.0%} in norm (ratio "
        f"{small['ratio'].min():.2f} to {small['ratio'].max():.2f}; {plain} of them without saturation, ratio "
        f"{small['ratio_order2'].min():.2f} to {small['ratio_order2'].max():.2f}); the vector is off by "
        f"{small['vector_residual'].median():.0%} of it in the median, {small['vector_residual'].max():.0%} at worst"
    )
    claim = (
        f"Wherever the second-order error is under {SMALL_ERROR:.0%} of the task vector, one Hessian-vector product "
        f"predicts its norm within {CLOSE:.0%}, on all tasks of {target}."
    )
    held = bool(len(small)) and close == len(small)
    return AnalysisResult(
        claim, outcome_of(held), evidence, table, partial(_draw, table, target), verdicts=_how_often(table)
    )


def _errors(objective: Objective, rates: Sequence[float], epochs: Sequence[int]) -> Iterator[dict[str, float]]:
    """Measured and predicted second-order errors of one task."""
    expansion = expand(objective, GD(1.0))
    for rate in rates:
        rule = GD(rate)
        for k, tau in _trained(objective, expansion.loss_gradient, rate, epochs).items():
            error = difference(tau, expansion.order1(rule, k))
            yield {
                "lr": rate,
                "epochs": k,
                "relative_error": norm(error) / norm(tau),
                "measured_norm": norm(error),
                "predicted_norm": float(expansion.saturated_norms(rule, k)[k]),
                "predicted_norm_order2": float(expansion.error_norms(rule, k)[k]),
                "vector_residual": norm(difference(tau, expansion.order2(rule, k))) / norm(error),
            }


def _close(table: pd.DataFrame) -> tuple[int, int]:
    """In how many cases the predicted norm is close, with saturation and without."""
    with_, without = (int(((table[column] - 1).abs() <= CLOSE).sum()) for column in ("ratio", "ratio_order2"))
    return with_, without


def _draw(table: pd.DataFrame, target: str, ax: Axes) -> None:
    names = {"ratio_order2": "order 2", "ratio": "order 2 with saturation"}
    long = table.rename(columns=names).melt("relative_error", list(names.values()))
    sns.scatterplot(
        long, x="relative_error", y="value", hue="variable", style="variable", ax=ax, s=22, palette="colorblind",
    )  # fmt: skip
    ax.axhspan(1 - CLOSE, 1 + CLOSE, color="0.5", alpha=0.2, linewidth=0)
    ax.axvline(SMALL_ERROR, color="0.3", linewidth=1, linestyle="--")
    ax.set(xscale="log", yscale="log", title=f"Norm of the second-order error, from one product: {target}")
    ax.set(xlabel="second-order error / task vector, measured", ylabel="predicted / measured norm")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_minor_locator(NullLocator())
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.annotate(
        f"within {CLOSE:.0%}", (0.02, 1 + CLOSE), (0, 2), xycoords=ax.get_yaxis_transform(),
        textcoords="offset points", fontsize=8, color="0.3",
    )  # fmt: skip
    sns.move_legend(ax, "upper left", title=None, frameon=False)


def _how_often(table: pd.DataFrame) -> tuple[str, ...]:
    """For each range of the relative error: how many norms were close, and how far the vectors were off."""
    said = []
    for low, high in itertools.pairwise(BINS):
        part = table[(table["relative_error"] >= low) & (table["relative_error"] < high)]
        if not len(part):
            continue
        close, plain = _close(part)
        until = f"to {high:.0%}" if math.isfinite(high) else "and more"
        said.append(
            f"relative error {low:.0%} {until}: norm within {CLOSE:.0%} in {close} of {len(part)} cases, {plain} "
            f"without saturation; vector off by {part['vector_residual'].median():.0%} in the median, "
            f"{part['vector_residual'].max():.0%} at worst"
        )
    return tuple(said)


def _trained(objective: Objective, gradient: Weights, rate: float, epochs: Sequence[int]) -> dict[int, Weights]:
    """Task vectors of gradient descent after some numbers of epochs, in float64."""
    moved, found = zeros_like(gradient), {}
    for step in range(max(epochs)):
        here = combination((1.0, objective.initial), (1.0, moved))
        add_scaled(moved, gradient if step == 0 else objective.gradient(here), -rate)
        if step + 1 in epochs:
            found[step + 1] = combination((1.0, moved))
    return found
