"""Confidence intervals of the merging study, which cover new seeds and new test samples at once.

Values are crossed: every seed's models are measured on the same test samples. The variance of their mean has a part
that more test samples reduce, and a part that only more seeds reduce. `docs/concepts/statistics.md` has the formulas,
and how often the intervals cover the truth in simulations where it is known.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

CONFIDENCE = 0.95
PSEUDO_SAMPLES = 2  # Agresti and Min, Biometrics 57 (2001): one pair of discordant samples, one in each direction
LEAST_PSEUDO = 0.5  # of a sample on which every seed differs: such a one may not be among few samples
MOST_ORDERS = 10_000  # permutations of tasks that a test tries at most
SEEN = 0.9  # seeds whose means vary by less than this times the noise of single samples show no effect of their own
LEAST_TO_SEE = 3  # seeds by which that can be told at all: the means of two are near each other by chance too often

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate, its 95 % confidence interval, and what a test against a margin needs.

    Attributes:
        mean: the estimate.
        low: the lower end.
        high: the upper end.
    """

    mean: float
    low: float
    high: float

    def points(self) -> str:
        """In hundredths, for accuracies."""
        return f"{100 * self.mean:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}] points"

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class CrossedMean:
    """A mean over tasks, test samples and seeds with the variances of its parts; every field may be an array of these.

    Attributes:
        mean: the estimate.
        center: the estimate, moved by the skewness of the samples.
        of_samples: variance of the mean over new test samples, for these seeds.
        of_seeds: variance of the mean over new seeds, for these test samples.
        of_noise: the variance that both contain: of single samples that a seed gets right by chance.
        seeds: how many.
        samples: how many, of the task that has most.
    """

    mean: Array
    center: Array
    of_samples: Array
    of_seeds: Array
    of_noise: Array
    seeds: int
    samples: int

    def half_width(self, level: float = CONFIDENCE) -> Array:
        """Half the width of a confidence interval.

        Args:
            level: the confidence, between 0 and 1.

        Returns:
            The half width, by Cochran's weighted mean of the t quantiles of the two parts.
        """
        tail = (1 + level) / 2
        of_samples, of_seeds = stats.t.ppf(tail, self.samples - 1), stats.t.ppf(tail, self.seeds - 1)
        alone = of_samples * np.sqrt(self.of_samples)
        rest = np.maximum(self.of_samples - self.of_noise, 0.0)
        both = np.maximum(rest + self.of_seeds, np.finfo(np.float64).tiny)
        quantile = (of_samples * rest + of_seeds * self.of_seeds) / both
        crossed = np.maximum(alone, quantile * np.sqrt(both))
        if self.seeds < LEAST_TO_SEE:
            return np.asarray(crossed)
        return np.asarray(np.where(self.of_seeds > SEEN * self.of_noise, crossed, alone))

    def interval(self, least: float = -math.inf, most: float = math.inf) -> Interval:
        """The interval of a single mean, within its bounds.

        Args:
            least: the quantity cannot be lower.
            most: the quantity cannot be higher.

        Returns:
            The 95 % confidence interval.
        """
        half = self.half_width()
        low, high = (float(min(max(end, least), most)) for end in (self.center - half, self.center + half))
        return Interval(float(self.mean), low, high)

    def p_value(self, margin: float = 0.0) -> float:
        """Test the single mean against a margin, from two sides.

        Args:
            margin: the mean that is tested.

        Returns:
            One minus the confidence of the interval that ends at the margin.
        """
        distance = abs(float(self.center) - margin)

        def beyond(confidence: float) -> float:
            return float(self.half_width(confidence)) - distance

        most = 1 - 1e-12
        if beyond(most) <= 0:
            return 1 - most
        return 1 - float(optimize.brentq(beyond, 0.0, most, xtol=1e-13))


def crossed_mean(values: Sequence[NDArray[np.generic]], units: Sequence[float | Array] | None = None) -> CrossedMean:
    """Estimate the mean over tasks of the mean over samples and seeds.

    Samples at the same place of two tasks are taken for one sample: where tasks share their images, they are, and
    where not, nothing is lost.

    Args:
        values: one array a task, shape (..., seeds, samples), at least two of each: 0 or 1 for an accuracy, differences
            of these for a difference, paired by seed and sample.
        units: of each task, the least difference that a sample can show; 1 by default.

    Returns:
        The estimate; leading dimensions are separate estimates.
    """
    tasks, most = len(values), max(task.shape[-1] for task in values)
    lead = values[0].shape[:-1]
    means, parts = np.zeros(lead), np.zeros((*lead, most))
    for task in values:
        count = task.shape[-1]
        mean = task.mean(axis=-1)
        means += mean / tasks
        parts[..., :count] += (task - mean[..., None]) / (tasks * count)
    seeds = lead[-1]
    enough = most / (most - 1)
    mean = means.mean(axis=-1)
    sample_parts = parts.mean(axis=-2)
    squares, fourths = (sample_parts**2).sum(axis=-1), (sample_parts**4).sum(axis=-1)
    of_tasks = [unit / (tasks * task.shape[-1]) for unit, task in zip(units or [1.0] * tasks, values, strict=True)]
    unit = np.max(np.square(of_tasks), axis=0)
    varied = squares > 1e-12 * unit
    typical = np.where(varied, fourths / np.where(varied, squares, 1.0), unit)
    padded = squares + np.maximum(PSEUDO_SAMPLES * typical, LEAST_PSEUDO * unit)
    square = stats.norm.ppf((1 + CONFIDENCE) / 2) ** 2
    skew = (sample_parts**3).sum(axis=-1) / padded
    noise = ((parts - sample_parts[..., None, :]) ** 2).sum(axis=(-1, -2)) / (seeds * (seeds - 1))
    return CrossedMean(
        mean=mean,
        center=mean + (1 + 2 * square) / 6 * skew,  # Johnson, JASA 73 (1978); Hall, JRSS B 54 (1992)
        of_samples=padded * enough,
        of_seeds=means.var(axis=-1, ddof=1) / seeds,
        of_noise=noise * enough,
        seeds=seeds,
        samples=most,
    )


def crossed_ratio(above: Sequence[Array], below: Sequence[Array]) -> tuple[list[Array], list[Array]]:
    """Linearize the ratio of two means of each task, so that `crossed_mean` estimates the mean ratio over tasks.

    Args:
        above: one array a task, shape (..., seeds, samples).
        below: the same shapes, means above 0.

    Returns:
        The values, whose mean is the ratio (a difference of two such lists is a difference of ratios), and their units.
    """
    values, units = [], []
    for one, other in zip(above, below, strict=True):
        mean = other.mean(axis=(-1, -2), keepdims=True)
        ratio = one.mean(axis=(-1, -2), keepdims=True) / mean
        values.append(ratio + (one - ratio * other) / mean)
        units.append(1 / mean[..., 0, 0])
    return values, units


def seed_mean(values: Sequence[float] | Array, least: float = -math.inf, most: float = math.inf) -> Interval:
    """Estimate a mean over seeds alone, of something that has no test samples.

    Args:
        values: one a seed.
        least: the quantity cannot be lower.
        most: the quantity cannot be higher.

    Returns:
        The mean and Student's interval within the bounds; a single seed leaves the bounds.
    """
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if len(array) == 1:
        return Interval(mean, least, most)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array)))
    return Interval(mean, max(mean - half, least), min(mean + half, most))


@dataclass(frozen=True)
class RankCorrelation:
    """How two quantities of tasks go together.

    Attributes:
        interval: the mean over the conditions of Spearman's correlation over tasks, and its interval over new tasks.
        p_value: two-sided, of the permutation test.
    """

    interval: Interval
    p_value: float


def rank_correlation(first: Array, second: Array) -> RankCorrelation | None:
    """Correlate two quantities over tasks, in each condition by itself.

    Args:
        first: shape (conditions, tasks).
        second: the same shape.

    Returns:
        The correlation; None where no condition has two different values of both.
    """
    ranks = [stats.rankdata(table, axis=1) for table in (first, second)]
    ranks = [table - table.mean(axis=1, keepdims=True) for table in ranks]
    defined = np.all([table.any(axis=1) for table in ranks], axis=0)
    if not defined.any():
        return None
    one, other = (table[defined] / np.linalg.norm(table[defined], axis=1, keepdims=True) for table in ranks)
    tasks = one.shape[1]
    found = float((one * other).sum(axis=1).mean())
    if math.factorial(tasks) <= MOST_ORDERS:
        orders = np.array(list(itertools.permutations(range(tasks))))
    else:
        draw = np.random.default_rng(0)
        orders = np.array([range(tasks), *(draw.permutation(tasks) for _ in range(MOST_ORDERS - 1))])
    shuffled = np.einsum("ct,cot->o", one, other[:, orders]) / len(one)
    p_value = float(np.mean(np.abs(shuffled) >= abs(found) - 1e-12))
    return RankCorrelation(fisher_interval(found, tasks), p_value)


def fisher_interval(correlation: float, count: int) -> Interval:
    """The interval of Spearman's correlation on Fisher's scale.

    Args:
        correlation: in [-1, 1].
        count: pairs; with three or fewer nothing is known.

    Returns:
        The interval, with the variance of Bonett and Wright, Psychometrika 65 (2000).
    """
    if count <= 3:
        return Interval(correlation, -1.0, 1.0)
    # Perfect order is taken for half a swap of neighbours: Fisher's scale has no end.
    most = 1 - 6 / (count * (count**2 - 1))
    inner = min(max(correlation, -most), most)
    half = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * math.sqrt((1 + inner**2 / 2) / (count - 3))
    low, high = math.tanh(math.atanh(inner) - half), math.tanh(math.atanh(inner) + half)
    return Interval(correlation, -1.0 if correlation <= -most else low, 1.0 if correlation >= most else high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for how many they are (Holm, Scandinavian Journal of Statistics 6, 1979).

    Args:
        p_values: of all tests of a family.

    Returns:
        The corrected ones, in the same order: each may be compared with the level of the whole family.
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = highest
    return corrected
