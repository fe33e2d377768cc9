"""How figures look: fonts, colours that colour-blind readers can tell apart, and lines over epochs."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

__all__ = ["STYLE", "lines", "new_axes", "palette", "styled"]

Drawer = TypeVar("Drawer", bound=Callable[..., Axes])

WIDTH, HEIGHT = 5.5, 3.4  # inches: the text width of a one-column paper
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "tvgrad",
    "figure.dpi": 160,
}


MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "*")
MOST_MARKED = 30  # epochs; more markers run together


def styled(draw: Drawer) -> Drawer:
    """Draw a figure under the reports' style: fonts and grids are settled when an artist is made.

    Args:
        draw: a function that returns axes.

    Returns:
        The function, drawing under the style.
    """

    @wraps(draw)
    def under_style(*args: Any, **options: Any) -> Axes:
        with mpl.rc_context(STYLE):
            return draw(*args, **options)

    return cast("Drawer", under_style)


def new_axes(ax: Axes | None, width: float = WIDTH, height: float = HEIGHT) -> Axes:
    """Take the caller's axes, or make a figure.

    Args:
        ax: the caller's, or None.
        width: of a new figure, in inches.
        height: of a new figure, in inches.

    Returns:
        The axes.
    """
    # A figure of its own, unknown to pyplot: nothing stays open, and no window is asked for.
    return Figure(figsize=(width, height), layout="constrained").subplots() if ax is None else ax


def palette(table: pd.DataFrame, column: str = "run") -> dict[str, tuple[float, float, float]]:
    """Give each run its colour, the same in every figure of a report.

    Args:
        table: has the column.
        column: holds the runs' names.

    Returns:
        Run -> colour.
    """
    runs = list(dict.fromkeys(table[column]))
    colours = sns.color_palette("colorblind", 10) if len(runs) <= 10 else sns.husl_palette(len(runs), l=0.5)
    return dict(zip(runs, colours, strict=False))


def lines(table: pd.DataFrame, column: str, ax: Axes) -> Axes:
    """Draw one line a run over epochs.

    Args:
        table: has the columns run and epoch.
        column: what is drawn.
        ax: where.

    Returns:
        The axes.
    """
    runs = list(dict.fromkeys(table["run"]))
    marked = table["epoch"].nunique() <= MOST_MARKED
    sns.lineplot(
        table,
        x="epoch",
        y=column,
        hue="run",
        style="run",
        markers={run: MARKERS[place % len(MARKERS)] for place, run in enumerate(runs)} if marked else False,
        palette=palette(table),
        estimator=None,
        markersize=5,
        linewidth=1.3,
        ax=ax,
    )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if ax.get_legend() is not None:
        sns.move_legend(ax, "upper left", bbox_to_anchor=(1.0, 1.0), title=None, frameon=False)
    return ax
