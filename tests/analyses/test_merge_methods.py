"""The comparison of merging methods: its statistics on made scores, its plane, its memory, and a small study."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tvgrad.analyses.merge_methods import _judged, analyse, compared
from tvgrad.analyses.method_figures import together
from tvgrad.analyses.method_scores import PRETRAINED, SINGLE, SUM, plane_rows
from tvgrad.analyses.tensor_memory import peak_bytes

from tvgrad import TvgradError

SEEDS, TASKS, SAMPLES = 5, 3, 200


def made_scores(accuracies: dict[str, float], seed: int = 0) -> pd.DataFrame:
    """Right answers of models whose accuracies are known; samples are as hard for one model as for another."""
    draw = np.random.default_rng(seed)
    hard = draw.uniform(size=(TASKS, SAMPLES))
    rows = []
    for one in range(SEEDS):
        for name, accuracy in accuracies.items():
            for task in range(TASKS):
                right = (hard[task] + 0.02 * draw.normal(size=SAMPLES) < accuracy).astype(float).tolist()
                rows.append({"seed": one, "method": name, "epochs": 1, "task": f"t{task}", "sample_scores": right})
                if name not in (PRETRAINED, SINGLE):
                    rows[-1] |= {"alpha": 0.5, "at_edge": name == "edge", "seconds": 0.1, "megabytes": 1.0}
    return pd.DataFrame(rows)


def test_what_is_better_worse_and_at_the_edge() -> None:
    accuracies = {PRETRAINED: 0.6, SINGLE: 0.9, SUM: 0.7, "good": 0.8, "bad": 0.5, "same": 0.7, "edge": 0.69}
    table, tests = compared(made_scores(accuracies))
    rows = table.set_index("method")
    for name, accuracy in accuracies.items():
        true = 100 * (accuracy - 0.6)
        assert rows.loc[name, "gain_low"] - 0.7 <= true <= rows.loc[name, "gain_high"] + 0.7  # noise bends the ends
    assert rows.loc["good", "p_against_sum"] < 0.01
    assert rows.loc["bad", "p_against_sum"] < 0.01
    assert rows.loc["same", "p_against_sum"] > 0.05
    assert rows.loc["edge", "at_edge"] == SEEDS
    assert rows.loc[SINGLE, "normalised"] == 1
    assert rows.loc["good", "normalised"] == pytest.approx(0.8 / 0.9, abs=0.02)
    assert _judged(table, tests, 2.0)[0] == "fails"
    assert "good after 1 epoch" in _judged(table, tests, 2.0)[1]


def test_verdicts_of_methods_that_are_alike_and_of_none_that_gains() -> None:
    alike = {PRETRAINED: 0.6, SINGLE: 0.9, SUM: 0.8, "other": 0.8}
    assert _judged(*compared(made_scores(alike)), 5.0)[0] == "holds"
    assert _judged(*compared(made_scores(alike)), 0.01)[0] == "undecided"
    assert _judged(*compared(made_scores(alike | {PRETRAINED: 0.8})), 5.0)[0] == "vacuous"


def test_methods_that_refused_some_seeds_are_left_out() -> None:
    scores = made_scores({PRETRAINED: 0.6, SINGLE: 0.9, SUM: 0.7, "some": 0.8})
    table, _ = compared(scores[~((scores["method"] == "some") & (scores["seed"] == 2))])
    assert "some" not in set(table["method"])


@pytest.mark.slow
def test_false_alarms_are_as_rare_as_said() -> None:
    """Ten methods that are as good as the sum: one is called better or worse in at most 5 of 100 studies."""
    names = {PRETRAINED: 0.6, SINGLE: 0.9, SUM: 0.7} | {f"m{place}": 0.7 for place in range(10)}
    alarms = sum(bool((compared(made_scores(names, seed))[0]["p_against_sum"] <= 0.05).any()) for seed in range(40))
    assert alarms <= 5  # more than that would come once in 25 times of 5 in 100


def test_names_that_would_hide_each_other_stand_together() -> None:
    models = pd.DataFrame({"method": ["a_b", "c", "d", "e"], "x": [0.1, 0.0, 0.0, 1.0], "y": [0.02, 0.0, 0.3, 0.0]})
    assert together(models, 0.05) == [(0.0, 0.0, ["c", "a b"]), (0.0, 0.3, ["d"]), (1.0, 0.0, ["e"])]


def test_the_plane_holds_the_models_of_a_plane_and_measures_there() -> None:
    draw = torch.Generator().manual_seed(0)
    whole, across = (torch.randn(50, generator=draw, dtype=torch.float64) for _ in range(2))
    start = {"w": torch.zeros(50, dtype=torch.float64)}
    vectors = [{"w": whole * 0.6 + across}, {"w": whole * 0.4 - across}]
    moved = {"one": {"w": 0.3 * whole + 0.2 * across}}

    def score(weights: dict[str, torch.Tensor]) -> float:
        return -float(weights["w"].square().sum())

    table = pd.DataFrame(plane_rows(score, start, {"w": whole}, vectors, moved))
    models = table[table["method"].notna()].set_index("method")
    assert (models["outside"] < 1e-9).all()
    length = float(whole.norm())
    away = across - (across @ whole) / (whole @ whole) * whole
    assert models.loc["one", "x"] == pytest.approx(0.3 + 0.2 * float(across @ whole) / length**2)
    assert abs(models.loc["one", "y"]) == pytest.approx(0.2 * float(away.norm()) / length)
    assert models.loc["one", "own"] == pytest.approx(score(moved["one"]))
    assert models.loc[PRETRAINED, "own"] == 0
    grid = table[table["score"].notna()]
    np.testing.assert_allclose(grid["score"], -(length**2) * (grid["x"] ** 2 + grid["y"] ** 2), rtol=1e-9)


def test_memory_is_that_of_tensors_that_live_at_one_time() -> None:
    given = torch.zeros(1000, dtype=torch.float64)

    def work() -> torch.Tensor:
        first = given + 1  # 8,000 bytes
        second = first * 2  # 16,000
        del first
        view = second.view(10, 100)[3:]
        return view + 1  # and 5,600 beside the second's 8,000

    assert peak_bytes(work) == 16_000
    assert peak_bytes(lambda: given.view(10, 100)) == 0


@pytest.mark.slow
def test_small_study(tmp_path: Path) -> None:
    options = {"epochs": (1,), "seeds": 2, "images": 60, "test_images": 60, "alphas": 4, "ada_steps": 2}
    result = analyse("digits", cells=str(tmp_path / "cells"), **options)
    again = analyse("digits", cells=str(tmp_path / "cells"), **options)
    pd.testing.assert_frame_equal(result.table, again.table)
    assert len(result.table) > 28
    assert any("slerp refused 2 merges" in sentence for sentence in result.verdicts)
    assert result.outcome in {"holds", "undecided", "vacuous", "fails"}
    for draw in (result.draw, result.others["plane"]):
        replace(result, draw=draw).save(tmp_path / "figure.png")
        assert (tmp_path / "figure.png").stat().st_size > 5000


def test_refusals() -> None:
    for options, words in (
        ({"seeds": 1}, "seeds must be a whole number of at least 2"),
        ({"epochs": (0,)}, "epochs must be whole numbers"),
        ({"optimizer": "adam:search"}, "is to be searched"),
        ({"methods": "tiles", "images": 20, "test_images": 8}, "no method 'tiles' to compare"),
    ):
        with pytest.raises(TvgradError, match=words):
            analyse("digits", **options)  # type: ignore[arg-type]
