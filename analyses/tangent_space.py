"""Tuned in the tangent space, or on the least sensitive weights alone, tasks get less in each other's way.

Every task is tuned by gradient descent in three ways: as usual; in the tangent model; and on the share of the weights
to which its outputs are least sensitive. The best mean accuracy that both ordinary and tangent tuning reach is the
goal, and of every way the epoch is taken that is nearest to it, so that equally good models are compared; where they
are not alike all the same, nothing is decided. The error of disentanglement is taken on test samples, for all pairs of
tasks, at coefficients of one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes

from tvgrad.errors import TvgradError
from tvgrad.problem.objective import Objective
from tvgrad.problem.recipe import Recipe, accuracy, positive, positive_integer
from tvgrad.recipes.catalogue import load_recipes
from tvgrad.theory.disentanglement import disentanglement_error, tangent_interference
from tvgrad.theory.sensitivity_mask import keep_off_mask, sensitivity_mask
from tvgrad.theory.tangent_space import TangentForward, tangent_outputs
from tvgrad.vectors.algebra import difference
from tvgrad.vectors.parameters import Weights

from .analysis_result import AnalysisResult, outcome_of
from .intervals import seed_mean
from .resumable_cache import ResumableCache, Rows
from .task_training import CHUNK, Task, tasks_of

ORDINARY, TANGENT, MASKED = "ordinary", "tangent", "masked"
WAYS = (ORDINARY, TANGENT, MASKED)
TINY = 1e-300
LIKE = 0.01
"""Accuracies that may differ by more than this are not alike."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _EpochCourse:
    """A task's vectors and test accuracies, one an epoch."""

    vectors: list[Weights]
    scores: list[float]


def analyse(
    target: str = "digits",
    lr: float = 0.1,
    epochs: int = 30,
    seeds: int = 5,
    images: int = 200,
    share: float = 0.5,
    cells: str = "",
    progress: Progress | None = None,
) -> AnalysisResult:
    """Tune in three ways, and compare.

    Args:
        target: a recipe of several tasks.
        lr: of gradient descent.
        epochs: of every way; compared are those in which ordinary and tangent tuning are equally accurate.
        seeds: of the training samples, at least two.
        images: training samples of each task.
        share: of the weights, that masked tuning tunes.
        cells: a folder that keeps finished seeds, for a study that may be stopped; empty keeps nothing.
        progress: called with how many seeds are done, and of how many.

    Returns:
        The result.

    Raises:
        TvgradError: there is one task or one seed.
    """
    positive(lr, "lr")
    if positive_integer(seeds, "seeds") < 2:
        raise TvgradError("one seed has no interval: give seeds at least 2")
    recipes = load_recipes(target)
    if len(recipes) < 2:
        raise TvgradError(f"{target} is one task, and disentanglement takes two: give a recipe of several")
    rows: Rows = []
    positive_integer(epochs, "epochs")
    store = ResumableCache(cells, {"target": target, "lr": lr, "epochs": epochs, "images": images, "share": share})
    for seed in range(seeds):
        rows += store.rows(
            {"seed": seed}, partial(_of_seed, recipes, seed, lr=lr, epochs=epochs, images=images, share=share)
        )[0]
        if progress is not None:
            progress(seed + 1, seeds)
    return judged(pd.DataFrame(rows), target, share)


def judged(table: pd.DataFrame, target: str, share: float) -> AnalysisResult:
    """Compare the ways.

    Args:
        table: one row for each seed, way and pair of tasks.
        target: the recipe.
        share: of the weights that masked tuning keeps to.

    Returns:
        The result; undecided where ordinary and tangent models are not of like accuracy.
    """
    errors = table.groupby(["seed", "way"])["disentanglement_error"].mean().unstack()
    scores = table.groupby(["seed", "way"])["accuracy"].mean().unstack()
    saved = {way: seed_mean((errors[ORDINARY] - errors[way]).to_numpy(), -2, 2) for way in (TANGENT, MASKED)}
    apart = {way: seed_mean((scores[ORDINARY] - scores[way]).to_numpy(), -1, 1) for way in (TANGENT, MASKED)}
    alike = {way: ends.low >= -LIKE and ends.high <= LIKE for way, ends in apart.items()}
    unlike = f", but accuracies may differ by more than {LIKE:g}, so that the comparison is not one of like models"
    means = {way: (seed_mean(errors[way].to_numpy(), 0, 2), seed_mean(scores[way].to_numpy(), 0, 1)) for way in WAYS}
    return AnalysisResult(
        claim=f"Tangent models have a lower error of disentanglement than ordinary ones of like accuracy, on {target}.",
        outcome=outcome_of(alike[TANGENT] and saved[TANGENT].low > 0, fails=alike[TANGENT] and saved[TANGENT].high < 0),
        evidence=f"ordinary minus tangent {saved[TANGENT]}, over {len(errors)} seeds" + (not alike[TANGENT]) * unlike,
        table=table,
        draw=partial(_draw, table, target),
        verdicts=(
            *(f"{way}: error {error}, accuracy of single tasks {score}" for way, (error, score) in means.items()),
            f"accuracy of ordinary minus tangent models, which are compared: {apart[TANGENT]}",
            f"ordinary minus masked ({share:.0%} of the weights): {saved[MASKED]}" + (not alike[MASKED]) * unlike,
            f"what another task's vector moves to first order, in units of what a task's own does: "
            f"{table[table['way'] == ORDINARY]['relative_interference'].mean():.3f} for ordinary vectors, "
            f"{table[table['way'] == MASKED]['relative_interference'].mean():.3f} for masked ones",
        ),
    )


def _of_seed(recipes: list[Recipe], seed: int, *, lr: float, epochs: int, images: int, share: float) -> tuple[Rows]:
    """One row for each way and pair of tasks."""
    tasks = tasks_of(recipes, seed, images)
    tests = [
        recipe.objective(samples=task.scorer.test, chunk_size=CHUNK)
        for recipe, task in zip(recipes, tasks, strict=True)
    ]
    courses: dict[str, list[_EpochCourse]] = {way: [] for way in WAYS}
    for recipe, task, test in zip(recipes, tasks, tests, strict=True):
        tangent = Objective(
            task.objective.model, recipe.loss, task.train, chunk_size=CHUNK,
            forward=TangentForward(task.objective.model, recipe.forward), count=recipe.count, allow=recipe.allow,
        )  # fmt: skip
        mask = sensitivity_mask(task.objective, share)
        courses[ORDINARY].append(_tuned(task, test, task.objective, lr, epochs))
        courses[TANGENT].append(_tuned(task, test, tangent, lr, epochs, tangent=True))
        courses[MASKED].append(_tuned(task, test, task.objective, lr, epochs, mask=mask))
    rows: Rows = []
    by_way = {way: np.mean([course.scores for course in made], axis=0) for way, made in courses.items()}
    goal = min(by_way[way].max() for way in (ORDINARY, TANGENT))
    for way, made in courses.items():
        by_epoch = by_way[way]
        last = int(np.argmin(np.abs(by_epoch - goal)))
        for i, j in itertools.combinations(range(len(tasks)), 2):
            vectors = [made[place].vectors[last] for place in (i, j)]
            pair = [tests[place] for place in (i, j)]
            error = disentanglement_error(pair, vectors, (1.0,), tangent=way == TANGENT)
            moved = [[tangent_interference(one, vector) for vector in vectors] for one in pair]
            rows.append({
                "seed": seed,
                "way": way,
                "tasks": f"{tasks[i].name}+{tasks[j].name}",
                "epochs": last + 1,
                "accuracy": float(by_epoch[last]),
                "disentanglement_error": float(error[0, 0]),
                "relative_interference": (moved[0][1] + moved[1][0]) / max(moved[0][0] + moved[1][1], TINY),
            })
    return (rows,)


def _tuned(
    task: Task,
    test: Objective,
    objective: Objective,
    lr: float,
    epochs: int,
    *,
    tangent: bool = False,
    mask: Weights | None = None,
) -> _EpochCourse:
    """Gradient descent, with the accuracy on test samples after every step."""
    weights = {name: tensor.clone() for name, tensor in task.objective.initial.items()}
    optimizer = torch.optim.SGD(list(weights.values()), lr=lr)
    if mask is not None:
        keep_off_mask(optimizer, weights, mask)
    course, targets = _EpochCourse([], []), torch.cat([target for _, target in _batches(test)])
    for _ in range(epochs):
        for name, gradient in objective.gradient(weights).items():
            weights[name].grad = gradient
        optimizer.step()
        outputs = tangent_outputs(test, weights) if tangent else test.outputs(weights)
        course.vectors.append(difference(weights, task.objective.initial))
        course.scores.append(float(accuracy(outputs, targets)))
    return course


def _batches(test: Objective) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    yield test.samples.batch(0, len(test.samples))


def _draw(table: pd.DataFrame, target: str, ax: Axes) -> None:
    pairs = table.groupby(["tasks", "way"])["disentanglement_error"].mean().unstack()
    for way, marker in ((TANGENT, "o"), (MASKED, "s")):
        sns.scatterplot(x=pairs[ORDINARY], y=pairs[way], ax=ax, label=way, marker=marker, s=24)
    end = float(pairs.to_numpy().max()) * 1.05 or 1.0
    ax.plot((0, end), (0, end), color="0.3", linewidth=1, linestyle="--")
    ax.set(
        title=f"Error of disentanglement of pairs of tasks: {target}", xlabel="ordinary tuning", ylabel="other tuning"
    )
    ax.legend(frameon=False)
