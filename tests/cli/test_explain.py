"""`tvgrad explain` on the command line, and the report of what it found."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RECIPE = ["--quiet", "--chunk-size", "20"]


@pytest.fixture
def run(recipes: Path, tmp_path: Path, tvgrad: Callable[..., Any]) -> Path:
    out = tmp_path / "run"
    done = tvgrad(
        "trace", recipes, "--out", out, "--optimizer", "momentum", "--batch-size", "6", "--record", "gradients,batches",
        *RECIPE,
    )  # fmt: skip
    assert done.code == 0, done.err
    return out


def test_explain_then_report(run: Path, recipes: Path, tmp_path: Path, tvgrad: Callable[..., Any]) -> None:
    done = tvgrad("explain", run, "--recipe", recipes, "--remainder")
    assert done.code == 0, done.err
    assert "mine: second-order error" in done.out
    assert "error budget of epoch 3" in done.out
    assert "batch curvature" in done.out
    assert (run / "results" / "error_budget.json").exists()
    done = tvgrad("report", run, "--out", tmp_path / "report", "--format", "csv")
    assert done.code == 0, done.err
    with open(tmp_path / "report" / "second_order.csv") as file:
        rows = list(csv.DictReader(file))
    columns = ["run", "epoch", "error_norm", "predicted_norm", "residual_order1", "residual_order2"]
    assert list(rows[0])[:8] == [*columns, "residual_quadratic", "bound"]
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    with open(tmp_path / "report" / "error_budget.csv") as file:
        terms = list(csv.DictReader(file))
    assert list(terms[0])[:6] == ["run", "epoch", "term", "norm", "cosine", "share"]
    assert sum(float(row["share"]) for row in terms if row["epoch"] == "3") == pytest.approx(1, abs=1e-12)
    assert (tmp_path / "report" / "figures" / "error_budget.png").stat().st_size > 5000


def test_a_built_in_recipe_is_found_by_its_name(tmp_path: Path, tvgrad: Callable[..., Any]) -> None:
    words = ["--tasks", "low", "--epochs", "2", "--quiet", "--chunk-size", "900"]
    assert tvgrad("trace", "digits", "--out", tmp_path / "low", *words).code == 0
    done = tvgrad("explain", tmp_path / "low", "--epochs", "2", "--budget-seconds", "30")
    assert done.code == 0, done.err
    assert "low: error budget of epoch 2" in done.out
    table, _, said = done.out.partition("low: zero to rounding: ")
    assert "weight decay" not in table
    assert said.startswith("weight decay, preconditioner, batch curvature, batch order, unequal batches, coverage\n")
    done = tvgrad("explain", tmp_path / "low", "--epochs", "2", "--budget-seconds", "1e-9")
    assert done.code == 0, done.err
    for what in ("the predictions are left out", "the curvature term is left out"):
        assert what in done.out


def test_a_users_code_is_only_run_when_named(run: Path, refused: Callable[..., str]) -> None:
    assert "give --recipe TARGET" in refused("explain", run)


def test_bad_input(run: Path, recipes: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "fingerprint differs" in refused("explain", run, "--recipe", f"{recipes}:other_data")
    assert "other parameters" in refused("explain", run, "--recipe", f"{recipes}:other_model")
    assert "no list of numbers" in refused("explain", run, "--recipe", recipes, "--epochs", "one")
    assert "keeps no weights after epoch 7" in refused("explain", run, "--recipe", recipes, "--epochs", "7")
    assert "above 0 seconds" in refused("explain", run, "--recipe", recipes, "--budget-seconds", "0")
    assert "does not exist" in refused("explain", tmp_path / "nowhere")


def test_missing_batches_for_adam(recipes: Path, tmp_path: Path, tvgrad: Callable[..., Any]) -> None:
    out = tmp_path / "adam"
    words = ["--optimizer", "adam", "--batch-size", "6", "--lr", "0.01", *RECIPE]
    assert tvgrad("trace", recipes, "--out", out, *words).code == 0
    done = tvgrad("explain", out, "--recipe", recipes)
    assert done.code == 2
    assert "trace it with --record batches" in done.err
    assert len(done.err.splitlines()) == 1
