"""Mergeability: correlations of merges that share tasks against known truths, told harm against closed forms."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from tvgrad.analyses.mergeability import analyse, correlation, explained_by_tasks, told_harm, two_effects
from tvgrad.analyses.tuned_tasks import merges_of, read_training

import tvgrad
from tests.theory.test_merge_plan import TASKS, Regressions
from tvgrad import TvgradError
from tvgrad.update_rules import GD


def drawn(draw: np.random.Generator, tasks: int, seeds: int, shared: float) -> tuple[pd.DataFrame, float]:
    """Pairs of tasks with a known correlation, of which a share is of the tasks and the rest of each merge."""
    rows = []
    own, other, blurred = (draw.normal(size=tasks) for _ in range(3))
    for a in range(tasks):
        for b in range(a + 1, tasks):
            for task, partner in ((a, b), (b, a)):
                both = own[task] + other[partner]
                for _ in range(seeds):
                    left = math.sqrt(shared / 2) * both + math.sqrt(1 - shared) * draw.normal()
                    right = left + 0.5 * (math.sqrt(shared) * blurred[task] + math.sqrt(1 - shared) * draw.normal())
                    rows.append({"tasks": f"{a}+{b}", "task": str(task), "told": left, "true": right})
    return pd.DataFrame(rows), 1 / math.sqrt(1 + 0.25)


def coverage(tasks: int, seeds: int, shared: float, draws: int) -> float:
    draw, held = np.random.default_rng(0), 0
    for _ in range(draws):
        table, true = drawn(draw, tasks, seeds, shared)
        found = correlation(table, "told", "true")
        held += found.low <= true <= found.high
    return held / draws


def test_the_estimate_is_pearsons_and_its_interval_holds_the_truth() -> None:
    table, _ = drawn(np.random.default_rng(1), 6, 2, 0.3)
    found = correlation(table, "told", "true")
    assert found.mean == pytest.approx(stats.pearsonr(table["told"], table["true"]).statistic, rel=1e-12)
    assert -1 <= found.low < found.mean < found.high <= 1
    assert coverage(6, 1, 0.0, 60) > 0.85


@pytest.mark.slow
@pytest.mark.parametrize("shared", [0.0, 0.3, 0.7])
def test_coverage(shared: float) -> None:
    """The page says how often intervals hold the truth; this is within three standard errors of 95 in 100 or above."""
    assert coverage(6, 3, shared, 400) > 0.95 - 3 * math.sqrt(0.95 * 0.05 / 400)


def test_what_is_not_defined_says_nothing() -> None:
    table, _ = drawn(np.random.default_rng(1), 4, 1, 0.3)
    flat = correlation(table.assign(told=1.0), "told", "true")
    assert math.isnan(flat.mean)
    exact = correlation(table.assign(true=2 * table["told"]), "told", "true")
    assert exact.mean == pytest.approx(1)
    assert exact.low > 0.999


def test_two_effects_explain_what_is_a_sum_of_two_effects() -> None:
    effects = dict(zip("abcdef", (0.3, 1.0, -0.4, 2.0, 0.1, 0.7), strict=True))
    rows = [
        {"tasks": f"{a}+{b}", "task": task, "value": effects[a] + effects[b], "odd": (-1.0) ** (number % 3)}
        for number, (a, b) in enumerate((a, b) for a in effects for b in effects if a < b)
        for task in (a, b)
    ]
    table = pd.DataFrame(rows)
    assert explained_by_tasks(table, "value") == pytest.approx(1)
    assert explained_by_tasks(table, "odd") < 0.9


def test_two_effects_are_said_beside_what_there_is_to_explain() -> None:
    """Tasks of other accuracies make a sum of two effects of any pairs; normalised ones do not."""
    draw, own = np.random.default_rng(0), dict(zip("abcdef", (0.6, 0.7, 0.8, 0.9, 0.95, 1.0), strict=True))
    rows = [
        {"tasks": f"{a}+{b}", "task": task, "accuracy": own[task] * lost, "normalised": lost}
        for a, b in itertools.combinations(own, 2)
        for task, lost in ((a, 0.98 + 0.02 * draw.integers(2)), (b, 1.0))
    ]
    said = two_effects(pd.DataFrame(rows))
    found = re.search(
        r"explain (\S+) .* and (\S+) of normalised ones; .* at most (\S+) points, .* lie (\S+) apart", said
    )
    assert found is not None
    accuracy, normalised, moved, apart = map(float, found.groups())
    assert accuracy > 0.98 > 0.8 > normalised
    assert 1.0 < moved <= 2.0
    assert 39 < apart < 41


def test_told_harm_is_exact_for_quadratic_losses() -> None:
    regressions = Regressions()
    pairs = tvgrad.plan(regressions.objectives, GD(0.2), 2, pairs=True)
    vectors = [regressions.descent(task, 0.2, 2) for task in range(TASKS)]
    for s in range(TASKS):
        for u in range(TASKS):
            if s != u:
                true = regressions.loss(s, vectors[s] + vectors[u]) - regressions.loss(s, vectors[s])
                assert told_harm(pairs, s, u) == pytest.approx(true, rel=1e-9, abs=1e-12)


def test_merges_and_trainings() -> None:
    assert [len(one) for one in merges_of(6)] == [2] * 15 + [3] * 15 + [6]
    assert list(merges_of(2)) == [(0, 1)]
    assert read_training("adam:0.001:3") == ("adam", 0.001, 3)
    for wrong in ("gd", "gd:x:3", "gd:0.1:0", "tiles:0.1:3"):
        with pytest.raises(TvgradError):
            read_training(wrong)
    with pytest.raises(TvgradError, match="takes four or more"):
        analyse("conceptual-aligned")


@pytest.mark.slow
def test_small(tmp_path: Path) -> None:
    result = analyse("digits", trainings=("gd:0.01:2",), seeds=1, images=60)
    assert result.outcome == "holds", result.evidence
    assert len(result.table) == 15 * 2 + 15 * 3 + 6
    result.save(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000
