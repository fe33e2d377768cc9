"""Is one epoch enough? Merging after k = 1, 2, 4 .. epochs, by several methods, against single-task and joint training.

For every optimizer and seed each task is tuned alone and all are tuned jointly; after k epochs the task vectors are
merged and every task's test accuracy is measured with its own head. Alpha is searched on samples that were held out of
training, never on test samples; `mean` and `atm` have none. A seed decides what is held out and the order of the
samples; intervals are 95 % confidence intervals over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pandas as pd

from tvgrad.errors import TvgradError
from tvgrad.merging import METHODS, merge_vectors, tune_and_merge
from tvgrad.merging.evaluation import search_alpha, shifted
from tvgrad.parameters import Weights, cosine, norm
from tvgrad.recipes.catalogue import load_recipes
from tvgrad.update_rules import LinearRule, UpdateRule, make_rule

from .finding import Finding
from .merge_claims import POINTS, interval, verdicts
from .merge_figures import draw_accuracy, draw_direction, draw_prediction
from .task_training import Course, Task, tasks_of, train_alone, train_jointly

__all__ = ["analyse"]

RATES = {"gd": 0.01, "sgd": 0.003, "momentum": 0.001, "nesterov": 0.001, "adam": 3e-4, "adamw": 3e-4}
"""Learning rates at which all tasks of the suite train without leaving the pretrained model's basin."""

SEARCHED = ("task_arithmetic", "ties", "dare", "median", "tsv_m")


def analyse(
    target: str = "digits",
    optimizers: Sequence[str] = ("gd",),
    seeds: int = 5,
    epochs: int = 8,
    batch_size: int = 64,
    points: float = POINTS,
) -> Finding:
    """Run the study.

    Args:
        target: a recipe whose tasks share one pretrained model.
        optimizers: names, each alone or with a learning rate (`adam:1e-3`) instead of the study's own.
        seeds: how many.
        epochs: the last number of epochs; those before it are the powers of two.
        batch_size: for every optimizer but gd.
        points: what "as good" means, in points of accuracy.

    Returns:
        The finding: the main claim's verdict, those of all others, the table, and the figures.

    Raises:
        TvgradError: there are fewer than two tasks, or an option is out of range.
    """
    for name, value in (("seeds", seeds), ("epochs", epochs)):
        if not isinstance(value, int) or value < 2:
            raise TvgradError(f"{name} must be a whole number of at least 2, not {value!r}")
    rules = dict(_rule(text) for text in optimizers)
    recipes = load_recipes(target)
    if len(recipes) < 2:
        raise TvgradError(f"{target} has one task: merging needs at least two that share a pretrained model")
    keep = sorted({2**power for power in range(epochs.bit_length())} | {epochs})
    scores: list[dict[str, Any]] = []
    courses: list[dict[str, Any]] = []
    for seed in range(seeds):
        tasks = tasks_of(recipes, seed)
        for name, rule in rules.items():
            cell = _cell(tasks, rule, None if name == "gd" else batch_size, keep, seed)
            scores += [{"optimizer": name, "seed": seed, **row} for row in cell[0]]
            courses += [{"optimizer": name, "seed": seed, **row} for row in cell[1]]
    return _finding(pd.DataFrame(scores), pd.DataFrame(courses), target, points)


def _rule(text: str) -> tuple[str, UpdateRule]:
    name, sign, rate = text.partition(":")
    try:
        return name, make_rule(name, float(rate) if sign else RATES.get(name, 1.0))
    except ValueError:
        raise TvgradError(f"{text!r} is no optimizer: give a name, or a name and a rate as in adam:1e-3") from None


def _finding(scores: pd.DataFrame, courses: pd.DataFrame, target: str, points: float) -> Finding:
    norms = courses.drop_duplicates(["optimizer", "seed", "task"]).merge(
        courses[courses["epochs"] == courses["epochs"].max()][["optimizer", "seed", "task", "cosine"]].rename(
            columns={"cosine": "cos_last"}
        ),
        on=["optimizer", "seed", "task"],
    )
    found = verdicts(scores, norms.rename(columns={"cosine": "cos_first"}), points)
    main = [verdict for verdict in found if verdict.claim.endswith("in accuracy")]
    return Finding(
        claim=f"On {target}, merging after one epoch is within {points:g} points of merging after the last.",
        held=all(verdict.outcome == "holds" for verdict in main),
        evidence="; ".join(f"{verdict.optimizer}: {verdict.outcome}, {verdict.numbers}" for verdict in main),
        table=summary(scores),
        draw=partial(draw_accuracy, scores),
        others={"direction": partial(draw_direction, courses), "prediction": partial(draw_prediction, scores)},
        verdicts=tuple(map(str, found)),
    )


def summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean over tasks and seeds with confidence intervals over seeds: one row an optimizer, method and epoch.

    Args:
        scores: the long table.

    Returns:
        Columns optimizer, method, epochs, alpha, accuracy, accuracy_low, accuracy_high, normalised, normalised_low,
        normalised_high.
    """
    rows = []
    for keys, part in scores.groupby(["optimizer", "method", "epochs"], sort=False):
        row = dict(zip(("optimizer", "method", "epochs"), keys, strict=True))
        row["alpha"] = part["alpha"].mean()
        for column in ("accuracy", "normalised"):
            found = interval(part.groupby("seed")[column].mean())
            row |= {column: found.mean, f"{column}_low": found.low, f"{column}_high": found.high}
        rows.append(row)
    return pd.DataFrame(rows)


def _cell(
    tasks: Sequence[Task], rule: UpdateRule, batch_size: int | None, keep: Sequence[int], seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One optimizer and seed: rows of scores, and rows about norms and directions."""
    start = tasks[0].objective.initial
    alone = [train_alone(task, rule, start, keep, batch_size, seed) for task in tasks]
    joint = train_jointly(tasks, rule, start, keep, batch_size, seed)
    rounds = dict(enumerate(_iterated(tasks, rule, start, batch_size, seed, max(keep)), start=1))
    first = [task.objective.gradient(start) for task in tasks]
    errors = [_predicted(task, rule, gradient, batch_size, keep) for task, gradient in zip(tasks, first, strict=True)]
    scores = []
    for epochs in keep:
        vectors = [_difference(course.weights[epochs], start) for course in alone]
        single = [task.scorer.score(course.weights[epochs]) for task, course in zip(tasks, alone, strict=True)]
        models = {"pretrained": (start, 0.0), "joint": (joint.weights[epochs], math.nan), "atm": (rounds[epochs], 1.0)}
        models |= _merged(tasks, start, vectors)
        for place, task in enumerate(tasks):
            common = {"epochs": epochs, "task": task.name, "predicted_error": errors[place][epochs]}
            models_of_task = {"single": (alone[place].weights[epochs], math.nan), **models}
            for method, (weights, alpha) in models_of_task.items():
                accuracy = single[place] if method == "single" else task.scorer.score(weights)
                relative = accuracy / single[place] if single[place] else math.nan
                scores.append({
                    **common,
                    "method": method,
                    "alpha": alpha,
                    "accuracy": accuracy,
                    "normalised": relative,
                })
    return scores, [
        row
        for task, course, gradient in zip(tasks, alone, first, strict=True)
        for row in _course_rows(task, course, gradient, start, keep)
    ]


def _merged(tasks: Sequence[Task], start: Weights, vectors: Sequence[Weights]) -> dict[str, tuple[Weights, float]]:
    """Method -> merged weights and alpha, searched on validation samples where the method has one."""
    models = {"mean": (merge_vectors(METHODS["mean"](), vectors, 1.0, start), 1.0)}
    for name in SEARCHED:
        vector = merge_vectors(METHODS[name](), vectors)

        def score(alpha: float, vector: Weights = vector) -> float:
            weights = shifted(start, vector, alpha)
            return sum(task.scorer.score(weights, task.validation) for task in tasks) / len(tasks)

        alpha, _ = search_alpha(score)
        models[name] = shifted(start, vector, alpha), alpha
    return models


def _iterated(
    tasks: Sequence[Task], rule: UpdateRule, start: Weights, batch_size: int | None, seed: int, rounds: int
) -> Iterator[Weights]:
    """ATM with one epoch a round and the mean: as many passes over the data as merging once after so many epochs."""

    def tuner(task: Task) -> Callable[[Weights, int], Weights]:
        return lambda weights, number: train_alone(
            task, rule, weights, [1], batch_size, seed + 104_729 * number
        ).weights[1]

    return tune_and_merge(start, [tuner(task) for task in tasks], rounds)


def _predicted(
    task: Task, rule: UpdateRule, gradient: Weights, batch_size: int | None, keep: Sequence[int]
) -> dict[int, float]:
    """The second-order error relative to the first-order task vector, from one gradient and one product."""
    if not isinstance(rule, LinearRule):
        return dict.fromkeys(keep, math.nan)
    steps = 1 if batch_size is None else math.ceil(len(task.train) / batch_size)
    ratio = norm(task.objective.hvp(gradient)) / norm(gradient)
    return {
        epochs: rule.second_order_weight(steps * epochs) / rule.first_order_weight(steps * epochs) * ratio
        for epochs in keep
    }


def _course_rows(
    task: Task, course: Course, gradient: Weights, start: Weights, keep: Sequence[int]
) -> list[dict[str, Any]]:
    norms = course.gradient_norms
    descent = {name: -tensor for name, tensor in gradient.items()}
    common = {
        "task": task.name,
        "first_share": norms[0] / sum(norms),
        "first_largest": max(norms) == norms[0],
        "epochs_run": len(norms),
    }
    return [
        {
            **common,
            "epochs": epochs,
            "gradient_norm": norms[epochs - 1] / norms[0],
            "cosine": cosine(_difference(course.weights[epochs], start), descent),
        }
        for epochs in keep
    ]


def _difference(weights: Weights, start: Weights) -> Weights:
    return {name: tensor.double() - start[name].double() for name, tensor in weights.items()}
