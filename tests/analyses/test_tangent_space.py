"""The analysis of tangent models: what is compared, against predictions counted by hand, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tvgrad.analyses.tangent_space import _of_seed, _tuned, analyse, judged
from tvgrad.analyses.task_training import CHUNK, tasks_of

from tvgrad import TvgradError
from tvgrad.recipes.catalogue import load_recipes

TRAINING = {"lr": 0.1, "epochs": 3, "images": 40}


@pytest.mark.slow
def test_ordinary_rows_are_errors_counted_by_hand() -> None:
    recipes = load_recipes("digits")[:2]
    [rows] = _of_seed(recipes, 0, share=0.5, **TRAINING)
    assert [row["way"] for row in rows] == ["ordinary", "tangent", "masked"]
    scores = {one["way"]: one["accuracy"] for one in rows}
    assert scores["ordinary"] == pytest.approx(scores["tangent"], abs=0.05)
    row = rows[0]
    tasks = tasks_of(recipes, 0, 40)
    vectors, differing = [], 0.0
    for recipe, task in zip(recipes, tasks, strict=True):
        test = recipe.objective(samples=task.scorer.test, chunk_size=CHUNK)
        course = _tuned(task, test, task.objective, 0.1, row["epochs"])
        vectors.append(course.vectors[-1])
    for recipe, task, vector in zip(recipes, tasks, vectors, strict=True):
        inputs, _ = task.scorer.test.batch(0, 10_000)
        answers = [
            torch.func.functional_call(
                recipe.model,
                {name: (tensor + moved[name]).float() for name, tensor in task.objective.initial.items()},
                (inputs,),
            ).argmax(1)
            for moved in (vector, {name: vectors[0][name] + vectors[1][name] for name in vector})
        ]
        differing += float((answers[0] != answers[1]).double().mean())
    assert row["disentanglement_error"] == pytest.approx(differing, abs=1e-12)


@pytest.mark.slow
def test_small(tmp_path: Path) -> None:
    result = analyse("digits", seeds=2, share=0.5, cells=str(tmp_path / "cells"), **TRAINING)
    assert result.outcome in {"holds", "fails", "undecided"}
    assert len(result.table) == 2 * 3 * 15
    assert np.isfinite(result.table["relative_interference"]).all()
    result.save(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000


def made(accuracy: dict[str, float], error: dict[str, float]) -> pd.DataFrame:
    small = {0: 0.0, 1: 1e-4, 2: -1e-4}
    return pd.DataFrame([
        {
            "seed": seed, "way": way, "tasks": "a+b", "accuracy": accuracy[way] + shift,
            "disentanglement_error": error[way] + shift * (way == "ordinary"), "relative_interference": 0.5,
        }
        for seed, shift in small.items()
        for way in accuracy
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("tangent_error", "tangent_accuracy", "outcome"),
    [(0.2, 0.8, "holds"), (0.4, 0.8, "fails"), (0.2, 0.83, "undecided"), (0.4, 0.77, "undecided")],
)
def test_models_of_unlike_accuracy_decide_nothing(tangent_error: float, tangent_accuracy: float, outcome: str) -> None:
    accuracy = {"ordinary": 0.8, "tangent": tangent_accuracy, "masked": 0.5}
    result = judged(made(accuracy, {"ordinary": 0.3, "tangent": tangent_error, "masked": 0.1}), "made", 0.5)
    assert result.outcome == outcome
    assert ("not one of like models" in result.evidence) == (outcome == "undecided")
    assert "not one of like models" in result.verdicts[4]


def test_refusals() -> None:
    with pytest.raises(TvgradError, match="one seed has no interval"):
        analyse("digits", seeds=1)
