"""The error budget as stacked bars: what share of the residual each term takes."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from tvgrad.report.style import legend_below, legend_room, new_axes, styled

SMALLEST = 0.005
"""Terms whose share is smaller everywhere are drawn as one."""
REST = "all others"
MOST_BARS = 24
COLOURS = {
    "unexplained": "#332288",
    "replay mismatch": "black",
    "update rounding": "#ca9161",
    "weight decay": "#fbafe4",
    "preconditioner": "#0173b2",
    "clipping": "#d55e00",
    "remainder": "#ece133",
    "batch curvature": "#56b4e9",
    "curvature": "#029e73",
    "batch order": "#de8f05",
    "unequal batches": "#cc78bc",
    "coverage": "0.35",
}
"""How a term is drawn in every figure, in seaborn's colours for colour-blind readers; of several terms in one row the
first decides, and the row is hatched."""


@styled
def budget_shares(error_budget: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw each term's share of the residual: one bar an epoch for a single run, else one a run at its last epoch.

    Negative shares are stacked downwards; what is above less what is below is 1.

    Args:
        error_budget: the table `error_budget`.
        ax: axes to draw on; by default new ones.

    Returns:
        The axes.
    """
    wide, runs = shares_by_term(error_budget)
    ax = new_axes(ax, height=0.28 * len(wide) + 1.4 + legend_room(wide.columns))
    above, below = pd.Series(0.0, wide.index), pd.Series(0.0, wide.index)
    places = [f"epoch {place}" if wide.index.name == "epoch" else str(place) for place in wide.index]
    for term in wide.columns:
        share = wide[term]
        start = above.where(share >= 0, below)
        hatch = "//" if " + " in term else None
        bars = ax.barh(places, share, left=start, color=term_colour(term), label=term, height=0.7, hatch=hatch)
        for bar in bars:
            bar.set(edgecolor="white", linewidth=0.4)
        above, below = above + share.clip(lower=0), below + share.clip(upper=0)
    ax.axvline(0, color="0.2", linewidth=0.8)
    ax.axvline(1, color="0.2", linewidth=0.8, linestyle=":")
    ax.invert_yaxis()
    ax.set_xlim(min(0.0, float(below.min())) - 0.04, max(1.0, float(above.max())) + 0.04)
    ax.grid(axis="y", visible=False)
    title = "Why the task vector is not minus the gradient"
    ax.set(xlabel="share of the residual", title=title if len(runs) > 1 else f"{title}: {runs[0]}")
    legend_below(ax)
    return ax


def shares_by_term(error_budget: pd.DataFrame, smallest: float = SMALLEST) -> tuple[pd.DataFrame, list[str]]:
    """Arrange shares for bars: one row an epoch for a single run, else one a run at its last epoch; one column a term.

    Args:
        error_budget: the table `error_budget`.
        smallest: terms whose share is smaller everywhere become one, `REST`.

    Returns:
        The shares, whose index is named epoch or run, and the runs.
    """
    table = error_budget[error_budget["share"].notna()]
    runs = list(dict.fromkeys(table["run"]))
    if len(runs) > 1:
        table = table[table["epoch"] == table.groupby("run")["epoch"].transform("max")]
    column = "epoch" if len(runs) == 1 else "run"
    wide = table.pivot_table(index=column, columns="term", values="share", sort=False).fillna(0.0)
    wide = wide.reindex(columns=list(dict.fromkeys(table["term"])))
    small = wide.columns[(wide.abs() < smallest).all()]
    if len(small):
        wide = wide.drop(columns=small).assign(**{REST: wide[small].sum(axis=1)})
    return wide.iloc[-MOST_BARS:], runs


def term_colour(term: str) -> str:
    """The colour of a term, the same in every figure.

    Args:
        term: its name; of several in one row the first decides.

    Returns:
        A colour of matplotlib.
    """
    first = term.split(" + ")[0]
    found = max((name for name in COLOURS if first.startswith(name)), key=len, default=None)
    return "0.75" if found is None else COLOURS[found]
