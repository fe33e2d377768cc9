"""Interactive figures: every figure has a specification, which holds the numbers of the tables and no more than fit."""

from __future__ import annotations

import itertools
import json
import re

import pandas as pd
import pytest

from tests.traced_runs import Traced
from tvgrad.report.chart_parts import MOST_LEGEND, some_epochs
from tvgrad.report.charts import GAP, Axis, heat_map, over_epochs
from tvgrad.report.figures import FIGURES
from tvgrad.report.geometry import epoch_cosines, trajectories
from tvgrad.report.page import html_page
from tvgrad.report.page_figures import _DRAWN, page_figures
from tvgrad.report.page_tables import json_element
from tvgrad.report.run_labels import run_labels
from tvgrad.report.tables import run_tables


def values(spec: dict) -> list[dict]:  # type: ignore[type-arg]
    return spec["data"]["values"]


@pytest.fixture(scope="module")
def made(traced: Traced):  # type: ignore[no-untyped-def]
    return run_tables([traced("low"), traced("rotated")])


def test_every_figure_can_be_drawn_in_the_page(made) -> None:  # type: ignore[no-untyped-def]
    assert set(_DRAWN) == set(FIGURES)
    tables = {**made.tables, "trajectories": trajectories(made.gram), "epoch_cosines": epoch_cosines(made.gram)}
    found = {figure.name: figure for figure in page_figures(tables, run_labels(made.tasks))}
    assert set(found) == {
        "gradient_shares", "first_epoch_dominance", "descent_cosines", "trajectory_plane", "cross_task_cosines",
        "gradient_cosines", "layers",
    }  # fmt: skip
    norms = made.tables["norms"]
    rows = norms[(norms["group"] == "all") & norms["gradient_norm_share"].notna()]
    drawn = values(found["gradient_shares"].spec)
    assert [(row["run"], row["epoch"]) for row in drawn] == list(zip(rows["run"], rows["epoch"], strict=True))
    for row, share in zip(drawn, rows["gradient_norm_share"], strict=True):
        assert row["value"] == pytest.approx(share, rel=1e-5)
    cells = values(found["cross_task_cosines"].spec)
    assert {(cell["x"], cell["y"]) for cell in cells} == {("low", "rotated"), ("rotated", "low")}, "diagonal is masked"
    assert found["layers"].spec["params"][0]["bind"]["options"] == ["low", "rotated"]


def lines(tasks: int, seeds: int, epochs: int = 5) -> tuple[pd.DataFrame, dict[str, str], dict[str, object]]:
    names = {f"t{task}-{seed}": (f"t{task}", seed) for task in range(tasks) for seed in range(seeds)}
    table = pd.DataFrame([
        {"run": run, "epoch": epoch, "value": epoch + place}
        for place, run in enumerate(names)
        for epoch in range(epochs)
    ])
    return table, {run: task for run, (task, _) in names.items()}, {run: seed for run, (_, seed) in names.items()}


def test_seeds_share_a_colour_and_have_a_band() -> None:
    table, tasks, seeds = lines(2, 3)
    spec = over_epochs(table, Axis("value", "v"), run_labels(tasks, seeds))
    text = json.dumps(spec)
    assert '"area"' in text
    assert '"mean"' in text
    line = next(layer for layer in spec["layer"] if layer["mark"].get("strokeWidth") == 1)
    assert line["encoding"]["color"]["scale"]["domain"] == ["t0", "t1"]
    assert line["encoding"]["strokeDash"]["scale"]["domain"] == ["seed 0", "seed 1", "seed 2"]
    alone = json.dumps(over_epochs(*(lines(2, 1)[0], Axis("value", "v")), run_labels(lines(2, 1)[1])))
    assert '"area"' not in alone


def test_the_first_epoch_of_a_task_with_seeds_is_a_mean_with_its_range() -> None:
    shares = {"a/0": 0.5, "a/1": 0.7, "a/2": 0.75, "b": 0.4}
    norms = pd.DataFrame([
        {"run": run, "group": "all", "epoch": epoch, "gradient_norm_share": value, "epochs": 2}
        for run, share in shares.items()
        for epoch, value in ((0, share), (1, 1 - share))
    ])
    labels = run_labels({"a/0": "a", "a/1": "a", "a/2": "a", "b": "b"}, {"a/0": 0, "a/1": 1, "a/2": 2, "b": 0})
    (figure,) = [one for one in page_figures({"norms": norms}, labels) if one.name == "first_epoch_dominance"]
    several, one = values(figure.spec)
    assert several["label"] == "a, K = 2, 3 runs"
    assert [several[name] for name in ("share", "least", "most", "reach")] == pytest.approx([0.65, 0.5, 0.75, 0.75])
    assert (one["label"], one["share"], one["reach"]) == ("b, K = 2", pytest.approx(0.4), pytest.approx(0.4))
    (rule,) = [layer for layer in figure.spec["layer"] if layer["mark"]["type"] == "rule"]
    assert rule["transform"] == [{"filter": "datum.runs > 1"}]
    assert (rule["encoding"]["x"]["field"], rule["encoding"]["x2"]["field"]) == ("least", "most")


def test_legends_end_at_eight_and_labels_stand_apart() -> None:
    table, tasks, seeds = lines(12, 1)
    spec = over_epochs(table.assign(value=0.5), Axis("value", "v"), run_labels(tasks, seeds))
    assert len(spec["layer"][0]["encoding"]["color"]["legend"]["values"]) == MOST_LEGEND
    assert len(set(spec["layer"][0]["encoding"]["color"]["scale"]["range"])) == 12
    places = [row["place"] for row in spec["layer"][-1]["data"]["values"]]
    assert len(set(places)) == 12


@pytest.mark.parametrize(
    ("number", "seeds", "styles"), [(6, 3, 0), (5, 3, 3), (6, 2, 2), (1, 8, 8), (1, 9, 0), (12, 3, 0)]
)
def test_both_legends_together_end_at_eight(number: int, seeds: int, styles: int) -> None:
    table, tasks, found = lines(number, seeds)
    spec = over_epochs(table, Axis("value", "v"), run_labels(tasks, found))
    style = next(layer["encoding"]["strokeDash"] for layer in spec["layer"] if "strokeDash" in layer["encoding"])
    colour = spec["layer"][0]["encoding"]["color"]["legend"]
    named = (colour or {"values": []})["values"], (style["legend"] or {"values": []})["values"]
    assert len(named[1]) == styles
    assert len(named[0]) + len(named[1]) <= MOST_LEGEND
    assert ("line style" in spec["layer"][0]["encoding"]["x"]["title"]) == (styles == 0)


def test_labels_stand_apart_by_a_share_of_the_axis_where_it_begins_at_zero() -> None:
    table, tasks, seeds = lines(3, 1)
    spec = over_epochs(table.assign(value=0.24), Axis("value", "v", from_zero=True), run_labels(tasks, seeds))
    places = [row["place"] for row in spec["layer"][-1]["data"]["values"]]
    assert [after - before for before, after in itertools.pairwise(places)] == pytest.approx([GAP * 0.24] * 2)


@pytest.mark.parametrize("epochs", [2, 3, 4, 9])
def test_ticks_are_whole_epochs(epochs: int) -> None:
    table, tasks, seeds = lines(1, 1, epochs)
    for layer in over_epochs(table, Axis("value", "v"), run_labels(tasks, seeds))["layer"]:
        assert layer["encoding"]["x"]["axis"]["values"] == list(range(epochs))
    long = over_epochs(lines(1, 1, 400)[0], Axis("value", "v"), run_labels(tasks, seeds))
    axis = long["layer"][0]["encoding"]["x"]["axis"]
    assert "values" not in axis
    assert "% 1 === 0" in axis["labelExpr"], "a tick between epochs has no number"


def test_a_task_with_one_run_has_no_entry_among_the_seeds() -> None:
    table, tasks, seeds = lines(2, 3)
    kept = [run for run in tasks if run not in ("t0-1", "t0-2")]
    labels = run_labels({run: tasks[run] for run in kept}, {run: seeds[run] for run in kept})
    spec = over_epochs(table[table["run"].isin(kept)], Axis("value", "v"), labels)
    style = next(layer["encoding"]["strokeDash"] for layer in spec["layer"] if "strokeDash" in layer["encoding"])
    assert style["scale"]["domain"] == ["", "seed 0", "seed 1", "seed 2"]
    assert style["legend"]["values"] == ["seed 0", "seed 1", "seed 2"]


def test_numbers_stand_out_from_their_cells() -> None:
    cells = pd.DataFrame({"x": list("abcd"), "y": "r", "value": [-1.0, -0.2, 0.3, 0.9]})
    spec = heat_map(cells, "x", "y", "value", titles=("", "", "cos"))
    assert [row["light"] for row in values(spec)] == [True, False, False, True]
    assert spec["layer"][0]["encoding"]["color"]["scale"]["domain"] == [-1.0, 1.0]


def test_of_many_epochs_some_are_shown() -> None:
    kept = some_epochs(pd.Series(range(500)), 40)
    assert len(kept) == 40
    assert {0, 499} <= kept
    assert some_epochs(pd.Series([3, 1]), 40) == {1, 3}
    assert some_epochs(pd.Series([], dtype=int), 40) == set()


def test_data_cannot_end_its_element() -> None:
    text = json_element({"name": "</script><b>", "n": float("nan"), "i": float("inf")})
    assert "<" not in text
    assert json.loads(text) == {"name": "</script><b>", "n": None, "i": "inf"}


def test_scripts_of_the_page_ask_for_nothing() -> None:
    page = html_page({}, [], [], "t", "l")
    assert not re.search(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=", page)
    assert "import(" in page
    assert page == html_page({}, [], [], "t", "l"), "the same report makes the same bytes"
