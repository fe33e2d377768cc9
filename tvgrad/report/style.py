"""How figures look: fonts, colours that colour-blind readers can tell apart, and lines over epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any, TypeVar, cast

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

Drawer = TypeVar("Drawer", bound=Callable[..., Axes])

WIDTH, HEIGHT = 5.5, 3.4  # inches: the text width of a one-column paper
OTHER_SCRIPTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "WenQuanYi Zen Hei", "Microsoft YaHei", "Malgun Gothic",
    "PingFang SC", "Hiragino Sans", "Arial Unicode MS",
)  # fmt: skip
"""Fonts with signs that the own font of matplotlib lacks; those that are installed are asked in this order."""
_INSTALLED = set(fontManager.get_font_names())

STYLE: dict[Any, Any] = {
    "font.family": ["sans-serif", *(name for name in OTHER_SCRIPTS if name in _INSTALLED)],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=sns.color_palette("colorblind")),
    "legend.frameon": False,
    "svg.hashsalt": "tvgrad",
    "svg.fonttype": "none",  # text stays text: it can be searched, and edited before printing
    "pdf.fonttype": 42,
    "figure.dpi": 160,
    "savefig.dpi": 300,
}


MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "*")
MOST_MARKED = 30  # epochs; more markers run together
ROW = 0.19  # inches that a row of a legend takes
LETTERS = 62  # that fit side by side under a figure


def styled(draw: Drawer) -> Drawer:
    """Draw a figure under the reports' style: fonts and grids are settled when an artist is made.

    Every figure takes `title=False`, for papers whose captions say what it shows.

    Args:
        draw: a function that returns axes.

    Returns:
        The function, drawing under the style.
    """

    @wraps(draw)
    def under_style(*args: Any, **options: Any) -> Axes:
        titled = options.pop("title", True)
        with mpl.rc_context(STYLE):
            ax = draw(*args, **options)
            for place in () if titled else ("left", "center", "right"):
                ax.set_title("", loc=place)
            return ax

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
    """Draw one line a run over epochs; of tasks with several runs, their mean and a band from least to most.

    Args:
        table: has the columns run and epoch, and task where runs of one task differ in their seed.
        column: what is drawn.
        ax: where.

    Returns:
        The axes.
    """
    by = "task" if has_seeds(table) else "run"
    runs = list(dict.fromkeys(table[by]))
    marked = table["epoch"].nunique() <= MOST_MARKED
    sns.lineplot(
        table,
        x="epoch",
        y=column,
        hue=by,
        style=by,
        markers={run: MARKERS[place % len(MARKERS)] for place, run in enumerate(runs)} if marked else False,
        palette=palette(table, by),
        estimator="mean" if by == "task" else None,
        errorbar=("pi", 100) if by == "task" else None,
        markersize=5,
        linewidth=1.3,
        ax=ax,
    )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    legend_below(ax)
    return ax


def has_seeds(table: pd.DataFrame) -> bool:
    """Tell whether a task has several runs.

    Args:
        table: has the column run, and perhaps task.

    Returns:
        Whether lines are means over runs.
    """
    return "task" in table and table.groupby("task")["run"].nunique().max() > 1


def legend_room(names: Iterable[object]) -> float:
    """Tell how many inches a legend under a figure takes.

    Args:
        names: what it lists.

    Returns:
        Inches.
    """
    listed = list(dict.fromkeys(map(str, names)))
    return ROW * -(-len(listed) // _columns(listed)) if listed else 0.0


def legend_below(ax: Axes) -> None:
    """Put a legend under the axes, where it takes no width from what is drawn.

    Args:
        ax: axes with labelled artists.
    """
    handles, labels = ax.get_legend_handles_labels()
    if not handles:
        return
    # A fixed distance in inches leaves room for ticks and axis label, whatever the height of the axes.
    figure = ax.get_figure(root=True)
    place = ax.transAxes + ScaledTranslation(0, -0.45, figure.dpi_scale_trans)  # type: ignore[union-attr]
    ax.legend(
        handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.0), bbox_transform=place, ncols=_columns(labels),
        frameon=False, columnspacing=1.4, handlelength=2.4, borderaxespad=0.0, fontsize=8.5,
    )  # fmt: skip


def _columns(labels: Sequence[str]) -> int:
    return max(1, min(len(labels), LETTERS // (max(map(len, labels)) + 7)))
