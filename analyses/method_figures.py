"""Figures of the comparison of merging methods: gains by method and epochs, and the plane with merged models in it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from .method_scores import PRETRAINED, SINGLE

ROW, WIDTH = 0.24, 5.6  # inches
NAMED = ("task_arithmetic", "mean", "ties", "dare", "tsv_m", "isotropic", "wudi", "regmean", "fisher", "ada_merging")
"""Methods that have a name in the plane, where more would hide each other."""


def draw_gains(table: pd.DataFrame, ax: Axes) -> None:
    """Gain over the pretrained model as a table of methods and epochs, the best method on top.

    Args:
        table: of `merge_methods`.
        ax: what to draw on.
    """
    part = table[table["method"] != PRETRAINED]
    gains = part.pivot(index="method", columns="epochs", values="gain")
    order = gains.mean(axis=1).drop(SINGLE).sort_values(ascending=False).index
    gains = gains.loc[[SINGLE, *order]]
    words = part.assign(
        words=[
            f"{row.gain:+.1f} [{row.gain_low:+.1f}, {row.gain_high:+.1f}]" for row in part.itertuples()
        ]
    ).pivot(index="method", columns="epochs", values="words").loc[gains.index]  # fmt: skip
    ax.figure.get_figure(root=True).set_size_inches(WIDTH, 1.0 + ROW * len(gains))
    furthest = float(np.nanmax(np.abs(gains.loc[order].to_numpy()))) or 1.0
    sns.heatmap(
        gains, annot=words.fillna("refused"), fmt="", cmap="vlag", vmin=-furthest, vmax=furthest, linewidths=0.5,
        annot_kws={"size": 7}, cbar_kws={"label": "points over the pretrained model"}, ax=ax,
    )  # fmt: skip
    ax.set_yticklabels([name.replace("_", " ") for name in gains.index], rotation=0, fontsize=7)
    ax.set(xlabel="epochs before merging", ylabel="")
    ax.grid(visible=False)


def draw_plane(plane: pd.DataFrame, ax: Axes) -> None:
    """Validation accuracy on a plane through the pretrained, the tuned and the merged models of one seed.

    Args:
        plane: rows of `method_scores.plane_rows`; nothing is drawn where there are none.
        ax: what to draw on.
    """
    if not len(plane):
        ax.set_axis_off()
        return
    grid = plane[plane["score"].notna()].pivot(index="y", columns="x", values="score")
    filled = ax.contourf(grid.columns, grid.index, 100 * grid.to_numpy(), levels=14, cmap="crest_r")
    ax.figure.get_figure(root=True).colorbar(filled, ax=ax, label="mean validation accuracy (%)")
    models = plane[plane["method"].notna()]
    tuned = models["method"].str.startswith("task ")
    start = models["method"] == PRETRAINED
    for chosen, marker, colour, label in (
        (start, "*", "#d55e00", "pretrained"),
        (tuned, "^", "#f0e442", "tuned for one task"),
        (~tuned & ~start, "o", "white", "merged, with searched coefficient"),
    ):
        ax.scatter(
            models.loc[chosen, "x"], models.loc[chosen, "y"], marker=marker, color=colour,
            s=60 if marker == "*" else 22,
            edgecolor="0.2", linewidth=0.5, label=label, zorder=3,
        )  # fmt: skip
    for row in models[models["method"].isin(NAMED)].itertuples():
        ax.annotate(
            str(row.method).replace("_", " "), (float(row.x), float(row.y)), xytext=(3, 3), textcoords="offset points",
            fontsize=6,
        )  # fmt: skip
    ax.grid(visible=False)
    ax.set(xlabel="along the sum of task vectors (in its length)", ylabel="across it")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, fontsize=7, frameon=False)
