"""`tvgrad relate`: its tables, its sentence and its refusals."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Tvgrad = Callable[..., Any]
Refused = Callable[..., str]


@pytest.fixture
def runs(tvgrad: Tvgrad, recipes: Path, tmp_path: Path) -> Path:
    assert tvgrad("trace", f"{recipes}:tasks", "--out", tmp_path / "runs", "--epochs", "3", "--quiet").code == 0
    return tmp_path / "runs"


def test_tables_and_a_sentence(tvgrad: Tvgrad, runs: Path, tmp_path: Path) -> None:
    outcome = tvgrad("relate", runs / "one", runs / "two", "--out", tmp_path / "relation.csv")
    assert (outcome.code, outcome.err) == (0, "")
    assert "whole model; a = one, b = two" in outcome.out
    assert "groups after epoch 3" in outcome.out
    sentence = outcome.out.splitlines()[-1]
    assert sentence.startswith("After epoch 3, the task vectors of one and two point the same way (cosine 0.")
    with open(tmp_path / "relation.csv", encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert {(row["group"], row["epoch"]) for row in rows} == {(g, e) for g in ("all", "0", "2") for e in "0123"}
    assert all(row["interference_on_a"] for row in rows if row["epoch"] != "0")
    assert tvgrad("relate", runs / "one", runs / "two", "--quiet").out == sentence + "\n"


def test_groups_of_ones_own(tvgrad: Tvgrad, runs: Path) -> None:
    outcome = tvgrad("relate", runs / "one", runs / "two", "--groups", "weight|bias")
    blocks = outcome.out.partition("groups after epoch 3")[2]
    assert all(f" {group} " in blocks for group in ("weight", "bias"))


def test_refusals(tvgrad: Tvgrad, refused: Refused, runs: Path, recipes: Path, tmp_path: Path) -> None:
    one, two = runs / "one", runs / "two"
    assert "takes 2 values" in refused("relate", one)
    assert refused("relate", one, runs) == f"{runs} is a directory of runs (one, two): give one of them"
    assert "does not exist" in refused("relate", one, tmp_path / "nowhere")
    assert "was given twice" in refused("relate", one, one)
    assert "is no folder: choose another --out" in refused("relate", one, two, "--out", tmp_path / "no" / "t.csv")
    assert "is not a regular expression" in refused("relate", one, two, "--groups", "(")
    assert tvgrad("trace", f"{recipes}:other_model", "--out", tmp_path / "other", "--quiet").code == 0
    assert "are runs of different models" in refused("relate", one, tmp_path / "other")
    (two / "weights/epoch-0002.safetensors").write_bytes(b"short")
    words = refused("relate", one, two)
    assert words.startswith(f"{two} is damaged: weights/epoch-0002.safetensors has 5 bytes instead of ")
    assert words.endswith("; see `tvgrad verify`")


def test_tasks_before_training(tvgrad: Tvgrad, runs: Path, recipes: Path, tmp_path: Path) -> None:
    target = f"{recipes}:tasks"
    outcome = tvgrad("relate", target, "--epochs", "3", "--out", tmp_path / "pairs.csv")
    assert (outcome.code, outcome.err) == (0, "")
    assert "Predicted relations after 3 epochs of gd" in outcome.out
    sentence = outcome.out.splitlines()[-1]
    assert sentence.startswith(
        "one and two are predicted to be aligned after 3 epochs (cosine of the task vectors about"
    )
    assert "adding the task vector of two to the model of one " in sentence
    assert tvgrad("relate", target, "--epochs", "3", "--quiet").out.splitlines()[-1] == sentence
    with open(tmp_path / "pairs.csv", encoding="utf-8", newline="") as handle:
        (row,) = csv.DictReader(handle)
    assert float(row["lambda_low"]) < float(row["lambda_high"])

    outcome = tvgrad("relate", target, "--against", runs, "--cross", "--out", tmp_path / "pairs.csv")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines()[-1].startswith("Measured: cosine 0.")
    with open(tmp_path / "pairs.csv", encoding="utf-8", newline="") as handle:
        (row,) = csv.DictReader(handle)
    assert row["epochs"] == "3"  # read from the runs: the recipe's own are five
    for name in ("cos_task_vectors", "change_of_a", "change_of_b"):
        assert float(row[name]) == pytest.approx(float(row[f"measured_{name}"]), rel=0.1)


def test_refusals_of_tasks(tvgrad: Tvgrad, refused: Refused, runs: Path, recipes: Path, tmp_path: Path) -> None:
    target, one = f"{recipes}:tasks", runs / "one"
    assert "one alone has nothing to relate to" in refused("relate", target, "--tasks", "one")
    assert refused("relate", target, "--tasks", "one,three").endswith("no task is called 'three': choose from one, two")
    assert "do not share one pretrained model" in refused("relate", target, f"{recipes}:other_model")
    assert "has two tasks called 'one'" in refused("relate", target, f"{recipes}:tasks_again")
    assert "is a recipe and" in refused("relate", target, one)
    assert "adam is not a linear" not in (words := refused("relate", target, "--optimizer", "adam"))
    assert words.endswith("give --optimizer gd and --lr for what gradient descent would do")
    assert "epochs must be a whole number" in refused("relate", target, "--epochs", "0")
    assert "--groups is for runs" in refused("relate", target, "--groups", "weight")
    assert "--cross is for recipes" in refused("relate", one, runs / "two", "--cross")
    assert "holds trained runs of 1 of the tasks one, two" in refused("relate", target, "--against", one)
    assert "does not begin at the pretrained weights of one" in refused(
        "relate", target, "--against", runs, "--dtype", "bfloat16"
    )
