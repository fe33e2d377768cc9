"""How often the intervals of the merging study cover the truth: `python -m tests.analyses.interval_coverage`.

A sample is answered right where a sum of normal variables is above a threshold: one of the sample, one of the sample
under a condition, one of the seed, one of the seed under a condition, and one of the three together. The accuracy is
then known exactly, whatever the shares of the variance are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from tvgrad.analyses.intervals import CrossedMean, crossed_mean, crossed_ratio, fisher_interval, seed_mean

Array = NDArray[np.float64]
VARIANCES = {  # of sample, sample and condition, seed, seed and condition, all three
    "one model for all seeds": (0.85, 0.15, 0.0, 0.0, 0.0),
    "seeds differ on single samples only": (0.80, 0.0, 0.0, 0.0, 0.20),
    "both matter": (0.80, 0.08, 0.01, 0.01, 0.10),
    "seeds matter little": (0.85, 0.10, 0.001, 0.001, 0.048),
    "seeds dominate": (0.80, 0.08, 0.03, 0.03, 0.06),
}
PAIRS = ((0.5, 0.52), (0.7, 0.6), (0.9, 0.9), (0.98, 0.98), (0.98, 0.96))
POOLS = {  # test samples of each task
    "100": (100,),
    "6 x 100": (100,) * 6,
    "300": (300,),
    "1000": (1000,),
}
SEEDS = (3, 5, 10)
AT_ONCE = 3_000_000  # values that are drawn together

Draw = Callable[[np.random.Generator, int], tuple[CrossedMean, float]]


def answers(
    draw: np.random.Generator, count: int, seeds: int, pool: tuple[int, ...], accuracies: tuple[float, ...], kind: str
) -> list[list[NDArray[np.int8]]]:
    """Right answers: for each accuracy one array a task, shape (count, seeds, samples)."""
    scales = [np.float32(variance**0.5) for variance in VARIANCES[kind]]

    def normal(scale: np.float32, *shape: int) -> NDArray[np.float32]:
        return scale * draw.standard_normal(shape, dtype=np.float32) if scale else np.zeros(shape, np.float32)

    seed = normal(scales[2], count, seeds, 1)
    of_condition = [normal(scales[3], count, seeds, 1) for _ in accuracies]
    found: list[list[NDArray[np.int8]]] = [[] for _ in accuracies]
    for samples in pool:
        sample = normal(scales[0], count, 1, samples)
        for place, accuracy in enumerate(accuracies):
            total = sample + normal(scales[1], count, 1, samples) + seed + of_condition[place]
            total = total + normal(scales[4], count, seeds if scales[4] else 1, samples)
            found[place].append((total > -stats.norm.ppf(accuracy)).astype(np.int8))
    return found


def coverage(estimate: Draw, size: int, count: int, bounds: tuple[float, float] = (-np.inf, np.inf)) -> float:
    """Share of intervals that hold the truth, of `count` draws with `size` values each."""
    draw = np.random.default_rng(20251125)
    hits: list[bool] = []
    while len(hits) < count:
        made, truth = estimate(draw, max(1, min(count, AT_ONCE // size)))
        half = made.half_width()
        low, high = np.clip(made.center - half, *bounds), np.clip(made.center + half, *bounds)
        hits += list((low <= truth + 1e-12) & (truth - 1e-12 <= high))
    return float(np.mean(hits))


def of_difference(seeds: int, pool: tuple[int, ...], pair: tuple[float, float], kind: str, count: int) -> float:
    """Coverage for the difference of two accuracies."""

    def estimate(draw: np.random.Generator, many: int) -> tuple[CrossedMean, float]:
        first, second = answers(draw, many, seeds, pool, pair, kind)
        return crossed_mean([one - other for one, other in zip(first, second, strict=True)]), pair[0] - pair[1]

    return coverage(estimate, seeds * sum(pool), count, (-1, 1))


def of_accuracy(seeds: int, pool: tuple[int, ...], accuracy: float, kind: str, count: int) -> float:
    """Coverage for one accuracy."""

    def estimate(draw: np.random.Generator, many: int) -> tuple[CrossedMean, float]:
        (found,) = answers(draw, many, seeds, pool, (accuracy,), kind)
        return crossed_mean(found), accuracy

    return coverage(estimate, seeds * sum(pool), count, (0, 1))


def of_ratio(seeds: int, pool: tuple[int, ...], pair: tuple[float, float], kind: str, count: int) -> float:
    """Coverage for the ratio of two accuracies, mean over tasks."""

    def estimate(draw: np.random.Generator, many: int) -> tuple[CrossedMean, float]:
        first, second = answers(draw, many, seeds, pool, pair, kind)
        return crossed_mean(*crossed_ratio(first, second)), pair[0] / pair[1]

    return coverage(estimate, seeds * sum(pool), count, (0, np.inf))


def of_share(seeds: int, mean: float, spread: float, count: int) -> float:
    """Coverage for the mean over seeds of a share with a beta distribution of this standard deviation."""
    draw = np.random.default_rng(20251127)
    total = mean * (1 - mean) / spread**2 - 1
    found = [seed_mean(values, 0, 1) for values in draw.beta(mean * total, (1 - mean) * total, (count, seeds))]
    return float(np.mean([one.low <= mean <= one.high for one in found]))


def of_correlation(tasks: int, epochs: int, rho: float, count: int) -> float:
    """Coverage for Spearman's correlation over tasks, mean over epochs whose noise has a correlation of 0.7."""
    draw = np.random.default_rng(20251128)
    first = draw.standard_normal((count, 1, tasks))
    noise = 0.7**0.5 * draw.standard_normal((count, 1, tasks)) + 0.3**0.5 * draw.standard_normal((count, epochs, tasks))
    second = rho * first + (1 - rho**2) ** 0.5 * noise
    ranks = [stats.rankdata(values, axis=-1) - (tasks + 1) / 2 for values in (first + 0 * second, second)]
    found = (ranks[0] * ranks[1]).sum(axis=-1) * 12 / (tasks * (tasks**2 - 1))
    truth = 6 / np.pi * np.arcsin(rho / 2)  # of the normal distribution
    intervals = [fisher_interval(float(value), tasks) for value in found.mean(axis=-1)]
    return float(np.mean([one.low <= truth <= one.high for one in intervals]))


def _lines(count: int) -> Iterator[str]:
    def cell(values: list[float]) -> str:
        return " / ".join(f"{100 * value:.1f}" for value in values)

    yield "| difference | samples | " + " | ".join(f"{one:g}, {other:g}" for one, other in PAIRS) + " |"
    yield "| --- | --- |" + " --- |" * len(PAIRS)
    for kind in VARIANCES:
        for name, pool in POOLS.items():
            cells = [cell([of_difference(seeds, pool, pair, kind, count) for seeds in SEEDS]) for pair in PAIRS]
            yield f"| {kind} | {name} | " + " | ".join(cells) + " |"
    yield ""
    accuracies = (0.5, 0.9, 0.98)
    yield "| accuracy | samples | " + " | ".join(f"{accuracy:g}" for accuracy in accuracies) + " |"
    yield "| --- | --- |" + " --- |" * len(accuracies)
    for kind in VARIANCES:
        for name, pool in POOLS.items():
            cells = [cell([of_accuracy(seeds, pool, one, kind, count) for seeds in SEEDS]) for one in accuracies]
            yield f"| {kind} | {name} | " + " | ".join(cells) + " |"
    yield ""
    yield "| ratio, both matter | " + " | ".join(f"{one:g}, {other:g}" for one, other in PAIRS) + " |"
    yield "| --- |" + " --- |" * len(PAIRS)
    for name, pool in POOLS.items():
        cells = [cell([of_ratio(seeds, pool, pair, "both matter", count) for seeds in SEEDS]) for pair in PAIRS]
        yield f"| {name} | " + " | ".join(cells) + " |"
    yield ""
    yield "| share, mean and standard deviation over seeds | coverage |"
    yield "| --- | --- |"
    for mean, spread in ((0.3, 0.02), (0.15, 0.05), (0.05, 0.02), (0.9, 0.05)):
        yield f"| {mean:g}, {spread:g} | {cell([of_share(seeds, mean, spread, count) for seeds in SEEDS])} |"
    yield ""
    rhos = (0.0, 0.3, 0.6, 0.9)
    yield "| rank correlation | " + " | ".join(f"{rho:g}" for rho in rhos) + " |"
    yield "| --- |" + " --- |" * len(rhos)
    for tasks in (6, 10, 20):
        for epochs in (1, 6):
            cells = [cell([of_correlation(tasks, epochs, rho, count)]) for rho in rhos]
            yield f"| {tasks} tasks, {epochs} epoch{'' if epochs == 1 else 's'} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    for line in _lines(2000):
        print(line, flush=True)
