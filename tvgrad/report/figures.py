"""Figures of a report: each takes a table of `tvgrad.report.tables` and returns matplotlib axes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tvgrad.parameters import ALL

__all__ = ["FIGURES", "cross_task_cosines", "descent_cosines", "gradient_shares", "save_figures"]

WIDTH, HEIGHT = 5.5, 3.4  # inches: the text width of a one-column paper
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "tvgrad",
    "figure.dpi": 160,
}


def _axes(ax: Axes | None, width: float = WIDTH, height: float = HEIGHT) -> Axes:
    if ax is not None:
        return ax
    with mpl.rc_context(STYLE):
        return Figure(figsize=(width, height), layout="constrained").subplots()


def _palette(table: pd.DataFrame, column: str = "run") -> dict[str, tuple[float, float, float]]:
    runs = list(dict.fromkeys(table[column]))
    colours = sns.color_palette("colorblind", 10) if len(runs) <= 10 else sns.husl_palette(len(runs), l=0.5)
    return dict(zip(runs, colours, strict=False))


def _lines(table: pd.DataFrame, column: str, ax: Axes) -> Axes:
    sns.lineplot(
        table,
        x="epoch",
        y=column,
        hue="run",
        style="run",
        markers=True,
        dashes=False,
        palette=_palette(table),
        markersize=5,
        linewidth=1.3,
        ax=ax,
    )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if ax.get_legend() is not None:
        sns.move_legend(ax, "upper left", bbox_to_anchor=(1.0, 1.0), title=None, frameon=False)
    return ax


def gradient_shares(norms: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw each epoch's share in the sum of full-batch gradient norms.

    Args:
        norms: the table `norms`.
        ax: axes to draw on; by default new ones.

    Returns:
        The axes.
    """
    table = norms[(norms["group"] == ALL) & norms["gradient_norm_share"].notna()]
    ax = _lines(table, "gradient_norm_share", _axes(ax))
    ax.set(xlabel="epoch e", ylabel=r"$\|g_e\| \;/\; \sum_{k<K} \|g_k\|$", title="Share of the gradient norm by epoch")
    ax.set_ylim(bottom=0)
    return ax


def descent_cosines(directions: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the cosine between the task vector and minus the first gradient, over epochs.

    Args:
        directions: the table `directions`.
        ax: axes to draw on; by default new ones.

    Returns:
        The axes.
    """
    table = directions[(directions["group"] == ALL) & directions["cos_task_vector_descent"].notna()]
    ax = _lines(table, "cos_task_vector_descent", _axes(ax))
    ax.set(xlabel="epoch e", ylabel=r"$\cos(\tau_e,\, -g_0)$", title="Task vector against the first gradient")
    return ax


def cross_task_cosines(cross_task: pd.DataFrame, ax: Axes | None = None, epoch: int | None = None) -> Axes:
    """Draw the cosines between the tasks' task vectors after one epoch number.

    Args:
        cross_task: the table `cross_task`.
        ax: axes to draw on; by default new ones.
        epoch: the epoch; by default the last.

    Returns:
        The axes.
    """
    table = cross_task[(cross_task["group"] == ALL) & cross_task["cos_task_vectors"].notna()]
    epoch = int(table["epoch"].max()) if epoch is None else epoch
    table = table[table["epoch"] == epoch]
    names = list(dict.fromkeys([*table["run_a"], *table["run_b"]]))
    matrix = pd.DataFrame(1.0, index=names, columns=names)
    for row in table.itertuples():
        matrix.loc[row.run_a, row.run_b] = matrix.loc[row.run_b, row.run_a] = row.cos_task_vectors
    side = 1.6 + 0.55 * len(names)
    ax = _axes(ax, side + 0.6, side)
    ax.grid(False)
    sns.heatmap(
        matrix,
        vmin=-1,
        vmax=1,
        center=0,
        cmap="vlag",
        annot=len(names) <= 12,
        fmt=".2f",
        square=True,
        ax=ax,
        annot_kws={"fontsize": 8},
        cbar_kws={"shrink": 0.8},
    )
    ax.set_title(f"Cosine between task vectors, epoch {epoch}")
    ax.tick_params(axis="y", rotation=0)
    return ax


FIGURES = {
    "gradient_shares": ("norms", "gradient_norm_share", gradient_shares),
    "descent_cosines": ("directions", "cos_task_vector_descent", descent_cosines),
    "cross_task_cosines": ("cross_task", "cos_task_vectors", cross_task_cosines),
}
"""Figure -> the table it is made of, the column that must not be empty, and the function that draws it."""


def save_figures(tables: Mapping[str, pd.DataFrame], directory: Path) -> list[Path]:
    """Draw every figure whose table has something to show.

    Args:
        tables: the tables of a report.
        directory: where to; it is made.

    Returns:
        The PNG and SVG files.
    """
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, (table, column, draw) in FIGURES.items():
        if not tables[table][column].notna().any():
            continue
        figure = draw(tables[table]).figure
        for ending in ("png", "svg"):
            path = directory / f"{name}.{ending}"
            with mpl.rc_context(STYLE):
                figure.savefig(path, metadata={"Date": None} if ending == "svg" else None)
            written.append(path)
    return written
