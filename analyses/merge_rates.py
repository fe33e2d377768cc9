"""The optimizers of the merging study and their learning rates: given, the study's own, or chosen on validation."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvgrad.errors import TvgradError
from tvgrad.update_rules.base import UpdateRule
from tvgrad.update_rules.rules import make_rule

from .task_training import Task, train_alone

RATES = {"gd": 0.01, "sgd": 0.003, "momentum": 0.001, "nesterov": 0.001, "adam": 3e-4, "adamw": 3e-4}
"""Learning rates at which all tasks of the suite train without leaving the pretrained model's basin."""

SEARCH = "search"
SEARCH_EPOCHS = 16
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)  # what is tried, times the study's own rate


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


def grid(name: str) -> tuple[float, ...]:
    """Tell which rates a search tries.

    Args:
        name: an optimizer's.

    Returns:
        Five rates over two decades, the study's own in the middle.
    """
    return tuple(float(f"{factor * RATES[name]:.3g}") for factor in FACTORS)


def best_rate(name: str, tasks: Sequence[Task], epochs: int, batch_size: int | None, seed: int) -> float:
    """Choose the rate whose single-task models are the best on validation samples after the last epoch, or the 16th.

    Nothing is merged here and no test sample is looked at: the choice favours neither early nor late merging.

    Args:
        name: the optimizer's.
        tasks: cut by a seed that the study does not report.
        epochs: the last epoch; no more than 16 are trained.
        batch_size: samples in a mini-batch; None is the full batch.
        seed: of the order of the samples.

    Returns:
        The best of the grid, the smallest among equals.
    """
    last = min(epochs, SEARCH_EPOCHS)
    scores = {rate: _validation(make_rule(name, rate), tasks, last, batch_size, seed) for rate in grid(name)}
    return max(scores, key=lambda rate: (scores[rate], -rate))


def _validation(rule: UpdateRule, tasks: Sequence[Task], epochs: int, batch_size: int | None, seed: int) -> float:
    total = 0.0
    for task in tasks:
        weights = train_alone(task, rule, task.objective.initial, [epochs], batch_size, seed).weights[epochs]
        score = task.scorer.score(weights, task.validation)
        total += score if math.isfinite(score) else 0.0
    return total / len(tasks)
