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
