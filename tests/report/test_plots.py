"""What `.plot()` draws of each kind of result, and what it says where there is nothing to draw."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tvgrad.analyses.analysis_result import AnalysisResult

import tvgrad
from tests.traced_runs import Traced
from tvgrad.problem.recipe import Recipe
from tvgrad.report.checkpoints import CheckpointTables
from tvgrad.report.plots import plot
from tvgrad.report.shown_tables import ShownTables
from tvgrad.report.tables import RunTables, run_tables
from tvgrad.results import Plotted
from tvgrad.store.run_text import RunText
from tvgrad.streaming.gram import GramResult
from tvgrad.theory.budget_rows import BudgetTerm
from tvgrad.theory.error_budget import ErrorBudget
from tvgrad.theory.explain import Explanation
from tvgrad.theory.multitask import MultitaskGap
from tvgrad.theory.task_pairs import TaskPairs

NONE = tvgrad.problem.evaluations.Evaluations()


def every_kind(kind: type) -> set[type]:
    return {one for child in kind.__subclasses__() for one in {child, *every_kind(child)}}


def test_each_kind_with_a_figure_has_its_drawing() -> None:
    kinds = every_kind(Plotted) - {ShownTables, RunText}
    assert {
        ErrorBudget,
        Explanation,
        GramResult,
        MultitaskGap,
        tvgrad.theory.second_order.Prediction,
        TaskPairs,
        RunTables,
        CheckpointTables,
    } < kinds
    assert kinds == set(plot.registry) - {object}
    with pytest.raises(tvgrad.TvgradError, match="there is no figure of a str: its table is"):
        plot("text")


def budget() -> ErrorBudget:
    shares = {"curvature": 0.75, "coverage": 0.25}
    rows = tuple(BudgetTerm("a", 2, term, 1.0, 0.5, share, "") for term, share in shares.items())
    return ErrorBudget(rows, {2: 1.0}, {2: 0.1}, 0.0, NONE, NONE, ())


def test_budgets() -> None:
    made = budget()
    widths = [bar.get_width() for bar in made.plot().patches]
    assert sorted(widths) == [0.25, 0.75]
    figure = Figure()
    ax = figure.subplots()
    explained = Explanation((), made, NONE, NONE, ("nothing more",))
    assert explained.plot(ax, title=False) is ax
    assert ax.get_title() == ""
    assert list(explained.to_frame()["term"]) == ["curvature", "coverage"]
    with pytest.raises(tvgrad.TvgradError, match="no terms"):
        ErrorBudget((), {}, {}, 0.0, NONE, NONE, ()).plot()


def numbers_of(ax: Axes) -> list[float]:
    return [float(text.get_text().replace("−", "-")) for text in ax.texts]


def test_cosines() -> None:
    vectors = np.array([[1.0, 0.0], [3.0, 4.0]])
    gram = GramResult(("a", "b"), vectors @ vectors.T, {"bias": np.eye(2)}, {}, {})
    assert set(numbers_of(gram.plot())) == {0.6}
    assert set(numbers_of(gram.plot(group="bias"))) == {0.0}
    assert gram.plot(title=False).get_title() == ""
    with pytest.raises(tvgrad.TvgradError, match="2 to 40 vectors, and here are 1"):
        GramResult(("a",), np.eye(1), {}, {}, {}).plot()
    model, loss = torch.nn.Linear(2, 1, bias=False).double(), torch.nn.MSELoss()
    torch.nn.init.zeros_(model.weight)
    tasks = {
        name: tvgrad.Objective(model, loss, (torch.tensor([inputs]).double(), torch.ones(1, 1).double()))
        for name, inputs in {"a": [1.0, 0.0], "b": [1.0, 1.0]}.items()
    }
    assert set(numbers_of(tvgrad.relate_tasks(tasks, tvgrad.update_rules.GD(0.1), epochs=3).plot())) == {0.71}
    gap = tvgrad.multitask_gap(list(tasks.values()), 0.1, 3, [0.25, 0.5])
    lines = {line.get_label(): line.get_ydata() for line in gap.plot().lines}
    assert list(lines["measured"]) == list(gap.to_frame()["measured_norm"])


def test_a_prediction_is_drawn_against_its_threshold() -> None:
    # Half the squared distance to the targets has the Hessian 1/3, times 2 by the mean of squares: (k - 1)/2 lr 2/3.
    model = torch.nn.Linear(3, 1, bias=False).double()
    data = torch.eye(3).double(), torch.ones(3, 1).double()
    objective = tvgrad.Objective(model, torch.nn.MSELoss(), data)
    made = tvgrad.predict(objective, tvgrad.update_rules.GD(0.09), epochs=6)
    ax = made.plot()
    assert list(ax.lines[0].get_xdata()) == [1, 2, 3, 4, 5, 6]
    assert ax.lines[0].get_ydata() == pytest.approx([(k - 1) / 2 * 0.09 * 2 / 3 for k in range(1, 7)], rel=1e-9)
    assert [text.get_text() for text in ax.texts] == ["threshold 0.1, kept until epoch 4"]
    assert "gd, rate 0.09" in ax.get_title()
    assert made.plot(title=False).get_title() == ""
    kinked = dataclasses.replace(made, relative_errors=(), sentences=("the network has kinks",))
    with pytest.raises(tvgrad.TvgradError, match="error is withheld: the network has kinks"):
        kinked.plot()


def test_runs_and_their_tables(traced: Traced, digits: dict[str, Recipe]) -> None:
    run = traced("rotated")
    made = run_tables([run])
    cosines = made.to_frame("directions").query("group == 'all'")["cos_task_vector_descent"].dropna()
    for shown in (run, made):
        assert list(shown.plot().lines[0].get_ydata()) == list(cosines)
    assert made.plot(figure="gradient_cosines").get_title().endswith("rotated")
    assert made.plot(figure="layers", run="rotated")
    assert len(run.to_frame()) == len(run.epochs)
    for options, said in (
        ({"figure": "error_budget"}, "'error_budget' has nothing to show: choose among gradient_shares"),
        ({"figure": "nothing"}, "there is no figure 'nothing'"),
        ({"figure": "layers", "run": "other"}, "no run 'other' in this figure: choose among rotated"),
    ):
        with pytest.raises(tvgrad.TvgradError, match=said):
            made.plot(**options)


def test_checkpoints_and_analyses() -> None:
    pair = pd.DataFrame([{"run_a": "a", "run_b": "b", "epoch": float("nan"), "group": "all", "cos_task_vectors": 0.25}])
    tables = CheckpointTables({"cross_task": pair}, ("a", "b"), 3, ())
    assert set(numbers_of(tables.plot())) == {0.25}
    with pytest.raises(tvgrad.TvgradError, match="nothing to draw by default: no other figure"):
        CheckpointTables({}, ("a",), 3, ()).plot()
    drawn: list[Any] = []
    result = AnalysisResult("claim", "holds", "evidence", pair, drawn.append)
    assert drawn == []
    assert result.plot() is drawn[0]
    assert result.to_frame() is pair
