"""TunedTasks: all tasks of a recipe after one training, with what was forecast of it before."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tvgrad.errors import TvgradError
from tvgrad.problem.recipe import Recipe, positive_integer
from tvgrad.theory.forecast import Forecast, forecast
from tvgrad.update_rules.rules import make_rule
from tvgrad.vectors.algebra import difference
from tvgrad.vectors.parameters import Weights

from .task_training import Task, tasks_of, train_alone

TRAININGS = ("gd:0.03:5", "sgd:0.01:4", "adam:0.0003:2")
SIZES = (2, 3)  # and all tasks
MOST_MERGES = 15  # of each size


@dataclass(frozen=True)
class TunedTasks:
    """All tasks of a seed after one training, and what was told of it.

    Attributes:
        name: of the training.
        tasks: they.
        start: the pretrained weights.
        vectors: the task vectors.
        told: their forecasts.
    """

    name: str
    tasks: Sequence[Task]
    start: Weights
    vectors: Sequence[Weights]
    told: Sequence[Forecast]


def tune(recipes: Sequence[Recipe], training: str, seed: int, images: int, batch_size: int) -> TunedTasks:
    """Train every task alone, and forecast its task vector.

    Args:
        recipes: tasks that share one pretrained model.
        training: optimizer:rate:epochs.
        seed: of the training samples and the order of mini-batches.
        images: training samples of each task.
        batch_size: samples in a mini-batch, but for gd.

    Returns:
        They.

    Raises:
        TvgradError: the training is none, or a task has too few samples.
    """  # noqa: DOC502 - raised by what is called
    name, rate, epochs = read_training(training)
    tasks, size, rule = tasks_of(recipes, seed, images), None if name == "gd" else batch_size, make_rule(name, rate)
    start = tasks[0].objective.initial
    vectors = [
        difference(train_alone(task, rule, start, [epochs], size, seed).weights[epochs], start) for task in tasks
    ]
    return TunedTasks(training, tasks, start, vectors, [forecast(task.objective, rule, epochs, size) for task in tasks])


def read_training(text: str) -> tuple[str, float, int]:
    """Read a training.

    Args:
        text: optimizer:rate:epochs.

    Returns:
        The three.

    Raises:
        TvgradError: it is none.
    """
    try:
        name, rate, epochs = text.split(":")
        made = name, float(rate), positive_integer(int(epochs), "epochs")
    except ValueError:
        raise TvgradError(f"{text!r} is no training: give optimizer:rate:epochs, as in gd:0.03:5") from None
    make_rule(*made[:2])
    return made


def merges_of(tasks: int) -> Iterator[tuple[int, ...]]:
    """Choose what is merged: pairs, triples and all tasks, at most 15 of a size.

    Args:
        tasks: how many there are.

    Yields:
        Their numbers.
    """
    for size in sorted({*(size for size in SIZES if size < tasks), tasks}):
        yield from itertools.islice(itertools.combinations(range(tasks), size), MOST_MERGES)
