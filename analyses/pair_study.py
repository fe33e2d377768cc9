"""Pairs of real tasks: what is told of them at theta_0, and what their trained task vectors are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from tvgrad.problem.recipe import Recipe
from tvgrad.theory.pair_basis import PairBasis
from tvgrad.theory.task_pairs import measure_pair, predicted_interval
from tvgrad.update_rules.rules import GD, make_rule
from tvgrad.vectors.algebra import difference

from .resumable_cache import Rows
from .task_training import Task, tasks_of, train_alone

EPOCHS = (1, 10)
BATCH = 30
ADAM_RATE = 1e-3
RULES = ("gd", "sgd", "adam")
"""How tasks are trained: full-batch descent, and mini-batches of 30 by plain SGD and by Adam."""


def pair_rows(recipes: Sequence[Recipe], rate: float, seed: int, samples: int) -> tuple[Rows]:
    """Predict and measure all pairs of one recipe.

    Args:
        recipes: tasks that share one pretrained model.
        rate: the learning rate of gd and sgd, and of the descent that is predicted for all three rules.
        seed: which training samples, and their order.
        samples: at most so many a task.

    Returns:
        One row for each rule, number of epochs and pair: what is predicted (`own` from one product a task, `cross`
        with the others), and what is measured.
    """
    tasks = tasks_of(recipes, seed, samples, most_test=8)
    names = [task.name for task in tasks]
    cross = PairBasis.of([task.objective for task in tasks], names, cross=True)
    bases = {"own": cross.without_cross(), "cross": cross}
    rows: Rows = []
    for rule in RULES:
        counts = [1 if rule == "gd" else -(-len(task.train) // BATCH) for task in tasks]
        for row in _trained_rows(tasks, rule, rate, seed):
            pair = names.index(row["task_a"]), names.index(row["task_b"])
            steps = row["epochs"] * counts[pair[0]], row["epochs"] * counts[pair[1]]
            rows.append({"rule": rule, **row, "cos_gradients": cross.cosine_of_gradients(*pair)})
            for name, basis in bases.items():
                ends = [basis.task_vector(GD(rate), count, task) for count, task in zip(steps, pair, strict=True)]
                found = basis.forecast(ends[0], ends[1], *pair)
                low, high = predicted_interval(found)
                rows[-1] |= {
                    f"{name}_cosine": found.cosine, f"{name}_change_of_a": found.changes[0],
                    f"{name}_change_of_b": found.changes[1], f"{name}_lambda_low": low, f"{name}_lambda_high": high,
                }  # fmt: skip
    return (rows,)


def _trained_rows(tasks: Sequence[Task], rule: str, rate: float, seed: int) -> Rows:
    start = tasks[0].objective.initial
    made = make_rule(rule, ADAM_RATE if rule == "adam" else rate)
    batch = None if rule == "gd" else BATCH
    courses = {task.name: train_alone(task, made, start, EPOCHS, batch, seed).weights for task in tasks}
    rows: Rows = []
    for epochs in EPOCHS:
        vectors = {name: difference(weights[epochs], start) for name, weights in courses.items()}
        for one, two in combinations(tasks, 2):
            interval = rule == "gd" and epochs == max(EPOCHS) and seed == 0  # the dear part, once
            found = measure_pair(
                (one.name, two.name),
                (one.objective, two.objective),
                (vectors[one.name], vectors[two.name]),
                interval=interval,
            )
            rows.append({"epochs": epochs, **found.row()})
    return rows
