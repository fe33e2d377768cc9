"""The figure of the first epoch's share: bars against an even share and the ceiling."""

from __future__ import annotations

from functools import partial

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from tvgrad.report.first_epochs import MEASURES, PUBLISHED, mean_first_epochs
from tvgrad.report.published import first_epoch_shares
from tvgrad.report.style import legend_below, new_axes, styled


@styled
def first_epoch_dominance(norms: pd.DataFrame, ax: Axes | None = None, column: str = "gradient_norm_share") -> Axes:
    """Draw the first epoch's share against an even share, with the number of epochs and the ceiling.

    Args:
        norms: the table `norms`; with a column task, tasks that have several runs show their mean, and a line from the
            least to the most.
        ax: axes to draw on; by default new ones.
        column: one of `MEASURES`; the seven published benchmarks stand beside the mean batch gradient norm, which is
            what they are.

    Returns:
        The axes.
    """
    rows = mean_first_epochs(norms, column).assign(where="this report")
    if column == PUBLISHED:
        published = first_epoch_shares().rename(columns={"data_set": "name"}).assign(where="published")
        rows = pd.concat([rows, published], ignore_index=True)
    rows["place"] = range(len(rows))
    ax = new_axes(ax, height=1.35 + 0.22 * len(rows))
    colours = sns.color_palette("colorblind")
    for where, colour in (("this report", colours[0]), ("published", colours[7])):
        part = rows[rows["where"] == where]
        if len(part):
            ax.barh(part["place"], part["share"], height=0.75, color=colour, label=where, zorder=2)
    seeds = rows[rows["runs"] > 1]
    if len(seeds):
        reach = [seeds["share"] - seeds["least"], seeds["most"] - seeds["share"]]
        ax.errorbar(seeds["share"], seeds["place"], xerr=reach, fmt="none", ecolor="black", elinewidth=1.2, capsize=3,
                    label="least to most", zorder=3)  # fmt: skip
    ax.scatter(
        1 / rows["epochs"], rows["place"], marker="|", s=110, linewidth=2.2, color=colours[1], zorder=4,
        label="even share 1/K",
    )  # fmt: skip
    ax.axvline(1, color="0.3", linewidth=1, linestyle="--", label="ceiling")
    beside = partial(ax.text, 1.02, transform=ax.get_yaxis_transform(), fontsize=8.5)
    labels = []
    runs = rows["runs"].fillna(1).tolist()  # of published ones, nothing is said
    for place, (name, share, number) in enumerate(zip(rows["name"], rows["share"], rows["epochs"], strict=True)):
        beside(place, f"{share * number:.2f} of at most {number}", va="center")
        labels.append(f"{name}, K = {number}" + (f", {runs[place]:.0f} runs" if runs[place] > 1 else ""))
    ax.set_yticks(range(len(rows)), labels)
    ax.set(
        xlabel="share of the first epoch in the sum over K epochs; on the right: times 1/K", ylabel="", xlim=(0, 1.02)
    )
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    ax.set_title(f"First epoch's share: {MEASURES[column]}", loc="left")
    legend_below(ax)
    return ax
