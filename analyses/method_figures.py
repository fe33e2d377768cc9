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
LEVELS = 14
NEAR = 0.04
"""Of a plane's width: how near above each other two names cannot be read; side by side, three times that."""


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


def together(models: pd.DataFrame, near: float) -> list[tuple[float, float, list[str]]]:
    """Names of models that lie so near each other that their names would.

    Args:
        models: method, x and y.
        near: how near, in the plane.

    Returns:
        For each place the coordinates of its first model, and the names of all there.
    """
    found: list[tuple[float, float, list[str]]] = []
    for row in models.sort_values(["x", "method"]).itertuples():
        x, y, name = float(row.x), float(row.y), str(row.method).replace("_", " ")
        beside = [names for a, b, names in found if abs(a - x) <= 3 * near and abs(b - y) <= near]
        if beside:
            beside[0].append(name)
        else:
            found.append((x, y, [name]))
    return found


def draw_plane(plane: pd.DataFrame, ax: Axes) -> None:
    """Validation accuracy on a plane through the pretrained, the tuned and the merged models of one seed.

    A model stands where it is projected to and has the colour of its own accuracy: another one than that of the plane
    there says that it lies outside.

    Args:
        plane: rows of `method_scores.plane_rows`; nothing is drawn where there are none.
        ax: what to draw on.
    """
    if not len(plane):
        ax.set_axis_off()
        return
    grid = plane[plane["score"].notna()].pivot(index="y", columns="x", values="score")
    own = 100 * plane["own"]
    least, most = min(100 * grid.min().min(), own.min()), max(100 * grid.max().max(), own.max())
    levels = np.linspace(least, max(most, least + 1), LEVELS + 1)
    filled = ax.contourf(grid.columns, grid.index, 100 * grid.to_numpy(), levels=levels, cmap="crest_r")
    ax.figure.get_figure(root=True).colorbar(filled, ax=ax, label="mean validation accuracy (%)", format="%.0f")
    models = plane[plane["method"].notna()]
    tuned = models["method"].str.startswith("task ")
    start = models["method"] == PRETRAINED
    for chosen, marker, label in (
        (start, "*", "pretrained"),
        (tuned, "^", "tuned for one task"),
        (~tuned & ~start, "o", "merged, with searched coefficient"),
    ):
        ax.scatter(
            models.loc[chosen, "x"], models.loc[chosen, "y"], marker=marker, c=own[models.index[chosen]],
            cmap=filled.cmap, norm=filled.norm, s=80 if marker == "*" else 30, edgecolor="black", linewidth=0.7,
            label=label, zorder=3,
        )  # fmt: skip
    for x, y, names in together(models[models["method"].isin(NAMED)], NEAR * float(np.ptp(grid.columns))):
        ax.annotate(", ".join(names), (x, y), xytext=(4, 4), textcoords="offset points", fontsize=6)
    ax.grid(visible=False)
    ax.set(xlabel="along the sum of task vectors (in its length)", ylabel="across it")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, fontsize=7, frameon=False)
