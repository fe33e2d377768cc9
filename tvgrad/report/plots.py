"""The figure of each kind of result: what `.plot()` draws.

Results lie below figures. `tvgrad.results.Plotted` loads this module by its name when a figure is asked for, and here
each kind of result that has one is given its drawing.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator

from tvgrad.errors import TvgradError
from tvgrad.report.budget_figure import budget_shares
from tvgrad.report.checkpoints import CheckpointTables
from tvgrad.report.figures import FIGURES, cross_task_cosines, drawable
from tvgrad.report.geometry import epoch_cosines, trajectories
from tvgrad.report.style import HEIGHT, new_axes, styled
from tvgrad.report.tables import RunTables, run_tables
from tvgrad.store.run import Run
from tvgrad.streaming.gram import GramResult
from tvgrad.theory.attribution import Attribution
from tvgrad.theory.error_budget import ErrorBudget
from tvgrad.theory.explain import Explanation
from tvgrad.theory.multitask import MultitaskGap
from tvgrad.theory.second_order import Prediction
from tvgrad.theory.task_pairs import TaskPairs
from tvgrad.vectors.parameters import ALL

MOST_CLASSES = 12
"""More names than these are left out of a legend."""

MOST_VECTORS = 40
"""More names than these cannot be read at the sides of a heat map."""


@singledispatch
def plot(result: object, ax: Axes | None = None, **options: Any) -> Axes:
    """Draw the figure of a result.

    Args:
        result: an error budget or an explanation (shares of its terms), the prediction of pairs or a Gram matrix
            (cosines), a prediction (relative second-order error over epochs), a multitask gap (norms over alpha), an
            attribution (summed shares of samples), and a run or the tables of a report (`figure=NAME`, one of those of
            a report; by default the cosine to minus the first gradient, or between tasks).
        ax: axes to draw on; by default new ones.
        **options: of the figure.

    Returns:
        The axes.

    Raises:
        TvgradError: there is no figure of it, or nothing to draw.
    """  # noqa: DOC202 - returned by those below
    raise TvgradError(f"there is no figure of a {type(result).__name__}: its table is .to_frame()")


@plot.register
def _budget(result: ErrorBudget, ax: Axes | None = None, **options: Any) -> Axes:
    if not result.rows:
        raise TvgradError("the error budget has no terms: there is no residual to draw")
    return budget_shares(result.to_frame(), ax=ax, **options)


@plot.register
def _explanation(result: Explanation, ax: Axes | None = None, **options: Any) -> Axes:
    return _budget(result.budget, ax=ax, **options)


@plot.register
def _pairs(result: TaskPairs, ax: Axes | None = None, **options: Any) -> Axes:
    table = result.to_frame().rename(columns={"task_a": "run_a", "task_b": "run_b", "epochs": "epoch"})
    return cross_task_cosines(table.assign(group=ALL), ax=ax, **options)


@plot.register
def _gram(result: GramResult, ax: Axes | None = None, **options: Any) -> Axes:
    names, group = result.labels, options.pop("group", ALL)
    if not 2 <= len(names) <= MOST_VECTORS:
        raise TvgradError(
            f"cosines are drawn of 2 to {MOST_VECTORS} vectors, and here are {len(names)}: .to_frame() has them all"
        )
    rows = [
        {"run_a": left, "run_b": right, "cos_task_vectors": result.cosine(left, right, group)}
        for place, left in enumerate(names)
        for right in names[place + 1 :]
    ]
    ax = cross_task_cosines(pd.DataFrame(rows).assign(group=ALL, epoch=float("nan")), ax=ax, **options)
    if ax.get_title():
        ax.set_title("Cosine between vectors" if group == ALL else f"Cosine between vectors, {group}")
    return ax


@plot.register
@styled
def _attribution(result: Attribution, ax: Axes | None = None, *, title: bool = True) -> Axes:
    """Shares in order, class by class: how much of the task vector so many samples make."""
    ax = new_axes(ax, height=HEIGHT)
    labels = result.labels
    kinds: list[int | None] = [None] if labels is None else [int(one) for one in np.unique(labels)]
    for kind in kinds:
        own = result.shares if kind is None or labels is None else result.shares[labels == kind]
        summed = np.concatenate([[0.0], np.cumsum(np.sort(own)[::-1])])
        ax.plot(range(len(summed)), summed, linewidth=1.3, label=None if kind is None else f"class {kind}")
    ax.axhline(0, color="0.7", linewidth=0.6)
    ax.set(xlabel="samples, the most aligned first", ylabel="share of the task vector")
    if title:
        ax.set_title(f"{result.run}, epoch {result.epoch}")
    if 1 < len(kinds) <= MOST_CLASSES:
        ax.legend(frameon=False)
    return ax


@plot.register
@styled
def _prediction(result: Prediction, ax: Axes | None = None) -> Axes:
    """The second-order error relative to the first order, until it passes the threshold and after."""
    if not result.relative_errors:
        raise TvgradError(f"the second-order error is withheld: {result.sentences[-1]}")
    ax = new_axes(ax, height=HEIGHT)
    epochs = range(1, len(result.relative_errors) + 1)
    ax.plot(epochs, result.relative_errors, marker="o", markersize=4, linewidth=1.3)
    threshold, within = result.row.threshold, result.row.epochs_within
    ax.axhline(threshold, color="0.4", linewidth=0.8, linestyle=":")
    held = f", kept until epoch {within:.0f}" if within <= epochs[-1] else ""
    ax.annotate(
        f"threshold {threshold:g}{held}", (1, threshold), (2, 3), xycoords=("axes fraction", "data"),
        textcoords="offset points", ha="right", fontsize=8, color="0.3",
    )  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.set(
        xlabel="epochs k",
        ylabel=r"predicted $\|Q_k H_0 g_0\| \,/\, \|S_k g_0\|$",
        title=f"Predicted second-order error of {result.row.rule}, rate {result.row.lr:g}",
    )
    ax.set_ylim(bottom=0)
    return ax


@plot.register
@styled
def _gap(result: MultitaskGap, ax: Axes | None = None) -> Axes:
    ax = new_axes(ax, height=HEIGHT)
    table = result.to_frame().sort_values("alpha")
    for name in ("measured", "predicted", "residual"):
        shown = table[table[f"{name}_norm"] > 0]
        if len(shown):
            ax.plot(shown["alpha"], shown[f"{name}_norm"], marker="o", markersize=4, linewidth=1.3, label=name)
    ax.set_yscale("log")
    if len(table) == 1:
        ax.set_xticks(list(table["alpha"]))
        ax.xaxis.set_minor_locator(NullLocator())
    first = table.iloc[0]
    ax.set(
        xlabel=r"coefficient $\alpha$",
        ylabel="norm",
        title=rf"$\theta_{{TA}} - \theta_{{MT}}$ of {first['tasks']} tasks, $k$ = {first['epochs']}",
    )
    ax.legend(frameon=False)
    return ax


@plot.register
def _run(result: Run, ax: Axes | None = None, **options: Any) -> Axes:
    return _run_tables(run_tables([result]), ax=ax, **options)


@plot.register
def _run_tables(result: RunTables, ax: Axes | None = None, **options: Any) -> Axes:
    further = {"trajectories": trajectories(result.gram), "epoch_cosines": epoch_cosines(result.gram)}
    tables = {
        name: table.assign(task=table["run"].map(result.tasks)) if result.tasks and "run" in table else table
        for name, table in {**result.tables, **further}.items()
    }
    return _of_tables(tables, ("descent_cosines", "epoch_descent_cosines", "trajectory_plane"), ax, **options)


@plot.register
def _checkpoint_tables(result: CheckpointTables, ax: Axes | None = None, **options: Any) -> Axes:
    return _of_tables(result.tables, ("cross_task_cosines", "relative_norms"), ax, **options)


def _of_tables(
    tables: Mapping[str, pd.DataFrame], preferred: tuple[str, ...], ax: Axes | None, figure: str = "", **options: Any
) -> Axes:
    """Draw one of a report's figures: the one asked for, else the first of the preferred that has something to show."""
    found = {name: table for name, _, table in drawable(tables)}
    name = figure or next((one for one in preferred if one in found), "")
    if name not in found:
        asked = f"figure {figure!r} has nothing to show" if figure in FIGURES else f"there is no figure {figure!r}"
        rest = f"choose among {', '.join(found)}" if found else "no other figure has anything either"
        raise TvgradError(f"{asked if figure else 'there is nothing to draw by default'}: {rest}")
    made, table = FIGURES[name], found[name]
    if made.each_run:
        shown = table[table[made.column].notna()]
        options.setdefault("run", str(shown["run"].iloc[0]))
        runs = list(dict.fromkeys(shown["run"]))
        if options["run"] not in runs:
            raise TvgradError(f"there is no run {options['run']!r} in this figure: choose among {', '.join(runs)}")
    return made.draw(table, ax=ax, **options)
