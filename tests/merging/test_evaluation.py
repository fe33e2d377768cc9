"""How good merged weights are: intervals, gains, and where fine-tuning hurt."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from tvgrad.cli.merge import _table

import tvgrad
from tvgrad.merging.evaluation import Scorer, accuracy_interval


@pytest.mark.parametrize(("right", "samples"), [(0, 10), (7, 10), (10, 10), (431, 450)])
def test_the_interval_is_the_exact_one_of_the_binomial(right: int, samples: int) -> None:
    low, high = accuracy_interval(right / samples, samples)
    assert low <= right / samples <= high
    if right:
        assert stats.binom.sf(right - 1, samples, low) == pytest.approx(0.025)
    if right < samples:
        assert stats.binom.cdf(right, samples, high) == pytest.approx(0.025)


@pytest.mark.parametrize("score", [0.333, -0.5, 1.5, math.nan])
def test_what_is_no_share_of_the_samples_has_no_interval(score: float) -> None:
    assert all(math.isnan(end) for end in accuracy_interval(score, 10))


def test_gain_and_interval_stand_beside_the_normalised_score() -> None:
    table = _table([["a", 100, 0.5, 0.8, 0.7], ["b", 50, 0.6, 0.5, 0.5]]).set_index("run")
    assert table["gain"].tolist() == [0.2, -0.1, 0.05]
    assert table["normalised"].tolist() == [0.875, 1.0, 0.9375]
    low, high = accuracy_interval(0.7, 100)
    assert table.loc["a", ["merged_low", "merged_high"]].tolist() == [round(low, 4), round(high, 4)]
    assert math.isnan(table.loc["mean", "merged_low"])


def test_tensors_that_do_not_fit_the_model_are_named_ten_at_the_most() -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(40)))
    data = torch.randn(4, 3), torch.arange(4) % 3
    loss, metric = torch.nn.CrossEntropyLoss(), lambda output, target: 1.0
    recipe = tvgrad.Recipe(model, loss, data, test=data, name="mine", metric=metric)
    with pytest.raises(tvgrad.TvgradError) as refused:
        Scorer(recipe, {name: torch.zeros(2, 5) for name, _ in model.named_parameters()})
    words = str(refused.value)
    assert words.startswith("the recipe's model of task 'mine' does not take the run's tensors (")
    assert "of another shape 0.weight, 0.bias, " in words
    assert "and 70 more): give the recipe that made the run" in words
    assert "\n" not in words
