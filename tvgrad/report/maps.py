"""Maps: cosines between epochs, blocks over epochs, and trajectories."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tvgrad.report.heatmap import cosine_scale, heatmap, size_scale
from tvgrad.report.style import MARKERS, has_seeds, legend_below, legend_room, new_axes, palette, styled
from tvgrad.vectors.parameters import ALL


@styled
def epoch_cosine_map(cosines: pd.DataFrame, run: str, ax: Axes | None = None, bar: bool = True) -> Axes:
    """Draw the cosines between one run's full-batch gradients at all pairs of epochs.

    Args:
        cosines: the table of `tvgrad.report.geometry.epoch_cosines`.
        run: the run.
        ax: axes to draw on; by default new ones.
        bar: with a colour bar.

    Returns:
        The axes.
    """
    cosines = cosines[cosines["kind"] == "gradient"]
    chosen = cosines[cosines["run"] == run]
    matrix = chosen.pivot_table(index="epoch_a", columns="epoch_b", values="cosine")
    matrix = matrix.mask(np.eye(len(matrix), dtype=bool)) if matrix.shape[0] == matrix.shape[1] else matrix
    ax = new_axes(ax, 4.2, 3.4)
    heatmap(matrix, ax, cosine_scale(cosines["cosine"]), square=True, most_numbers=64, bar=bar)
    ax.set(xlabel="epoch f", ylabel="epoch e", title=rf"$\cos(g_e,\, g_f)$, {run}")
    return ax


@styled
def layer_map(
    directions: pd.DataFrame,
    run: str,
    ax: Axes | None = None,
    column: str = "cos_task_vector_descent",
    *,
    bar: bool = True,
) -> Axes:
    """Draw the cosine to minus a first gradient for each block of the model (depth downwards) over epochs.

    Args:
        directions: the table `directions`.
        run: the run.
        ax: axes to draw on; by default new ones.
        column: cos_task_vector_descent, or cos_task_vector_epoch_descent of the first epoch gradient.
        bar: with a colour bar.

    Returns:
        The axes.
    """
    blocks = directions[(directions["group"] != ALL) & directions[column].notna()]
    chosen = blocks[blocks["run"] == run]
    depth = list(dict.fromkeys(chosen["group"]))
    matrix = chosen.pivot_table(index="group", columns="epoch", values=column).reindex(depth)
    ax = new_axes(ax, 5.0, 1.4 + 0.26 * len(depth))
    heatmap(matrix, ax, cosine_scale(blocks[column]), most_numbers=80, bar=bar)
    gradient = "G" if column == "cos_task_vector_epoch_descent" else "g"
    ax.set(xlabel="epoch e", ylabel="", title=rf"$\cos(\tau_e,\, -{gradient}_0)$ by block, {run}")
    return ax


@styled
def map_grid(draw: Callable[..., Axes], table: pd.DataFrame, runs: Sequence[str]) -> Axes:
    """Draw maps of several runs in one grid, with one colour bar for all.

    Args:
        draw: `epoch_cosine_map` or `layer_map`, or one of them with options filled in.
        table: its table.
        runs: the runs.

    Returns:
        The first axes.
    """
    columns = min(3, len(runs))
    rows = -(-len(runs) // columns)
    size = Figure(figsize=(1, 1)).subplots()
    first = draw(table, run=runs[0], ax=size, bar=False)
    cells = len(first.get_yticks()) or 1
    tall = 2.1 if first.get_aspect() != "auto" else 0.9 + 0.22 * cells
    figure = Figure(figsize=(2.3 * columns + 0.6, tall * rows + 0.2), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for place, (ax, run) in enumerate(zip(grid.flat, runs, strict=False)):
        draw(table, run=run, ax=ax, bar=False)
        ax.set_title(run, fontsize=8.5)
        if place % columns:
            ax.set(ylabel="", yticklabels=[])
        if place + columns < len(runs):
            ax.set(xlabel="")
    for ax in list(grid.flat)[len(runs) :]:
        ax.set_visible(False)
    figure.colorbar(grid[0, 0].collections[0], ax=grid, shrink=0.8, aspect=30)
    return cast("Axes", grid[0, 0])


@styled
def block_norms(norms: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw how far each block of the model moved, relative to its pretrained weights, for each checkpoint.

    Args:
        norms: the table `norms` of checkpoints.
        ax: axes to draw on; by default new ones.

    Returns:
        The axes.
    """
    chosen = norms[(norms["group"] != ALL) & norms["relative_norm"].notna()]
    depth, runs = (list(dict.fromkeys(chosen[column])) for column in ("group", "run"))
    matrix = chosen.pivot_table(index="group", columns="run", values="relative_norm").reindex(depth)[runs]
    ax = new_axes(ax, min(2.6 + 0.6 * len(runs), 6.3), 1.6 + 0.22 * len(depth))
    heatmap(matrix, ax, size_scale(matrix), most_numbers=0)
    ax.set(xlabel="", ylabel="", title=r"$\|\tau\| \;/\; \|\theta_0\|$ by block")
    return ax


@styled
def trajectory_plane(points: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the trajectories of all runs in the plane of their two principal components; colour is the task.

    Args:
        points: the table of `tvgrad.report.geometry.trajectories`.
        ax: axes to draw on; by default new ones.

    Returns:
        The axes.
    """
    by = "task" if has_seeds(points) else "run"
    ax = new_axes(ax, 5.5, 4.0 + legend_room(points[by]))
    colours = palette(points, by)
    places = {name: place for place, name in enumerate(colours)}
    named: set[str] = set()
    for _, path in points.groupby("run", sort=False):
        path = path.sort_values("epoch")
        name = str(path[by].iloc[0])
        colour, marker = colours[name], MARKERS[places[name] % len(MARKERS)]
        ax.plot(
            path["x"], path["y"], color=colour, linewidth=1.3, marker=marker, markersize=7, markeredgecolor="white",
            markeredgewidth=0.5, markevery=[-1], label=None if name in named else name, zorder=4,
        )  # fmt: skip
        named.add(name)
        ax.scatter(path["x"], path["y"], color=[colour], s=9, zorder=3)
    ax.scatter([0], [0], color="0.15", s=60, marker="*", zorder=5)
    ax.annotate(
        r"$\theta_0$", (0, 0), textcoords="offset points", xytext=(7, -13), zorder=6,
        bbox={"boxstyle": "round,pad=0.1", "color": "white", "alpha": 0.7},
    )  # fmt: skip
    share = points[["share_x", "share_y"]].iloc[0].to_numpy()
    ax.set(
        xlabel=f"first principal component ({share[0]:.0%} of the variance)",
        ylabel=f"second ({share[1]:.0%})",
        title="Trajectories of the weights",
    )
    extent = np.ptp(points[["x", "y"]].to_numpy(), axis=0)
    if extent.min() > 0.2 * extent.max():
        ax.set_aspect("equal", adjustable="datalim")
    legend_below(ax)
    return ax
