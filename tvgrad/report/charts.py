"""Interactive figures of the page: one Vega-Lite specification for each figure of `tvgrad.report.figures`.

Specifications are plain dictionaries, drawn in the browser by the bundle in `assets/`, which they are versioned with.
Colours are CSS variables of the page, so that a figure follows a light and a dark theme without being drawn again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tvgrad.report.chart_parts import (
    MOST_EPOCHS,
    Spec,
    chart,
    dash,
    hover_number,
    legend_columns,
    legend_selection,
    plain_values,
    records,
    some_epochs,
    task_colour,
    zoom,
)
from tvgrad.report.heatmap import cosine_scale, size_scale
from tvgrad.report.run_labels import RunLabel

_STAR = "M0,-1L0.3,-0.3L1,-0.3L0.45,0.12L0.6,0.8L0,0.4L-0.6,0.8L-0.45,0.12L-1,-0.3L-0.3,-0.3Z"
GAP = 0.075
"""How far apart direct labels stand, as a share of the axis."""
MOST_TICKS = 10
"""Epochs that each have a tick of their own."""
NUMBER_ROOM = 27
"""Pixels that the number in a cell of a heat map takes."""
SEQUENTIAL = ("#e4f1e1", "#a5d0b4", "#6fb1a0", "#40918d", "#237386", "#1d5480", "#27356f")
DIVERGING = ("#2b6cb0", "#7fa6d0", "#c3d3e6", "#f2f0ee", "#ecc8c0", "#d98a80", "#b03a3a")


@dataclass(frozen=True)
class Axis:
    """What is drawn along y: the column, its title, and limits that it must not leave."""

    column: str
    title: str
    from_zero: bool = False


def over_epochs(table: pd.DataFrame, axis: Axis, labels: Mapping[str, RunLabel], unit: str = "epoch") -> Spec:
    """Draw a value over epochs: colour is the task, line style the seed, a band spans the seeds of a task.

    Args:
        table: columns run, epoch and that of the axis; one row a run and epoch.
        axis: what is drawn.
        labels: how runs are shown.
        unit: what epochs count.

    Returns:
        The specification.
    """
    table = table[table[axis.column].notna()]
    table = table[table["epoch"].isin(some_epochs(table["epoch"], 400))]
    found = [labels.get(str(run), RunLabel(str(run), str(run), str(run), "")) for run in table["run"]]
    drawn = pd.DataFrame({
        "run": [one.short for one in found],
        "task": [one.task for one in found],
        "variant": [one.variant for one in found],
        "epoch": table["epoch"].to_numpy(),
        "value": table[axis.column].to_numpy(),
    })
    tasks, variants = list(dict.fromkeys(drawn["task"])), list(dict.fromkeys(drawn["variant"]))
    repeated = drawn.groupby(["task", "epoch"]).size().max() > 1
    colour = task_colour(tasks)
    x: Spec = {
        "field": "epoch",
        "type": "quantitative",
        "title": f"{unit} e",
        "axis": _whole_numbers(drawn["epoch"]),
        "scale": {"nice": False, "padding": 6},
    }
    y = {"field": "value", "type": "quantitative", "title": axis.title, "scale": {"zero": axis.from_zero, "nice": True}}
    shared = {"x": x, "y": y, "color": colour}
    shown = {"condition": {"param": "shown", "value": 1}, "value": 0.06}
    style: Spec = {"strokeDash": dash(variants, tasks)} if repeated else {}
    if repeated and style["strokeDash"]["legend"] is None:
        x["title"] += "; line style: run of the task"
    tooltip = [{"field": "run"}, {"field": "epoch", "title": unit}, hover_number("value", axis.title)]
    layers: list[Spec] = []
    if repeated:
        over = {"aggregate": "min", "field": "value", "type": "quantitative"}
        layers.append({
            "mark": {"type": "area", "aria": False},
            "encoding": {
                **shared,
                "y": {**over, "title": axis.title, "scale": y["scale"]},
                "y2": {"aggregate": "max", "field": "value"},
                "opacity": {"condition": {"param": "shown", "value": 0.15}, "value": 0.02},
            },
        })
        layers.append({
            "mark": {"type": "line", "strokeWidth": 3, "aria": False},
            "encoding": {**shared, "y": {**over, "aggregate": "mean"}, "opacity": shown},
        })
    many = drawn["epoch"].nunique() > MOST_EPOCHS
    layers.append({
        "mark": {
            "type": "line",
            "strokeWidth": 1 if repeated else 2,
            "point": not many and not repeated,
            "aria": False,
        },
        "encoding": {**shared, "detail": {"field": "run"}, "opacity": shown, **style},
        "params": [legend_selection("task"), *zoom()],
    })
    met = {"param": "met", "value": 0.9, "empty": False}
    nearest = {"type": "point", "on": "pointerover", "nearest": True, "clear": "pointerout"}
    layers.append({  # what the pointer meets: larger than the points that are seen
        "mark": {"type": "point", "size": 160, "filled": True, "tooltip": True, "aria": False},
        "encoding": {**shared, "tooltip": tooltip, "opacity": {"condition": met, "value": 0}},
        "params": [{"name": "met", "select": nearest}],
    })  # fmt: skip
    if len(tasks) > 1:
        layers.append(_direct_labels(drawn, axis, shared, shown))
    return chart({"data": {"values": records(drawn)}, "layer": layers, "height": 230})


def _whole_numbers(epochs: pd.Series) -> Spec:
    """Ticks at whole epochs: of few epochs each; Vega sets some between them, which must not show a rounded number."""
    axis: Spec = {"tickMinStep": 1, "labelExpr": "datum.value % 1 === 0 ? format(datum.value, 'd') : ''"}
    if len(epochs) and epochs.max() - epochs.min() <= MOST_TICKS:
        axis["values"] = list(range(int(epochs.min()), int(epochs.max()) + 1))
    return axis


def _direct_labels(drawn: pd.DataFrame, axis: Axis, shared: Spec, shown: Spec) -> Spec:
    """Names at the ends of lines, moved apart where lines end together."""
    ends = drawn.sort_values("epoch").groupby("task", sort=False).agg(value=("value", "last"), epoch=("epoch", "max"))
    ends = ends.reset_index().sort_values("value", kind="stable")
    least = min(float(drawn["value"].min()), 0.0 if axis.from_zero else math.inf)
    spread = float(drawn["value"].max()) - least or 1.0
    places: list[float] = []
    for value in ends["value"]:
        places.append(max(float(value), places[-1] + GAP * spread if places else -math.inf))
    lift = max(0.0, places[-1] - float(drawn["value"].max())) / 2  # half up and half down, so that none leaves the axes
    ends["place"] = [place - lift for place in places]
    return {
        "data": {"values": records(ends[["task", "epoch", "place"]])},
        "mark": {"type": "text", "align": "left", "dx": 7, "fontSize": 11, "limit": 130, "aria": False, "clip": False},
        "encoding": {
            "x": {**shared["x"], "field": "epoch"},
            "y": {"field": "place", "type": "quantitative"},
            "text": {"field": "task"},
            "color": shared["color"],
            "opacity": shown,
        },
    }


def heat_map(
    cells: pd.DataFrame, x: str, y: str, value: str, *, titles: tuple[str, str, str], chosen: str = ""
) -> Spec:
    """Draw cells as colours with their numbers, one colour bar for all.

    Args:
        cells: one row a cell, with the columns x, y and value; cells that are left out, as the diagonal is, stay empty.
        x: the column along x.
        y: the column along y, from the top.
        value: the column of colours.
        titles: of x, of y and of the colours.
        chosen: a column that a reader chooses one value of, run say; all share one scale.

    Returns:
        The specification.
    """
    cells = cells[cells[value].notna()]
    values = cells[value].to_numpy(dtype=float)
    across, down = list(dict.fromkeys(cells[x])), list(dict.fromkeys(cells[y]))
    if pd.api.types.is_numeric_dtype(cells[x]):
        across = sorted(across)
    if pd.api.types.is_numeric_dtype(cells[y]):
        down = sorted(down)
    low, high, colours = _limits(values, titles[2].startswith("cos"))
    turned = [abs(float(number)) >= 0.62 * high if low < 0 else number >= low + 0.5 * (high - low) for number in values]
    drawn = pd.DataFrame({"x": cells[x], "y": cells[y], "value": values, "light": turned})
    tooltip = [
        {"field": "y", "title": titles[1] or y},
        {"field": "x", "title": titles[0] or x},
        hover_number("value", titles[2]),
    ]
    if chosen:
        drawn["chosen"] = cells[chosen].map(str)
        tooltip.insert(0, {"field": "chosen", "title": chosen})
    encoding = {
        "x": {"field": "x", "type": "ordinal", "sort": None, "title": titles[0] or None,
              "scale": {"domain": plain_values(across)},
              "axis": {"labelAngle": -35 if _long(across) else 0, "labelLimit": 110, "grid": False}},
        "y": {"field": "y", "type": "ordinal", "sort": None, "title": titles[1] or None,
              "scale": {"domain": plain_values(down)},
              "axis": {"labelLimit": 150, "grid": False}},
        "tooltip": tooltip,
    }  # fmt: skip
    tall = max(70, min(28 * len(down), 460))
    rect = {
        "mark": {"type": "rect", "tooltip": True},
        "encoding": {"color": {"field": "value", "type": "quantitative", "title": titles[2],
                               "scale": {"domain": [low, high], "range": list(colours), "clamp": True},
                               "legend": {"gradientLength": max(50, min(160, tall - 20)), "orient": "right"}}},
    }  # fmt: skip
    layers: list[Spec] = [rect]
    if len(across) <= 13:
        layers.append({
            "mark": {"type": "text", "fontSize": 10.5, "aria": False},
            "encoding": {"text": {"field": "value", "type": "quantitative", "format": ".2f"},
                         # on a narrow screen numbers would run into each other; the colours and the pointer tell them
                         "opacity": {"condition": {"test": f"width < {NUMBER_ROOM * len(across)}", "value": 0},
                                     "value": 1},
                         "color": {"condition": {"test": "datum.light", "value": "#ffffff"}, "value": "#101418"}},
        })  # fmt: skip
    spec: Spec = {
        "data": {"values": records(drawn)},
        "layer": layers,
        "encoding": encoding,
        "height": tall,
    }
    if chosen:
        names = list(dict.fromkeys(drawn["chosen"]))
        spec["params"] = [
            {"name": "which", "value": names[0], "bind": {"input": "select", "options": names, "name": f"{chosen} "}}
        ]
        spec["transform"] = [{"filter": "datum.chosen === which"}]  # fmt: skip
    return chart(spec)


def stacked_shares(shares: pd.DataFrame, colours: Mapping[str, str]) -> Spec:
    """Draw shares as stacked bars: what is above 0 less what is below is 1.

    Args:
        shares: columns place, term and share.
        colours: term -> colour.

    Returns:
        The specification.
    """
    terms = list(dict.fromkeys(shares["term"]))
    places = list(dict.fromkeys(shares["place"]))
    return chart({
        "data": {"values": records(shares)},
        "mark": {"type": "bar", "tooltip": True, "stroke": "var(--card)", "strokeWidth": 1},
        "encoding": {
            "y": {"field": "place", "type": "nominal", "sort": None, "title": None,
                  "axis": {"labelLimit": 160, "grid": False}},
            "x": {"field": "share", "type": "quantitative", "title": "share of the residual", "stack": "zero"},
            "color": {"field": "term", "type": "nominal", "title": None, "sort": None,
                      "scale": {"domain": terms, "range": [colours[term] for term in terms]},
                      "legend": {"orient": "bottom", "columns": legend_columns(terms), "labelLimit": 240}},
            "order": {"field": "place_of_term"},
            "opacity": {"condition": {"param": "shown", "value": 1}, "value": 0.08},
            "tooltip": [{"field": "place"}, {"field": "term"}, hover_number("share", "share of the residual")],
        },
        "params": [legend_selection("term")],
        "height": max(90, 30 * len(places)),
    })  # fmt: skip


def first_epoch_bars(rows: pd.DataFrame) -> Spec:
    """Draw the first epoch's share of each run against an even share and the ceiling 1.

    Args:
        rows: columns name, share, epochs and where (this report, or published); with runs, least and most, a task of
            several runs is their mean, and a line from the least to the most.

    Returns:
        The specification.
    """
    runs = rows["runs"].fillna(1) if "runs" in rows else pd.Series(1, index=rows.index)
    drawn = rows.assign(
        label=[
            f"{name}, K = {number}" + (f", {several:.0f} runs" if several > 1 else "")
            for name, number, several in zip(rows["name"], rows["epochs"], runs, strict=True)
        ],
        even=1 / rows["epochs"],
        times=rows["share"] * rows["epochs"],
    )
    y = {"field": "label", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 190, "grid": False}}
    tooltip = [
        {"field": "name", "title": "run"}, {"field": "where"}, hover_number("share", "share of the first epoch"),
        hover_number("times", "times an even share"), {"field": "epochs", "title": "epochs K"},
    ]  # fmt: skip
    x = {"field": "share", "type": "quantitative", "title": "share of the first epoch", "scale": {"domain": [0, 1]}}
    layers: list[Spec] = [
        {"mark": {"type": "bar", "tooltip": True, "height": {"band": 0.72}},
         "encoding": {"x": x, "tooltip": tooltip,
                      "color": {"field": "where", "type": "nominal", "title": None,
                                "scale": {"domain": ["this report", "published"], "range": ["var(--c0)", "var(--c6)"]},
                                "legend": {"orient": "bottom", "values": list(dict.fromkeys(drawn["where"]))}},
                      "opacity": {"condition": {"param": "shown", "value": 1}, "value": 0.08}},
         "params": [legend_selection("where")]},
        {"mark": {"type": "tick", "thickness": 3, "color": "var(--ink)", "aria": False},
         "encoding": {"x": {"field": "even", "type": "quantitative"}}},
        {"mark": {"type": "text", "align": "left", "dx": 6, "fontSize": 11, "color": "var(--soft)", "aria": False},
         "encoding": {"x": x, "text": {"field": "times", "type": "quantitative", "format": ".2f"}}},
    ]  # fmt: skip
    if (runs > 1).any():
        tooltip += [
            {"field": "runs", "title": "runs"}, hover_number("least", "least of them"), hover_number("most", "most"),
        ]  # fmt: skip
        layers.insert(
            1,
            {
                "transform": [{"filter": "datum.runs > 1"}],
                "mark": {"type": "rule", "strokeWidth": 2, "color": "var(--ink)", "aria": False},
                "encoding": {"x": {"field": "least", "type": "quantitative"}, "x2": {"field": "most"}},
            },
        )
        layers[-1]["encoding"]["x"] = {"field": "reach", "type": "quantitative"}
        drawn = drawn.assign(reach=drawn["most"].where(runs > 1, drawn["share"]))
    return chart({
        "data": {"values": records(drawn)},
        "layer": layers,
        "encoding": {"y": y},
        "height": max(80, 26 * len(drawn)),
    })


def plane(points: pd.DataFrame, labels: Mapping[str, RunLabel]) -> Spec:
    """Draw trajectories in the plane of their two principal components, the pretrained weights as a star.

    Args:
        points: the table of `tvgrad.report.geometry.trajectories`.
        labels: how runs are shown.

    Returns:
        The specification.
    """
    found = [labels.get(str(run), RunLabel(str(run), str(run), str(run), "")) for run in points["run"]]
    drawn = pd.DataFrame({
        "run": [one.short for one in found],
        "task": [one.task for one in found],
        "variant": [one.variant for one in found],
        "epoch": points["epoch"].to_numpy(),
        "px": points["x"].to_numpy(),
        "py": points["y"].to_numpy(),
    })
    share = points[["share_x", "share_y"]].iloc[0]
    tasks = list(dict.fromkeys(drawn["task"]))
    shown = {"condition": {"param": "shown", "value": 1}, "value": 0.06}
    encoding = {
        "x": {"field": "px", "type": "quantitative", "title": f"first principal component ({share.iloc[0]:.0%})"},
        "y": {"field": "py", "type": "quantitative", "title": f"second ({share.iloc[1]:.0%} of the variance)"},
        "color": task_colour(tasks),
        "opacity": shown,
    }  # fmt: skip
    tooltip = [{"field": "run"}, {"field": "epoch"}, hover_number("px", "first"), hover_number("py", "second")]
    layers: list[Spec] = [
        {"mark": {"type": "line", "strokeWidth": 2, "aria": False},
         "encoding": {**encoding, "order": {"field": "epoch"}, "detail": {"field": "run"},
                      "strokeDash": dash(list(dict.fromkeys(drawn["variant"])), tasks)},
         "params": [legend_selection("task"), *zoom()]},
        {"mark": {"type": "point", "filled": True, "size": 45, "tooltip": True, "aria": False},
         "encoding": {**encoding, "tooltip": tooltip}},
        {"data": {"values": [{"px": 0, "py": 0, "what": "pretrained weights θ₀"}]},
         "mark": {"type": "point", "shape": _STAR,
                  "size": 260, "filled": True, "color": "var(--ink)", "tooltip": True},
         "encoding": {"x": {"field": "px", "type": "quantitative"}, "y": {"field": "py", "type": "quantitative"},
                      "tooltip": [{"field": "what", "title": "point"}]}},
    ]  # fmt: skip
    return chart({"data": {"values": records(drawn)}, "layer": layers, "height": 330})


def _limits(values: np.ndarray, cosine: bool) -> tuple[float, float, tuple[str, ...]]:
    scale = cosine_scale(values) if cosine else size_scale(values)
    return scale.low, scale.high, DIVERGING if scale.low < 0 else SEQUENTIAL


def _long(names: Sequence[Any]) -> bool:
    return any(not isinstance(name, (int, float, np.number)) and len(str(name)) > 4 for name in names)
