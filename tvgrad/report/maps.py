"""Maps: cosines between epochs, blocks over epochs, and trajectories."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from tvgrad.report.heatmap import cosine_scale, heatmap, size_scale
from tvgrad.report.style import MARKERS, legend_below, legend_room, new_axes, palette, styled
from tvgrad.vectors.parameters import ALL


@styled
def epoch_cosine_map(cosines: pd.DataFrame, run: str, ax: Axes | None = None) -> Axes:
    """Draw the cosines between one run's full-batch gradients at all pairs of epochs.

    Args:
        cosines: the table of `tvgrad.report.geometry.epoch_cosines`.
        run: the run.
        ax: axes to draw on; by default new ones.

    Returns:
        The axes.
    """
    cosines = cosines[cosines["kind"] == "gradient"]
    chosen = cosines[cosines["run"] == run]
    matrix = chosen.pivot_table(index="epoch_a", columns="epoch_b", values="cosine")
    ax = new_axes(ax, 4.2, 3.4)
    heatmap(matrix, ax, cosine_scale(cosines["cosine"]), square=True, most_numbers=64)
    ax.set(xlabel="epoch f", ylabel="epoch e", title=rf"$\cos(g_e,\, g_f)$, {run}")
    return ax


@styled
def layer_map(
    directions: pd.DataFrame, run: str, ax: Axes | None = None, column: str = "cos_task_vector_descent"
) -> Axes:
    """Draw the cosine to minus a first gradient for each block of the model (depth downwards) over epochs.

    Args:
        directions: the table `directions`.
        run: the run.
        ax: axes to draw on; by default new ones.
        column: cos_task_vector_descent, or cos_task_vector_epoch_descent of the first epoch gradient.

    Returns:
        The axes.
    """
    blocks = directions[(directions["group"] != ALL) & directions[column].notna()]
    chosen = blocks[blocks["run"] == run]
    depth = list(dict.fromkeys(chosen["group"]))
    matrix = chosen.pivot_table(index="group", columns="epoch", values=column).reindex(depth)
    ax = new_axes(ax, 5.0, 1.4 + 0.26 * len(depth))
    heatmap(matrix, ax, cosine_scale(blocks[column]), most_numbers=80)
    gradient = "G" if column == "cos_task_vector_epoch_descent" else "g"
    ax.set(xlabel="epoch e", ylabel="", title=rf"$\cos(\tau_e,\, -{gradient}_0)$ by block, {run}")
    return ax


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
    """Draw the trajectories of all runs in the plane of their two principal components.

    Args:
        points: the table of `tvgrad.report.geometry.trajectories`.
        ax: axes to draw on; by default new ones.

    Returns:
        The axes.
    """
    ax = new_axes(ax, 5.5, 4.0 + legend_room(points["run"]))
    colours = palette(points)
    for place, (run, path) in enumerate(points.groupby("run", sort=False)):
        path = path.sort_values("epoch")
        colour = colours[str(run)]
        marker = MARKERS[place % len(MARKERS)]
        ax.plot(
            path["x"], path["y"], color=colour, linewidth=1.3, marker=marker, markersize=7, markeredgecolor="white",
            markeredgewidth=0.5, markevery=[-1], label=str(run), zorder=4,
        )  # fmt: skip
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
