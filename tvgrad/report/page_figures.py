"""The figures of the page: which there are for these tables, with title, caption and specification."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd
from matplotlib.colors import to_hex

from tvgrad.report.budget_figure import shares_by_term, term_colour
from tvgrad.report.chart_parts import Spec, some_epochs
from tvgrad.report.charts import (
    Axis,
    first_epoch_bars,
    heat_map,
    over_epochs,
    plane,
    stacked_shares,
)
from tvgrad.report.figures import drawable
from tvgrad.report.first_epochs import PUBLISHED, mean_first_epochs
from tvgrad.report.first_screen import FirstScreen
from tvgrad.report.published import first_epoch_shares
from tvgrad.report.run_labels import RunLabel
from tvgrad.report.summary import pairs_of_tasks
from tvgrad.vectors.parameters import ALL

Labels = Mapping[str, RunLabel]
MINUS_GRADIENT = "cos(τₑ, −g₀)"  # noqa: RUF001 - a minus is meant
MINUS_SUM = "cos(τₑ, −G₀)"  # noqa: RUF001
MOST_TERMS = 7  # and one for all others: legends end at eight


@dataclass(frozen=True)
class PageFigure:
    """One figure of the page.

    Attributes:
        name: of the figure, as its file is called.
        title: stands above it.
        caption: defines every symbol and unit.
        spec: what Vega-Lite draws.
    """

    name: str
    title: str
    caption: str
    spec: Spec


def page_figures(tables: Mapping[str, pd.DataFrame], labels: Labels) -> list[PageFigure]:
    """Specify every figure whose table has something to show.

    Args:
        tables: the tables of a report, `trajectories` and `epoch_cosines` among them.
        labels: name of a run -> how it is shown.

    Returns:
        The figures, in the order of a report.
    """
    found = []
    for name, made, table in drawable(tables):
        title, draw = _DRAWN[name]
        spec = draw(table, labels)
        if spec is not None:
            caption = made.caption
            if made.each_run and table["run"].nunique() > 1:
                caption += " Choose the run above the figure."
            found.append(PageFigure(name, title, caption, spec))
    return found


def curve_figures(screen: FirstScreen) -> list[PageFigure]:
    """Specify the curves of training, one figure a metric.

    Args:
        screen: has the curves and the labels.

    Returns:
        The figures; of the first two metrics where there are more, since a first screen holds no more.
    """
    found: list[PageFigure] = []
    if screen.curves.empty:
        return []
    for metric in list(dict.fromkeys(screen.curves["metric"]))[:2]:
        rows = screen.curves[screen.curves["metric"] == metric]
        if rows["epoch"].nunique() < 2:
            continue
        words = str(metric).replace("_", " ")
        spec = over_epochs(rows, Axis("value", words), screen.labels, screen.unit)
        spec["height"] = 190
        found.append(PageFigure(f"curve_{len(found)}", words.capitalize(), f"{words} over {screen.unit}s", spec))
    return found


def _lines(column: str, title: str, from_zero: bool = False) -> Callable[[pd.DataFrame, Labels], Spec]:
    def draw(table: pd.DataFrame, labels: Labels) -> Spec:
        return over_epochs(table[table["group"] == ALL], Axis(column, title, from_zero), labels)

    return draw


def _bars(column: str) -> Callable[[pd.DataFrame, Labels], Spec | None]:
    def draw(norms: pd.DataFrame, labels: Labels) -> Spec | None:
        tasks = [labels[str(run)].task if str(run) in labels else run for run in norms["run"]]
        rows = mean_first_epochs(norms.assign(task=tasks), column).assign(where="this report")
        if not len(rows):
            return None
        rows["name"] = [_short(name, labels) for name in rows["name"]]
        if column == PUBLISHED:
            published = first_epoch_shares().rename(columns={"data_set": "name"}).assign(where="published")
            rows = pd.concat([rows, published], ignore_index=True)
        return first_epoch_bars(rows)

    return draw


def _short(name: object, labels: Labels) -> str:
    found = labels.get(str(name))
    return str(name) if found is None else found.short


def _pairs(cross_task: pd.DataFrame, labels: Labels) -> Spec | None:
    table = pairs_of_tasks(cross_task)
    if table.empty:
        return None
    runs = list(dict.fromkeys([*table["run_a"], *table["run_b"]]))
    cosine = {
        pair: value
        for a, b, value in zip(table["run_a"], table["run_b"], table["cos_task_vectors"], strict=True)
        for pair in ((a, b), (b, a))
    }
    names = [_short(run, labels) for run in runs]
    cells = pd.DataFrame([
        {"x": _short(one, labels), "y": _short(other, labels), "cosine": cosine[one, other]}
        for other in runs
        for one in runs
        if (one, other) in cosine
    ])
    spec = heat_map(cells, "x", "y", "cosine", titles=("", "", "cosine of τ"))
    for way in ("x", "y"):
        spec["encoding"][way]["scale"]["domain"] = names
    return spec


def _layers(column: str, title: str) -> Callable[[pd.DataFrame, Labels], Spec]:
    def draw(directions: pd.DataFrame, labels: Labels) -> Spec:
        rows = directions[(directions["group"] != ALL) & directions[column].notna()]
        rows = rows[rows["epoch"].isin(some_epochs(rows["epoch"]))]
        rows = rows.assign(run=[_short(run, labels) for run in rows["run"]])
        chosen = "run" if rows["run"].nunique() > 1 else ""
        return heat_map(rows, "epoch", "group", column, titles=("epoch e", "", title), chosen=chosen)

    return draw


def _epoch_cosines(cosines: pd.DataFrame, labels: Labels) -> Spec:
    rows = cosines[cosines["kind"] == "gradient"]
    kept = some_epochs(rows["epoch_a"], 24)
    rows = rows[rows["epoch_a"].isin(kept) & rows["epoch_b"].isin(kept) & (rows["epoch_a"] != rows["epoch_b"])]
    rows = rows.assign(run=[_short(run, labels) for run in rows["run"]])
    chosen = "run" if rows["run"].nunique() > 1 else ""
    titles = ("epoch f", "epoch e", "cos(gₑ, g_f)")
    return heat_map(rows, "epoch_b", "epoch_a", "cosine", titles=titles, chosen=chosen)


def _block_norms(norms: pd.DataFrame, labels: Labels) -> Spec:
    rows = norms[(norms["group"] != ALL) & norms["relative_norm"].notna()]
    rows = rows.assign(run=[_short(run, labels) for run in rows["run"]])
    return heat_map(rows, "run", "group", "relative_norm", titles=("", "", "‖τ‖ / ‖θ₀‖"))


def _budget(error_budget: pd.DataFrame, labels: Labels) -> Spec:
    wide, _ = shares_by_term(error_budget)
    size = wide.abs().max().sort_values()
    if len(size) > MOST_TERMS + 1:
        wide, _ = shares_by_term(error_budget, float(size.iloc[-MOST_TERMS]))
    rows = [
        {
            "place": f"epoch {place}" if wide.index.name == "epoch" else _short(place, labels),
            "term": str(term),
            "share": float(wide.loc[place, term]),
            "place_of_term": number,
        }
        for place in wide.index
        for number, term in enumerate(wide.columns)
    ]
    dark = {"black": "var(--ink)", "#332288": "light-dark(#332288, #9d8cff)", "0.35": "var(--soft)"}
    terms = {str(term): term_colour(str(term)) for term in wide}
    colours = {term: dark.get(colour) or to_hex(colour) for term, colour in terms.items()}
    return stacked_shares(pd.DataFrame(rows), colours)


def _plane(points: pd.DataFrame, labels: Labels) -> Spec:
    return plane(points, labels)


_DRAWN: dict[str, tuple[str, Callable[[pd.DataFrame, Labels], Spec | None]]] = {
    "gradient_shares": (
        "Share of the gradient norm by epoch",
        _lines("gradient_norm_share", "‖gₑ‖ over its sum", from_zero=True),
    ),
    "epoch_gradient_shares": (
        "Share of the norm of the epoch gradient",
        _lines("epoch_gradient_norm_share", "‖Gₑ‖ over its sum", from_zero=True),
    ),
    "first_epoch_dominance": ("First epoch's share: full-batch gradient", _bars("gradient_norm_share")),
    "first_epoch_dominance_epoch_gradients": (
        "First epoch's share: epoch gradient",
        _bars("epoch_gradient_norm_share"),
    ),
    "first_epoch_dominance_batches": ("First epoch's share: mean batch gradient norm", _bars(PUBLISHED)),
    "descent_cosines": (
        "Task vector against the first gradient",
        _lines("cos_task_vector_descent", MINUS_GRADIENT),
    ),
    "epoch_descent_cosines": (
        "Task vector against the first epoch gradient",
        _lines("cos_task_vector_epoch_descent", MINUS_SUM),
    ),
    "trajectory_plane": ("Trajectories of the weights", _plane),
    "cross_task_cosines": ("Cosine between task vectors, last epoch", _pairs),
    "error_budget": ("Why the task vector is not minus the gradient", _budget),
    "relative_norms": ("How far each block moved", _block_norms),
    "gradient_cosines": ("Cosine between gradients of two epochs", _epoch_cosines),
    "layers": ("Task vector against the first gradient, by block", _layers("cos_task_vector_descent", MINUS_GRADIENT)),
    "epoch_layers": (
        "Task vector against the first epoch gradient, by block",
        _layers("cos_task_vector_epoch_descent", MINUS_SUM),
    ),
}
"""Figure -> its title, and what specifies it."""
