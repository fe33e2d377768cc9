"""The intervals of the merging study against closed forms, and how often they cover a truth that is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from tvgrad.analyses.intervals import (
    crossed_mean,
    crossed_ratio,
    fisher_interval,
    holm,
    rank_correlation,
    seed_mean,
)

from tests.analyses.interval_coverage import (
    PAIRS,
    POOLS,
    SEEDS,
    VARIANCES,
    of_accuracy,
    of_correlation,
    of_difference,
    of_ratio,
    of_share,
)


def least_coverage(count: int, rate: float = 0.95) -> float:
    """What a true coverage of `rate` stays above in all but one of a million tests."""
    return float(stats.binom.ppf(1e-6, count, rate)) / count


@pytest.mark.parametrize("kind", VARIANCES)
@pytest.mark.parametrize("pair", [(0.7, 0.6), (0.98, 0.96)])
def test_intervals_of_differences_cover_the_truth(kind, pair):
    for seeds in (3, 10):
        found = of_difference(seeds, (100, 100), pair, kind, 400)
        assert found >= least_coverage(400, 0.945), seeds


@pytest.mark.parametrize("kind", VARIANCES)
def test_two_seeds_cover_the_truth_where_they_matter_too(kind):
    """Where two seeds were said to show no effect of their own, 89 to 92 in a hundred intervals held the truth."""
    assert of_difference(2, (100,) * 6, (0.7, 0.6), kind, 2000) >= least_coverage(2000, 0.94)
    assert of_accuracy(2, (300,), 0.5, kind, 2000) >= least_coverage(2000, 0.94)


def test_a_small_task_among_large_ones_counts_for_its_few_samples():
    """Its samples weigh twenty times as much as those of the others."""
    pool = (500, 500, 25)
    assert of_accuracy(2, pool, 0.95, "one model for all seeds", 400) >= least_coverage(400, 0.94)
    assert of_difference(2, pool, (0.9, 0.8), "one model for all seeds", 400) >= least_coverage(400, 0.94)


def test_the_other_intervals_cover_the_truth():
    assert of_accuracy(5, (100, 100), 0.9, "both matter", 400) >= least_coverage(400)
    assert of_ratio(5, (100, 100), (0.7, 0.6), "both matter", 400) >= least_coverage(400)
    assert of_share(3, 0.3, 0.02, 400) >= least_coverage(400)
    assert of_correlation(10, 3, 0.5, 400) >= least_coverage(400)


def test_the_check_of_coverage_sees_intervals_over_seeds_alone():
    """Student's interval over three seeds whose models answer alike is far too short."""
    draw = np.random.default_rng(0)
    hits = []
    for _ in range(400):
        right = draw.random((1, 200)) < 0.8
        noisy = np.where(draw.random((3, 200)) < 0.02, 0, right).mean(axis=1)
        one = seed_mean(noisy)
        hits.append(one.low <= 0.8 * 0.98 <= one.high)
    assert np.mean(hits) < least_coverage(400)


@pytest.mark.slow
@pytest.mark.parametrize("kind", VARIANCES)
@pytest.mark.parametrize("name", POOLS)
def test_the_whole_table_of_coverage(kind, name):
    """At least 93 %; over 97 % only where few samples differ or seeds have no effect of their own."""
    pool = POOLS[name]
    for pair, seeds in itertools.product(PAIRS, SEEDS):
        found = of_difference(seeds, pool, pair, kind, 2000)
        assert found >= 0.93, (pair, seeds)
        degenerate = min(pair) > 0.9 or pool == (100,) or "only" in kind or "little" in kind
        assert degenerate or found <= 0.975, (pair, seeds)
    for accuracy, seeds in itertools.product((0.5, 0.9, 0.98), SEEDS):
        assert of_accuracy(seeds, pool, accuracy, kind, 2000) >= 0.93, (accuracy, seeds)


def test_equal_seeds_leave_the_interval_of_independent_samples():
    """Without differences between seeds it is a t-interval with two samples more, moved by the skewness."""
    draw = np.random.default_rng(1)
    differences = draw.choice([-1, 0, 1], size=500, p=[0.1, 0.7, 0.2])
    found = crossed_mean([np.tile(differences, (4, 1))])
    count, mean = len(differences), differences.mean()
    centered = differences - mean
    variance = centered @ centered + 2 * (centered**4).sum() / (centered @ centered)
    skew = (centered**3).sum() / variance / count
    half = stats.t.ppf(0.975, count - 1) * math.sqrt(variance / count / (count - 1))
    center = mean + (1 + 2 * 1.959964**2) / 6 * skew
    interval = found.interval()
    assert (interval.low, interval.high) == pytest.approx((center - half, center + half))
    plain = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((plain.low, plain.high), abs=0.003)


def test_endless_samples_leave_students_interval_over_seeds():
    means = np.array([0.2, 0.5, 0.6])
    values = np.stack([np.arange(100_000) < 100_000 * mean for mean in means]).astype(float)
    draw = np.random.default_rng(2)
    for row in values:
        draw.shuffle(row)
    interval = crossed_mean([values]).interval()
    student = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((student.low, student.high), abs=0.005)
    assert student.high > 0.95


def test_no_interval_is_certain_or_leaves_its_bounds():
    nothing = crossed_mean([np.zeros((3, 100)), np.zeros((3, 50))]).interval(-1, 1)
    assert nothing.low < -0.01
    assert nothing.high > 0.01
    assert crossed_mean([np.ones((3, 100))]).interval(0, 1).high == pytest.approx(1.0)
    assert 0.95 < crossed_mean([np.ones((3, 100))]).interval(0, 1).low < 0.98
    few = np.zeros((5, 40))
    few[:, 0] = 1
    assert crossed_mean([few]).interval(0, 1).low == pytest.approx(0.0)
    assert seed_mean([0.0, 0.3], 0, 1) == seed_mean([0.0, 0.3], 0.0, 1.0)
    assert (seed_mean([0.0, 0.3], 0, 1).low, seed_mean([0.8, 1.0], 0, 1).high) == (0, 1)
    assert (seed_mean([0.4], 0, 1).low, seed_mean([0.4], 0, 1).high) == (0, 1)
    for correlation in (-1.0, 0.0, 0.5, 1.0):
        interval = fisher_interval(correlation, 6)
        assert -1 <= interval.low <= correlation <= interval.high <= 1
        assert interval.high - interval.low > 0.3
    assert (fisher_interval(0.5, 3).low, fisher_interval(0.5, 3).high) == (-1, 1)


def test_p_values_belong_to_the_interval():
    draw = np.random.default_rng(3)
    found = crossed_mean([draw.integers(-1, 2, size=(3, 80)) for _ in range(2)])
    interval = found.interval()
    for end in (interval.low, interval.high):
        assert found.p_value(end) == pytest.approx(0.05, rel=1e-6)
    assert found.p_value(interval.high + 0.05) < 0.05 < found.p_value(interval.high - 0.01)
    assert found.p_value(1e6) < 1e-6
    assert found.p_value(float(found.center)) == pytest.approx(1.0)


def test_a_batch_of_estimates_is_each_of_them():
    values = np.random.default_rng(4).integers(0, 2, size=(6, 3, 50))
    together = crossed_mean([values, values[..., :30]])
    for place in range(6):
        one = crossed_mean([values[place], values[place][:, :30]])
        assert together.center[place] == pytest.approx(float(one.center))
        assert together.half_width()[place] == pytest.approx(float(one.half_width()))


def test_shared_samples_of_two_tasks_are_one_sample():
    """A task that is given twice says no more than once."""
    values = np.random.default_rng(5).integers(-1, 2, size=(3, 200)).astype(float)
    once, twice = crossed_mean([values]), crossed_mean([values, values])
    assert float(twice.of_samples) == pytest.approx(float(once.of_samples), rel=1e-2)
    other = crossed_mean([values, np.roll(values, 7, axis=1)])
    assert float(other.of_samples) < 0.7 * float(once.of_samples)


def test_the_ratio_is_that_of_the_means_with_the_delta_methods_variance():
    draw = np.random.default_rng(6)
    below = (draw.random(4000) < 0.8).astype(float)
    above = below * (draw.random(4000) < 0.9)
    values, units = crossed_ratio([np.tile(above, (2, 1))], [np.tile(below, (2, 1))])
    found = crossed_mean(values, units)
    ratio = above.mean() / below.mean()
    assert float(found.mean) == pytest.approx(ratio)
    assert float(units[0]) == pytest.approx(1 / below.mean())
    # above given below is binomial: its share of the trials that succeeded below
    assert float(found.of_samples) == pytest.approx(ratio * (1 - ratio) / below.sum(), rel=0.01)


def test_rank_correlation_is_spearmans_and_its_test_is_exact():
    first = np.array([[1.0, 2, 3, 4, 5], [5.0, 4, 3, 2, 1]])
    second = np.array([[2.0, 1, 4, 3, 9], [9.0, 8, 8, 2, 1]])
    found = rank_correlation(first, second)
    each = [stats.spearmanr(one, other).statistic for one, other in zip(first, second, strict=True)]
    assert found is not None
    assert found.interval.mean == pytest.approx(np.mean(each))
    one = rank_correlation(first[:1], second[:1])
    assert one is not None
    null = [stats.spearmanr(first[0], np.array(order)).statistic for order in itertools.permutations(second[0])]
    assert one.p_value == pytest.approx(np.mean(np.abs(null) >= each[0] - 1e-9))
    many = rank_correlation(np.arange(12.0)[None], np.arange(12.0)[None])
    assert many is not None
    assert many.p_value == pytest.approx(1e-4)  # of the orders that are tried, the first is the data's own
    assert rank_correlation(first, np.zeros((2, 5))) is None


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_means_over_seeds_have_students_interval():
    found = seed_mean([1.0, 2.0, 4.0])
    half = 4.302652729911275 * np.std([1, 2, 4], ddof=1) / math.sqrt(3)
    assert (found.mean, found.low, found.high) == pytest.approx((7 / 3, 7 / 3 - half, 7 / 3 + half))
