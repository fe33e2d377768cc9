"""The three figures of the merging study, each a function of its tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from .merge_claims import lost_by_merging_late

WIDTH, HEIGHT = 6.8, 2.5  # inches: the text width of a page, and of the panels alone
LOW = 1.6  # inches: the height of a row of panels
ROW = 0.2  # inches that a row of the legend takes
COLUMNS = 5
TOGETHER = 3  # methods in one panel: more bands hide each other
MARKERS = ("o", "s", "D", "^", "v", "p", "h", "<", ">")  # filled ones: a thin cross does not show at this size


def _panels(ax: Axes, count: int, draw: Callable[[int, Axes], None], share: bool = True) -> None:
    """Put panels side by side in the place of one axes, so that a figure stays one function of one axes.

    All panels have the same entries in their legends: one legend stands below them, where it takes no width.
    """
    figure = ax.figure.get_figure(root=True)
    ax.remove()
    axes = figure.subplots(1, count, sharey=share, squeeze=False).ravel()
    for place, panel in enumerate(axes):
        draw(place, panel)
    handles, labels = axes[-1].get_legend_handles_labels()
    for panel in axes:
        panel.get_legend().remove()
    rows = -(-len(labels) // COLUMNS)
    columns = -(-len(labels) // rows)
    figure.set_size_inches(min(WIDTH, 1.2 + 2.6 * count), HEIGHT + ROW * rows)
    figure.legend(
        handles,
        [label.replace("_", " ") for label in labels],
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=8,
    )


def _epochs_axis(ax: Axes, epochs: list[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(epochs))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.tick_params(labelsize=8)


def _markers(names: list[str]) -> dict[str, str]:
    return {name: MARKERS[place % len(MARKERS)] for place, name in enumerate(names)}


def draw_accuracy(table: pd.DataFrame, ax: Axes) -> None:
    """Accuracy of the merged model relative to the single-task models, over epochs before merging.

    Args:
        table: the summary of the study, with its intervals.
        ax: replaced by panels: one row an optimizer, and in each panel a few methods with bands for their intervals.
    """
    means = table[table["method"] != "single"]
    methods, optimizers = list(dict.fromkeys(means["method"])), list(dict.fromkeys(means["optimizer"]))
    colours = dict(zip(methods, sns.color_palette("colorblind", len(methods)), strict=True))
    markers = _markers(methods)
    columns = [methods[first : first + TOGETHER] for first in range(0, len(methods), TOGETHER)]
    figure = ax.figure.get_figure(root=True)
    ax.remove()
    figure.set_size_inches(WIDTH, 0.9 + LOW * len(optimizers) + ROW * TOGETHER)
    grid = figure.subplots(len(optimizers), len(columns), sharex=True, sharey="row", squeeze=False)
    for row, optimizer in zip(grid, optimizers, strict=True):
        for panel, shown in zip(row, columns, strict=True):
            for method in shown:
                mine = means[(means["optimizer"] == optimizer) & (means["method"] == method)].sort_values("epochs")
                _with_band(mine, panel, color=colours[method], marker=markers[method], label=method.replace("_", " "))
            panel.axhline(1, color="0.4", linewidth=0.8, linestyle=":")
            _epochs_axis(panel, sorted(set(means["epochs"])))
            panel.label_outer()
        row[0].set_ylabel(f"{optimizer}\naccuracy relative\nto single-task models", fontsize=8)
    for panel in grid[-1]:
        panel.set_xlabel("epochs before merging")
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.3), frameon=False, fontsize=8)


def _with_band(rows: pd.DataFrame, panel: Axes, **style: Any) -> None:
    """A line through the means, in a band from the lower to the upper ends of their intervals."""
    epochs = rows["epochs"].to_numpy()
    panel.fill_between(
        epochs, rows["normalised_low"], rows["normalised_high"], color=style["color"], alpha=0.18, linewidth=0
    )
    panel.plot(
        epochs, rows["normalised"], markersize=4.2, markeredgewidth=0.3, markeredgecolor="white", linewidth=1.1, **style
    )


def draw_direction(courses: pd.DataFrame, ax: Axes) -> None:
    """How much of the way the first epoch decides: gradient norms and directions, over epochs.

    Args:
        courses: optimizer, seed, task, epochs, gradient_norm (relative to the first epoch's) and cosine.
        ax: replaced by two panels.
    """
    quantities = (
        ("gradient_norm", "gradient norm / first epoch's"),
        ("cosine", r"$\cos(\tau_k,\, -g_0)$"),
    )

    def draw(place: int, panel: Axes) -> None:
        column, label = quantities[place]
        sns.lineplot(
            courses,
            x="epochs",
            y=column,
            hue="optimizer",
            style="optimizer",
            palette="colorblind",
            markers=True,
            dashes=False,
            errorbar=("pi", 80),  # of tasks and seeds
            err_kws={"alpha": 0.12, "linewidth": 0},
            markersize=4,
            linewidth=1.2,
            ax=panel,
        )
        _epochs_axis(panel, sorted(set(courses["epochs"])))
        panel.set(xlabel="epochs k", ylabel=label, ylim=(min(0.0, courses[column].min()), None))

    _panels(ax, len(quantities), draw, share=False)


def draw_prediction(scores: pd.DataFrame, ax: Axes) -> None:
    """The predicted second-order error of each task against the accuracy it loses when merged late.

    Args:
        scores: the long table of the study.
        ax: replaced by one panel an optimizer that has predictions.
    """
    known = scores[scores["predicted_error"].notna()]
    optimizers = list(dict.fromkeys(known["optimizer"]))

    def draw(place: int, panel: Axes) -> None:
        table = lost_by_merging_late(known[known["optimizer"] == optimizers[place]])
        table["lost"] *= 100
        sns.scatterplot(
            table, x="predicted_error", y="lost", hue="task", style="task", palette="colorblind", s=28, ax=panel
        )
        panel.axhline(0, color="0.4", linewidth=0.8, linestyle=":")
        panel.set_xscale("log")
        panel.set(xlabel=r"predicted $\|Q_k H_0 g_0\| \,/\, \|S_k g_0\|$", title=optimizers[place])
        panel.set_ylabel("points lost by merging late" if place == 0 else "")

    if optimizers:
        _panels(ax, len(optimizers), draw)
    else:
        ax.text(0.5, 0.5, "no optimizer of this study has a prediction", ha="center", transform=ax.transAxes)
        ax.set_axis_off()
