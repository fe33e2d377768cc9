"""The optimizers of the merging study and their learning rates: given, the study's own, or searched."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tvgrad.errors import TvgradError
from tvgrad.update_rules.rules import make_rule

from .task_training import Task, train_alone, train_jointly

RATES = {"gd": 0.01, "sgd": 0.003, "momentum": 0.001, "nesterov": 0.001, "adam": 3e-4, "adamw": 3e-4}
"""Learning rates at which all tasks of the suite train without leaving the pretrained model's basin."""

SEARCH = "search"
SEARCH_EPOCHS = 16
NARROW, WIDE = 2, 6  # steps of the grid on each side of its center, two a decade: at first, and at most


def read_optimizer(text: str) -> tuple[str, float | None]:
    """Read an optimizer's name and rate.

    Args:
        text: a name (the study's own rate), `name:rate`, or `name:search`.

    Returns:
        The name, and the rate; None is to be searched.

    Raises:
        TvgradError: it is no optimizer, or the rate no positive number.
    """
    name, sign, given = text.partition(":")
    if given == SEARCH:
        make_rule(name, 1.0)
        return name, None
    try:
        rate = float(given) if sign else RATES.get(name, 1.0)
    except ValueError:
        raise TvgradError(
            f"{text!r} is no optimizer: give a name, or a name and a rate as in adam:1e-3 or adam:{SEARCH}"
        ) from None
    make_rule(name, rate)
    return name, rate


@dataclass(frozen=True)
class FoundRate:
    """A learning rate that was searched.

    Attributes:
        rate: the best that was tried.
        at_edge: it is the smallest or the largest of all that were tried, so that a better one may lie beyond.
    """

    rate: float
    at_edge: bool


def grid_rate(center: float, place: int) -> float:
    """Tell a rate of the grid.

    Args:
        center: the rate in the middle.
        place: how many steps from it, two of them a decade.

    Returns:
        The rate, with three digits.
    """
    decades, half = divmod(place, 2)
    return float(f"{center * 10.0**decades * (3 if half else 1):.3g}")


def best_rate(score: Callable[[float], float], center: float) -> FoundRate:
    """Find the best rate of a grid of two decades, which is widened while the best is at its edge.

    Args:
        score: rate -> how good, higher is better; what is not finite counts as worst.
        center: the rate in the middle.

    Returns:
        The best rate, the smallest among equals; three decades from the center the search ends.
    """
    scores: dict[int, float] = {}

    def tried(places: Iterable[int]) -> int:
        for place in places:
            value = score(grid_rate(center, place))
            scores[place] = value if math.isfinite(value) else -math.inf
        return max(scores, key=lambda place: (scores[place], -place))

    best = tried(range(-NARROW, NARROW + 1))
    while best in {min(scores), max(scores)} and abs(best) < WIDE:
        best = tried([best + (1 if best > 0 else -1)])
    return FoundRate(grid_rate(center, best), best in {min(scores), max(scores)})


def rate_score(
    name: str, tasks: Sequence[Task], epochs: int, batch_size: int | None, seed: int, *, joint: bool
) -> Callable[[float], float]:
    """Measure how good a rate is, on the samples that are for rates.

    Nothing is merged here and no test sample is looked at: the choice favours neither early nor late merging.

    Args:
        name: the optimizer's.
        tasks: of a seed that the study does not report.
        epochs: the last epoch; no more than 16 are trained.
        batch_size: samples in a mini-batch; None is the full batch.
        seed: of the order of the samples.
        joint: tune on all tasks at once, and not each task alone.

    Returns:
        Rate -> accuracy after the last epoch, mean over tasks.
    """
    last = min(epochs, SEARCH_EPOCHS)

    def score(rate: float) -> float:
        rule, start = make_rule(name, rate), tasks[0].objective.initial
        if joint:
            tuned = [train_jointly(tasks, rule, start, [last], batch_size, seed)] * len(tasks)
        else:
            tuned = [train_alone(task, rule, start, [last], batch_size, seed) for task in tasks]
        scores = [
            task.scorer.score(course.weights[last], task.for_rates) for task, course in zip(tasks, tuned, strict=True)
        ]
        return sum(scores) / len(tasks)

    return score
