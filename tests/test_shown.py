"""What a shell and a notebook show: a short line, and a table in which words of strangers are escaped."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tvgrad.analyses.analysis_result import AnalysisResult

import tvgrad
import tvgrad.report
from tests.test_public_names import OF_EXTRAS, modules
from tvgrad.bounds import Certificate, FeedForward, UniformBounds, multitask_gap_bound, spectral_norm
from tvgrad.merging.merged_file import MergedFile
from tvgrad.report.tables import RunTables
from tvgrad.results import Result, facts_html
from tvgrad.streaming.gram import GramResult
from tvgrad.theory.budget_rows import BudgetTerm
from tvgrad.theory.equivalence import OneEpochCheck, StepVerdict
from tvgrad.theory.error_budget import ErrorBudget
from tvgrad.theory.forecast import forecast
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
    fails = StepVerdict("run", "tau_1 = -lr g_0", "fails", 2.0, 0.0, 0.0, "too far, and a long way. " * 20)
    assert repr(fails) == (
        "StepVerdict(run='run', rule='tau_1 = -lr g_0', holds='fails', worst_ratio_to_budget=2, frozen_share=0, ...)"
    )
    assert repr(OneEpochCheck((fails,))) == "OneEpochCheck(holds='fails', verdicts=1)"


def test_a_row_is_one_line_whatever_it_holds() -> None:
    for kind in (one for one in CLASSES.values() if issubclass(one, Result) and dataclasses.fields(one)):
        held = {"float": 0.123456, "int": 3, "bool": True, "str": "a word, and another one"}
        made = kind(**{field.name: held.get(str(field.type)) for field in dataclasses.fields(kind)})
        assert len(repr(made)) <= 120, kind
        assert repr(made).startswith(f"{kind.__name__}({dataclasses.fields(kind)[0].name}=")


def test_bounds_stay_bounds_where_people_look() -> None:
    certificate = Certificate(0.12341, 0.12341, 0.12349, "tube", 0.12341)
    for text in (repr(certificate), certificate._repr_html_()):
        assert text.count("0.1235") == 3  # upper bounds
        assert text.count("0.1234") == 1
    bounds = UniformBounds(0.12341, 0.12341, 0.12341)
    assert repr(bounds) == "UniformBounds(gradient_norm=0.1235, hessian_norm=0.1235, hessian_lipschitz=0.1235)"
    assert bounds._repr_html_().count("0.1235") == 3
    tables = {"norms": pd.DataFrame({"run": ["a"], "error_norm": [0.12341], "bound": [0.12341]})}
    shown = RunTables(tables, GramResult((), np.zeros((0, 0)), {}, {}, {}))._repr_html_()
    assert "<td>0.1234</td>" in shown
    assert "<td>0.1235</td>" in shown


CLASSES = {
    kind.__name__: kind
    for module in sorted(modules().keys() - OF_EXTRAS)
    for kind in vars(importlib.import_module(module)).values()
    if inspect.isclass(kind) and dataclasses.is_dataclass(kind) and kind.__module__ == module
}
NOT_SHOWN = {
    "Expansion", "QuadraticModel", "SecantModel", "PairBasis", "PairForecast", "GapParts", "MergeLine",  # of a loss
    "BatchPrediction", "RecordedStep", "Schedule", "StepPlan",  # tensors that are moved on, step by step
    "EpochBudget", "BudgetPlan", "Costs", "Evaluations",  # parts of results, which show them
    "LayerBounds", "LocalLoss", "LossBounds", "PointBounds",  # numbers that bounds are made of
    "Sparsifier", "RandomEntries", "IntervalCounts", "NarrowBlock", "Given", "MergeCurvatures",  # parts of methods
    "Cost",  # one sentence, told before the work
    "Activation", "Method", "Point", "BoundedVector",  # what was given, what lies in files, a vector with its rounding
}  # fmt: skip
"""What public functions return besides results."""


def results() -> set[str]:
    """Names of the dataclasses that public functions and methods of public classes return."""
    packages = (tvgrad, tvgrad.bounds, tvgrad.merging)
    public = [getattr(package, name) for package in packages for name in package.__all__]
    public += [getattr(tvgrad.report, name) for name in tvgrad.report.WHERE]
    for name in modules():
        if name.startswith(("tvgrad.theory.", "tvgrad.merging.", "tvgrad.report.relation", "tvgrad.report.checkpoint")):
            found = vars(importlib.import_module(name)).items()
            public += [one for word, one in found if word[0] != "_" and getattr(one, "__module__", "") == name]
    members = [one for kind in public if inspect.isclass(kind) for one in vars(kind).items()]
    methods = [one for word, one in members if word[0] != "_"]
    said = [one.__annotations__.get("return", "") for one in (*public, *methods) if inspect.isfunction(one)]
    return {word for text in said for word in re.findall(r"\w+", str(text))} & CLASSES.keys()


def test_every_public_result_is_a_table() -> None:
    found = results()
    assert {"Certificate", "ErrorBudget", "Forecast", "GramResult", "MergedFile", "Relation", "RunTables"} <= found
    for name in found - NOT_SHOWN:
        kind: Any = CLASSES[name]
        assert kind.__dataclass_params__.frozen, name
        assert callable(getattr(kind, "to_frame", None)), name
        assert callable(getattr(kind, "_repr_html_", None)), name
    assert AnalysisResult.to_frame
    assert tvgrad.Run.to_frame


def test_short_lines_of_what_holds_many_things(objective: tvgrad.Objective, tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    bounds = FeedForward(model, torch.eye(3, dtype=torch.float64), torch.tensor([0, 1, 0]))
    certificate = bounds.certificate(0.01, epochs=2)
    shown: tuple[tuple[Any, int], ...] = (
        (certificate, 1),
        (certificate.forms[0], 1),
        (multitask_gap_bound([bounds, bounds], 0.01, 2, alpha=0.5), 1),
        (bounds.closed_form(), 1),
        (spectral_norm(torch.eye(2)), 1),
        (forecast(objective, tvgrad.update_rules.GD(0.1), 2), 1),
        (MergedFile(tmp_path / "merged.safetensors", ("a", "b"), (), ("head",)), 1),
        (RunTables({"norms": pd.DataFrame({"run": ["a", "b"]})}, GramResult((), np.zeros((0, 0)), {}, {}, {})), 2),
        (GramResult(("a.safetensors", "b.safetensors"), np.eye(2), {}, {}, {}), 2),
    )
    for made, rows in shown:
        assert repr(made).startswith(f"{type(made).__name__}(")
        assert len(repr(made)) < 300
        assert len(made.to_frame()) == rows
        assert "<table" in made._repr_html_()
    assert shown[6][0].to_frame().iloc[0].to_dict() == {
        "path": str(tmp_path / "merged.safetensors"), "merged": 2, "shared": 0, "own": 1,
    }  # fmt: skip
    with pytest.raises(tvgrad.TvgradError, match="there is no table 'nothing': choose among norms"):
        shown[7][0].to_frame("nothing")
