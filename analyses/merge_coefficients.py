"""The coefficient of a merge is told from the pretrained weights alone, and so are the losses after merging.

For every training of `trainings` all tasks are tuned and forecast; of merges of two, three and all tasks, the summed
training loss is then searched for the best coefficient, and the coefficients that `tvgrad.plan` tells before and after
training are held against it. On test samples coefficients that are told for the training loss, for the loss and for the
accuracy on validation samples are held against one that is searched on validation samples (`merge_regret`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import minimize_scalar

from tvgrad.errors import TvgradError
from tvgrad.problem.objective import Objective
from tvgrad.problem.recipe import Recipe, positive_integer
from tvgrad.recipes.catalogue import load_recipes
from tvgrad.theory.merge_line import measured_losses
from tvgrad.theory.merge_plan import plan
from tvgrad.vectors.algebra import combination
from tvgrad.vectors.parameters import cosine

from .analysis_result import AnalysisResult, outcome_of
from .merge_regret import (
    FURTHEST,
    LOSS,
    SCORE,
    TRAINING,
    TRIED,
    Lost,
    measure_regrets,
    no_losses,
    regret_sentences,
    rows_of,
)
from .resumable_cache import ResumableCache, Rows
from .task_training import CHUNK
from .tuned_tasks import TRAININGS, TunedTasks, merges_of, read_training, tune

FIXED = 0.3
WITHIN, ATTAINED = 0.1, 0.95

Progress = Callable[[int, int], None]


def analyse(
    target: str = "digits",
    trainings: Sequence[str] = TRAININGS,
    seeds: int = 3,
    images: int = 200,
    batch_size: int = 50,
    cells: str = "",
    progress: Progress | None = None,
) -> AnalysisResult:
    """Train, plan before and after, and search.

    Args:
        target: a recipe of several tasks.
        trainings: optimizer:rate:epochs.
        seeds: of the training samples and the order of mini-batches.
        images: training samples of each task.
        batch_size: samples in a mini-batch, but for gd.
        cells: a folder that keeps finished trainings, for a study that may be stopped; empty keeps nothing.
        progress: called with how many trainings are done, and of how many.

    Returns:
        The result.

    Raises:
        TvgradError: a training is none, or there is one task.
    """
    positive_integer(seeds, "seeds")
    keys = [dict(zip(("optimizer", "lr", "epochs"), read_training(text), strict=True)) for text in trainings]
    store = ResumableCache(cells, {"target": target, "images": images, "batch_size": batch_size})
    rows: Rows = []
    regrets: dict[str, list[Rows]] = {text: [] for text in trainings}
    recipes = load_recipes(target)
    if len(recipes) < 2:
        raise TvgradError(f"{target} is one task, and a merge takes two: give a recipe of several")
    for done, (seed, place) in enumerate(itertools.product(range(seeds), range(len(trainings)))):
        make = partial(_of_seed, recipes, trainings[place], seed, images, batch_size)
        merges, lost = store.rows({**keys[place], "seed": seed}, make)
        rows += merges
        regrets[trainings[place]].append(lost)
        if progress is not None:
            progress(done + 1, seeds * len(trainings))
    table = pd.DataFrame(rows)
    within = table[table["relative_second_order_error"] < WITHIN]
    held = bool(len(within)) and bool((within["share_told"] >= ATTAINED).all())
    evidence = (
        f"{int((within['share_told'] >= ATTAINED).sum())} of {len(within)} merges within reach {ATTAINED:.0%} of the "
        f"attainable drop" + (f", the smallest {within['share_told'].min():.1%}" if len(within) else "")
    )
    claim = (
        f"Wherever task vectors are predicted to be within {WITHIN:.0%} of first order, the coefficient told from the "
        f"pretrained weights reaches {ATTAINED:.0%} of the attainable drop in training loss, on merges of {target}."
    )
    said = tuple(sentence for text in trainings for sentence in _verdicts(table, text, regrets[text]))
    return AnalysisResult(
        claim, outcome_of(held, fails=bool(len(within))), evidence, table, partial(_draw, table, target), verdicts=said
    )


def _of_seed(recipes: Sequence[Recipe], training: str, seed: int, images: int, batch_size: int) -> tuple[Rows, Rows]:
    """All merges of one training and seed, and what is lost on test samples."""
    tuned, lost = tune(recipes, training, seed, images, batch_size), no_losses(len(recipes))
    validation = [
        recipe.objective(samples=task.for_alpha, chunk_size=CHUNK)
        for recipe, task in zip(recipes, tuned.tasks, strict=True)
    ]
    rows = [
        {"training": training, "seed": seed, **_merge(tuned, validation, chosen, lost)}
        for chosen in merges_of(len(recipes))
    ]
    return rows, rows_of(lost)


def _merge(tuned: TunedTasks, validation: Sequence[Objective], chosen: Sequence[int], lost: Lost) -> dict[str, object]:
    """One merge: coefficients, shares of the attainable drop, changes of losses, and accuracy lost on test samples."""
    tasks, vectors = [tuned.tasks[place] for place in chosen], [tuned.vectors[place] for place in chosen]
    objectives, merged = [task.objective for task in tasks], combination(*((1.0, vector) for vector in vectors))
    before = plan(objectives, forecasts=[tuned.told[place] for place in chosen])
    after = plan(objectives, task_vectors=vectors)
    losses = measured_losses(objectives, merged)
    at_start, at_told = losses(0.0), losses(before.coefficient)
    best, lowest = _best(lambda a: float(losses(a).sum()))
    attainable = float(at_start.sum()) - lowest
    shares = {
        f"share_{name}": (float(at_start.sum()) - float(losses(a).sum())) / attainable
        for name, a in (("told", before.coefficient), ("after", after.coefficient), ("fixed", FIXED))
    }
    forecast_sum = combination(*((1.0, vector) for vector in before.task_vectors))
    found, missed = measure_regrets(
        tasks, [validation[place] for place in chosen], merged, forecast_sum, before.coefficient
    )
    for way, samples in missed.items():
        for place, one in zip(chosen, samples, strict=True):
            lost[way][place].append(one)
    row: dict[str, object] = {
        "tasks": "+".join(task.name for task in tasks),
        "size": len(tasks),
        "relative_second_order_error": before.relative_second_order_error,
        "coefficient_told": before.coefficient,
        "coefficient_after": after.coefficient,
        "coefficient_best": best,
        **shares,
        "coefficient_searched": found["searched"],
        "coefficient_validation_loss": found[LOSS],
        "coefficient_validation_score": found[SCORE],
        "regret_points": _points(missed[TRAINING]),
        "regret_validation_loss_points": _points(missed[LOSS]),
        "regret_validation_score_points": _points(missed[SCORE]),
    }
    if len(chosen) == 2:
        row["cos_task_vectors"] = cosine(*vectors)
        for letter, place in (("a", 0), ("b", 1)):
            row[f"told_change_of_{letter}"] = before.predicted_losses[place] - before.rows[place].loss
            row[f"change_of_{letter}"] = float(at_told[place] - at_start[place])
    return row


def _points(lost: Sequence[NDArray[np.float64]]) -> float:
    return 100 * float(np.mean([one.mean() for one in lost]))


def _best(total: Callable[[float], float]) -> tuple[float, float]:
    """The best coefficient: the best of a grid, refined between its neighbours."""
    grid = FURTHEST * np.arange(TRIED + 1) / TRIED
    values = [total(float(a)) for a in grid]
    place = int(np.nanargmin(values))
    ends = float(grid[max(place - 1, 0)]), float(grid[min(place + 1, TRIED)])
    found = minimize_scalar(total, bounds=ends, method="bounded", options={"xatol": 1e-3})
    return (float(found.x), float(found.fun)) if found.fun < values[place] else (float(grid[place]), values[place])


def _verdicts(table: pd.DataFrame, text: str, regrets: Sequence[Rows]) -> Iterator[str]:
    """What became of one training: shares, regret, and losses told for pairs."""
    part = table[table["training"] == text]
    error = part["relative_second_order_error"]
    told, after, fixed = (part[f"share_{name}"] for name in ("told", "after", "fixed"))
    yield (
        f"{text} (relative second-order error {error.min():.2g} to {error.max():.2g}): share of the attainable drop "
        f"told before training {told.median():.3f} in the median, {told.min():.3f} at worst; planned after it "
        f"{after.min():.3f} at worst; at {FIXED} for all {fixed.median():.3f}"
    )
    for sentence in regret_sentences(regrets):
        yield f"{text}: {sentence}"
    pairs = part[part["size"] == 2]
    foretold = np.concatenate([pairs["told_change_of_a"], pairs["told_change_of_b"]])
    true = np.concatenate([pairs["change_of_a"], pairs["change_of_b"]])
    by_cosine = np.concatenate([pairs["cos_task_vectors"]] * 2)
    yield (
        f"{text}: change of each task's loss in {len(pairs)} pairs, told against measured, r = "
        f"{_correlation(foretold, true)}; cosine of the task vectors against it, r = {_correlation(by_cosine, true)}"
    )


def _correlation(left: NDArray[np.float64], right: NDArray[np.float64]) -> str:
    """Without an interval: pairs share their tasks, and are no independent draws."""
    if len(left) < 4 or not (np.ptp(left) and np.ptp(right)):
        return "not defined"
    return f"{float(stats.pearsonr(left, right).statistic):.3f}"


def _draw(table: pd.DataFrame, target: str, ax: Axes) -> None:
    sns.scatterplot(
        table, x="coefficient_best", y="coefficient_told", hue="training", style="training", ax=ax, s=24,
        palette="colorblind",
    )  # fmt: skip
    ends = table["coefficient_best"].min() * 0.9, table["coefficient_best"].max() * 1.1
    ax.plot(ends, ends, color="0.3", linewidth=1, linestyle="--")
    ax.set(xscale="log", yscale="log", title=f"The coefficient of a merge, told before training: {target}")
    ax.set(xlabel="best coefficient for the training loss, searched", ylabel="told from the pretrained weights")
    sns.move_legend(ax, "upper left", title=None, frameon=False)
