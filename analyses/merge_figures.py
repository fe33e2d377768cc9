"""The three figures of the merging study, each a function of its tables."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from .merge_claims import lost_by_merging_late

WIDTH, HEIGHT = 6.8, 2.5  # inches: the text width of a page, and of the panels alone
LOW = 1.6  # inches: the height of a panel that stands above others
ROW = 0.2  # inches that a row of the legend takes
COLUMNS = 5
SPREAD = 0.7  # octaves, on the axis of epochs, over which the methods of one epoch stand side by side
MARKERS = ("o", "s", "D", "^", "v", "p", "h", "<", ">")  # filled ones: a thin cross does not show at this size


def _panels(ax: Axes, count: int, draw: Callable[[int, Axes], None], share: bool = True, stacked: bool = False) -> None:
    """Put panels side by side in the place of one axes, so that a figure stays one function of one axes.

    Stacked ones stand one above the other, each as wide as the page. All panels have the same entries in their legends:
    one legend stands below them, where it takes no width.
    """
    figure = ax.figure.get_figure(root=True)
    ax.remove()
    shape = (count, 1) if stacked else (1, count)
    axes = figure.subplots(*shape, sharex=stacked, sharey=share, squeeze=False).ravel()
    for place, panel in enumerate(axes):
        draw(place, panel)
    handles, labels = axes[-1].get_legend_handles_labels()
    for panel in axes:
        panel.get_legend().remove()
    rows = -(-len(labels) // COLUMNS)
    columns = -(-len(labels) // rows)
    width, height = (WIDTH, HEIGHT + LOW * (count - 1)) if stacked else (min(WIDTH, 1.2 + 2.6 * count), HEIGHT)
    figure.set_size_inches(width, height + ROW * rows)
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


def dodged(table: pd.DataFrame, methods: list[str]) -> pd.Series:
    """Move each method a little to the side, so that the bars of one epoch do not hide each other.

    Args:
        table: columns epochs and method.
        methods: in the order from left to right.

    Returns:
        Where on the logarithmic axis of epochs each row is drawn, within `SPREAD` / 2 octaves of its epochs.
    """
    step = SPREAD / max(1, len(methods) - 1)
    shift = {method: (place - (len(methods) - 1) / 2) * step for place, method in enumerate(methods)}
    return table["epochs"] * 2.0 ** table["method"].map(shift)


def draw_accuracy(table: pd.DataFrame, ax: Axes) -> None:
    """Accuracy of the merged model relative to the single-task models, over epochs before merging.

    Args:
        table: the summary of the study, with its intervals.
        ax: replaced by one panel an optimizer, one above the other.
    """
    means = table[table["method"] != "single"].copy()
    methods, optimizers = list(dict.fromkeys(means["method"])), list(dict.fromkeys(means["optimizer"]))
    colours = dict(zip(methods, sns.color_palette("colorblind", len(methods)), strict=True))
    markers = _markers(methods)
    means["place"] = dodged(means, methods)

    def draw(place: int, panel: Axes) -> None:
        mine = means[means["optimizer"] == optimizers[place]]
        for method in methods:
            rows = mine[mine["method"] == method]
            middle = rows["normalised"].to_numpy()
            panel.errorbar(
                rows["place"].to_numpy(),
                middle,
                yerr=[middle - rows["normalised_low"].to_numpy(), rows["normalised_high"].to_numpy() - middle],
                color=colours[method],
                marker=markers[method],
                markersize=4.2,
                markeredgewidth=0.3,
                markeredgecolor="white",
                linewidth=0.6,
                elinewidth=0.8,  # bars: nine bands would hide each other
                label=method,
            )
        panel.axhline(1, color="0.4", linewidth=0.8, linestyle=":")
        panel.legend()
        _epochs_axis(panel, sorted(set(mine["epochs"])))
        panel.set(xlabel="epochs before merging", title=optimizers[place])
        panel.set_ylabel("accuracy relative to\nsingle-task models")

    _panels(ax, len(optimizers), draw, stacked=True)


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
