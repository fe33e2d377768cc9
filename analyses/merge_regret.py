"""Regret: what a told coefficient loses in test accuracy against one that validation samples choose after training.

Every way to tell a coefficient takes the forecast task vectors, before any training; the search takes the trained
ones. Both are then used on the trained ones, and held against each other on test samples that chose nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tvgrad.merging.evaluation import search_alpha, shifted
from tvgrad.problem.objective import Objective
from tvgrad.problem.samples import Samples
from tvgrad.theory.held_out import held_out_curve
from tvgrad.theory.merge_plan import coefficient_along
from tvgrad.vectors.parameters import Weights

from .analysis_result import outcome_of
from .intervals import crossed_mean
from .resumable_cache import Rows
from .task_training import Task

FURTHEST, TRIED = 15.0, 60
GOAL = 0.5
"""Points of test accuracy."""

TRAINING, LOSS, SCORE = "training_loss", "validation_loss", "validation_score"
PRETRAINED, OTHER = "pretrained", "other_pool"
WAYS = {
    TRAINING: "told for the training loss",
    LOSS: "told for the loss on validation samples",
    SCORE: "told for the accuracy on validation samples (`--on validation`)",
    PRETRAINED: "0, which is not to merge",
    OTHER: "searched on as many other validation samples",
}
"""Ways to choose a coefficient; the last two are there to compare with."""

Lost = dict[str, list[list[NDArray[np.float64]]]]
"""Way -> task -> of each merge the right answers of the search minus those of the way, one number a test sample."""


def no_losses(tasks: int) -> Lost:
    """Begin a collection.

    Args:
        tasks: how many.

    Returns:
        It, empty.
    """
    return {way: [[] for _ in range(tasks)] for way in WAYS}


def rows_of(lost: Lost) -> Rows:
    """Average a collection over merges.

    Args:
        lost: of one seed.

    Returns:
        One row for each way and task, with what is lost of every test sample.
    """
    return [
        {"way": way, "task": place, "lost": np.mean(merges, axis=0).tolist()}
        for way, tasks in lost.items()
        for place, merges in enumerate(tasks)
    ]


def measure_regrets(
    tasks: Sequence[Task],
    validation: Sequence[Objective],
    trained: Weights,
    forecast: Weights,
    told: float,
) -> tuple[dict[str, float], dict[str, list[NDArray[np.float64]]]]:
    """Choose the coefficient of one merge in every way, and count right answers on test samples.

    Args:
        tasks: that are merged.
        validation: their losses on the validation samples.
        trained: the sum of the trained task vectors.
        forecast: the sum of the forecast ones.
        told: the coefficient that was told for the training loss.

    Returns:
        The coefficients, that of the search as `searched`; and way -> task -> right answers lost, one a test sample.
    """
    start = tasks[0].objective.initial

    def mean_score(pool: Callable[[Task], Samples], a: float) -> float:
        weights = shifted(start, trained, a)
        return sum(task.scorer.score(weights, pool(task)) for task in tasks) / len(tasks)

    grid = [FURTHEST * step / TRIED for step in range(TRIED + 1)]
    searched, _ = search_alpha(partial(mean_score, lambda task: task.for_alpha), grid)
    other, _ = search_alpha(partial(mean_score, lambda task: task.for_rates), grid)
    scores = [partial(task.scorer.score, samples=task.for_alpha) for task in tasks]
    chosen = {
        TRAINING: told,
        LOSS: coefficient_along(validation, forecast)[0],
        SCORE: held_out_curve(scores, start, forecast, told).coefficient,
        PRETRAINED: 0.0,
        OTHER: other,
    }

    def right(a: float) -> list[NDArray[np.float64]]:
        weights = shifted(start, trained, a)
        return [np.array(task.scorer.sample_scores(weights)) for task in tasks]

    best = right(searched)
    lost = {way: [one - two for one, two in zip(best, right(a), strict=True)] for way, a in chosen.items()}
    return {**chosen, "searched": searched}, lost


def regret_sentences(seeds: Sequence[Rows], ways: Mapping[str, str] = WAYS) -> Iterator[str]:
    """Say what every way loses, with its interval over seeds and test samples.

    Args:
        seeds: of each, the rows of `rows_of`.
        ways: which, and what they are called.

    Yields:
        A sentence a way; of those that are told, whether they lose at most half a point.
    """
    for way, words in ways.items():
        means = [[np.array(row["lost"]) for row in seed if row["way"] == way] for seed in seeds]
        mean = 100 * float(np.mean([np.mean(task) for seed in means for task in seed]))
        said = f"test accuracy lost against a search on validation samples, {words}: {mean:+.2f} points"
        if len(seeds) < 2:
            yield f"{said}, of one seed without an interval"
            continue
        found = crossed_mean([np.stack([seed[task] for seed in means]) for task in range(len(means[0]))])
        ends = found.interval(-1.0, 1.0)
        low, high = 100 * ends.low, 100 * ends.high
        verdict = f"; at most {GOAL}: {outcome_of(high <= GOAL, low > GOAL)}" if way in {TRAINING, LOSS, SCORE} else ""
        yield f"{said} [{low:+.2f}, {high:+.2f}]{verdict}"
