"""The analyses of real pairs: their parts against definitions and simulations, and the whole ones (slow)."""

from __future__ import annotations

import importlib
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tvgrad.analyses import coloured_pairs, task_pairs
from tvgrad.analyses.jackknife import jackknife, without_task

from tvgrad.errors import TvgradError


def pairs_of(tasks: list[str], value: np.ndarray) -> pd.DataFrame:
    rows = [
        {"task_a": tasks[i], "task_b": tasks[j], "value": value[i, j]} for i, j in combinations(range(len(tasks)), 2)
    ]
    return pd.DataFrame(rows)


def mean(table: pd.DataFrame) -> float:
    return float(table["value"].mean())


def test_the_jackknife_of_a_sum_over_tasks_is_known() -> None:
    """The mean over pairs of u_i + u_j is twice the mean of u, and so is Student's half width."""
    draw = np.random.default_rng(0).standard_normal(7)
    names = list("abcdefg")
    found = jackknife(pairs_of(names, draw[:, None] + draw[None]), mean, {"all": names})
    assert found.mean == pytest.approx(2 * draw.mean())
    half = 2.446912 * 2 * draw.std(ddof=1) / math.sqrt(7)  # Student's quantile of 6 degrees of freedom
    assert found.high - found.mean == pytest.approx(half, rel=1e-5)
    assert len(without_task(pairs_of(names, np.zeros((7, 7))), "a")) == 15


def test_a_share_that_no_task_changes_is_not_known_exactly() -> None:
    names = list("abcd")
    found = jackknife(pairs_of(names, np.ones((4, 4))), mean, {"all": names}, 0, 1, of_one_pair=1 / 6)
    half = 3.182446 * math.sqrt(2) / 6  # Student's quantile of 3 degrees of freedom; two pairs of six
    assert (found.mean, found.high) == (1, 1)
    assert found.low == pytest.approx(1 - half, rel=1e-5)


def test_intervals_of_a_rare_gain_cover_the_truth() -> None:
    """Of 30 pairs one in fifty is told better: most studies see none, and their intervals must reach the truth."""
    draw, groups = np.random.default_rng(2), {"one": list("abcdef"), "other": list("ghijkl")}
    tables = [pairs_of(tasks, np.zeros((6, 6))) for tasks in groups.values()]
    covered = 0
    for _ in range(40):
        table = pd.concat([part.assign(value=draw.random(15) < 0.02) for part in tables])
        found = jackknife(table, mean, groups, of_one_pair=1 / 30)
        covered += found.low <= 0.02 <= found.high
    assert covered >= 37


@pytest.mark.slow
def test_intervals_cover_the_truth() -> None:
    draw = np.random.default_rng(1)
    names = list("abcdef")
    covered = 0
    for _ in range(400):
        own, noise = draw.standard_normal(6), 0.5 * draw.standard_normal((6, 6))
        found = jackknife(pairs_of(names, own[:, None] + own[None] + noise), mean, {"all": names})
        covered += found.low <= 0 <= found.high
    assert 0.92 <= covered / 400 <= 1


def made_table(family: str = "made") -> pd.DataFrame:
    """Measured cosines 0.1 .. 0.6 and signs, of four tasks, with predictions of known quality."""
    table = pairs_of(list("abcd"), np.zeros((4, 4))).drop(columns="value")
    truth = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    return table.assign(
        family=family, seed=0, rule="gd", epochs=10, cos_task_vectors=truth, own_cosine=truth**2,
        cos_gradients=[0.6, -0.5, 0.4, 0.3, 0.2, 0.1],
        change_of_a=[1.0, 1, 1, -1, -1, -1], change_of_b=1.0,
        own_change_of_a=[1.0, 1, 1, -1, -1, 1], own_change_of_b=1.0, cross_change_of_a=-1.0, cross_change_of_b=1.0,
    )  # fmt: skip


def test_scores_of_predictions() -> None:
    table = made_table()
    assert task_pairs.correlation(table, "own_cosine") == pytest.approx(1)
    assert task_pairs.correlation(table, "cos_gradients") == pytest.approx(1 - 6 * 50 / 210)
    assert task_pairs.error(table, None) == pytest.approx(0.35)
    assert task_pairs.error(table, "own_cosine") == pytest.approx(0.35 - (0.91 / 6))
    assert task_pairs.signs_right(table, "own") == pytest.approx(11 / 12)
    assert task_pairs.signs_right(table, "cross") == pytest.approx(9 / 12)
    assert task_pairs.signs_right(table, "harm") == pytest.approx(9 / 12)
    assert task_pairs.signs_right(table, "first_order") == pytest.approx((4 + 1) / 12)
    others = made_table("more").replace({"a": "e"})
    assert task_pairs.groups_of(pd.concat([table, others])) == {"made": list("abcde")}
    apart = others.replace(dict(zip("bcde", "wxyz", strict=True)))
    assert task_pairs.groups_of(pd.concat([table, apart])) == {"made": list("abcd"), "more": list("wxyz")}


def test_margins_of_coloured_pairs() -> None:
    rows = [
        {"seed": 0, "kind": kind, "x": x, "accuracy_1": one, "accuracy_2": two, "own_1": 0.9, "own_2": 0.8}
        for kind, x, one, two in (
            ("aligned", -0.5, 0.88, 0.58),
            ("aligned", -1.0, 0.80, 0.10),
            ("aligned", 0.5, 0.87, 0.70),
            ("aligned", 1.0, 0.86, 0.80),
            ("mixture", 0.5, 0.1, 0.1),
            ("mixture", 1.0, 0.9, 0.9),
        )
    ]
    found = coloured_pairs.margins(pd.DataFrame(rows)).set_index("kind")
    assert found.loc["aligned", "added"] == pytest.approx(0.01)  # at 1: the first task loses 0.04 of the 0.05 it may
    assert found.loc["aligned", "negated"] == pytest.approx(0.02)  # at -0.5: the second is 0.02 below 0.6
    assert found.loc["mixture", "added"] == pytest.approx(0.05)


PAIRS = """
import torch
import tvgrad
from tvgrad.problem.recipe import accuracy

def tasks():
    draw = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    inputs = torch.randn(90, 4, generator=draw)
    return [
        tvgrad.Recipe(model, torch.nn.CrossEntropyLoss(), (inputs, labels), test=(inputs, labels), metric=accuracy,
                      name=name, lr=0.3)
        for name, labels in {
            "sum": (inputs.sum(1) > 0).long(), "first": (inputs[:, 0] > 0).long(),
            "not": (inputs[:, 0] < 0).long(), "last": (inputs[:, 3] > 0).long(),
        }.items()
    ]
"""


def test_a_small_study_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "few.py").write_text(PAIRS)
    target = f"{tmp_path}/few.py:tasks"
    cells = str(tmp_path / "cells")
    result = task_pairs.analyse(target, samples=30, cells=cells)

    def never(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(task_pairs, "pair_rows", never)
    again = task_pairs.analyse(target, samples=30, cells=cells)
    pd.testing.assert_frame_equal(result.table, again.table)
    found = result.table.set_index(["rule", "epochs", "quantity"])["value"]
    assert found[:, :, "pairs"].tolist() == [6] * 6
    assert found["gd", 1, "rank, one product"] == pytest.approx(1)  # one step of descent is the gradient
    assert found["gd", 1, "error, one product"] == pytest.approx(0, abs=1e-5)
    assert found["gd", 1, "signs, with --cross"] == 1
    assert any("gd, 10 epochs: rank correlation" in verdict for verdict in result.verdicts)
    result.save(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000


def test_a_wrong_name_is_told_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "few.py").write_text(PAIRS)
    monkeypatch.setattr(task_pairs, "pair_rows", None)
    with pytest.raises(TvgradError, match="nonsense"):
        task_pairs.analyse(f"{tmp_path}/few.py:tasks,nonsense")


def test_bad_input() -> None:
    with pytest.raises(TvgradError, match="seeds must be at least 1, not 0"):
        task_pairs.analyse("digits", seeds=0)
    with pytest.raises(TvgradError, match="has 2 of the three tasks or more"):
        task_pairs.analyse("conceptual-aligned")
    with pytest.raises(TvgradError, match="samples must be at least 10, not 9"):
        task_pairs.analyse("digits", samples=9)
    with pytest.raises(TvgradError, match="' , ' names no recipe"):
        task_pairs.analyse(" , ")
    with pytest.raises(TvgradError, match="samples must be at least 10, not 0"):
        coloured_pairs.analyse(samples=0)
    with pytest.raises(TvgradError, match="digits has not the tasks red, aligned"):
        coloured_pairs.analyse("digits")
    with pytest.raises(TvgradError, match="seeds must be at least 2 and lambdas at least 3, not 1 and 9"):
        coloured_pairs.analyse(seeds=1, lambdas=9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["task_pairs", "coloured_pairs"])
def test_whole(name: str, tmp_path: Path) -> None:
    pytest.importorskip("mlxtend")
    torch.manual_seed(0)
    result = importlib.import_module(f"tvgrad.analyses.{name}").analyse()
    assert result.outcome in {"holds", "fails", "undecided"}
    result.save(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000
