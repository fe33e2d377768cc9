"""What a shell and a notebook show: a short line, and a table in which words of strangers are escaped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tvgrad
from tvgrad.results import facts_html
from tvgrad.theory.budget_rows import BudgetTerm
from tvgrad.theory.equivalence import OneEpochCheck
from tvgrad.theory.error_budget import ErrorBudget
from tvgrad.theory.merge_plan import Plan
from tvgrad.theory.second_order import Prediction
from tvgrad.theory.task_pairs import TaskPairs


@pytest.fixture
def objective() -> tvgrad.Objective:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    data = torch.eye(3, dtype=torch.float64), torch.tensor([0, 1, 0])
    return tvgrad.Objective(model, torch.nn.CrossEntropyLoss(), data, chunk_size=3)


def test_an_objective_and_a_prediction(objective: tvgrad.Objective) -> None:
    assert repr(objective).startswith("Objective(Sequential, 3 samples, 26 trainable parameters, ")
    assert "<th style='text-align:left'>samples</th>" in objective._repr_html_()
    made = tvgrad.predict(objective, tvgrad.update_rules.GD(0.1), 4)
    assert len(repr(made)) < 200
    assert "tensor" not in repr(made)
    assert "epochs=4" in repr(made)
    assert len(made.to_frame()) == 1
    assert "<table" in made._repr_html_()
    assert f"{made.row.relative_error:.4g}" in made._repr_html_()


def test_a_run(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 1)
    with tvgrad.Recorder(tmp_path / "run", model, name="<b>task") as recorder:
        recorder.end_epoch()
    run = tvgrad.Run.open(tmp_path / "run")
    assert repr(run) == f"Run({str(tmp_path / 'run')!r}: task <b>task, rule unknown, epochs 1, parameters 3)"
    assert "<b>task" not in run._repr_html_()
    assert "&lt;b&gt;task" in run._repr_html_()


def test_results_are_tables() -> None:
    row = BudgetTerm("<i>", 1, "curvature", 0.5, 1.0, 1.0, "V5 - V6")
    assert "&lt;i&gt;" in row._repr_html_()
    for kind in (ErrorBudget, OneEpochCheck, Plan, Prediction, TaskPairs):
        assert callable(kind.to_frame)
        assert kind.__repr__ is not object.__repr__
        assert kind._repr_html_
    assert facts_html("<", {"a": "&"}).count("&lt;") == 1
