"""Which tasks can be merged? What merging changes in every task's loss, told before training, against what is measured.

For every training all tasks are forecast and tuned, and merged by twos, threes and all, with the coefficient that
`tvgrad.plan` tells. Beside the told change stands what people use instead, the cosine of the trained task vectors: for
the change of losses, and, as in published tables, for the accuracy of merged pairs. Intervals (95 %) are of a jackknife
that leaves out a task at a time, on Fisher's scale: merges that share a task are no independent draws.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from tvgrad.errors import TvgradError
from tvgrad.merging.evaluation import shifted
from tvgrad.problem.recipe import Recipe, positive_integer
from tvgrad.recipes.catalogue import load_recipes
from tvgrad.theory.merge_plan import Plan, plan
from tvgrad.vectors.algebra import add_scaled, combination
from tvgrad.vectors.parameters import Weights, cosine

from .analysis_result import AnalysisResult, outcome_of
from .intervals import Interval
from .jackknife import jackknife
from .resumable_cache import ResumableCache, Rows
from .tuned_tasks import TRAININGS, TunedTasks, merges_of, read_training, tune

GOAL = 0.9
PUBLISHED_COSINE, PUBLISHED_EFFECTS = 0.09, 0.986
"""Mergeability-Bench: largest correlation of cosines with merged accuracy over 190 pairs; R^2 of two effects a pair."""

CLOSEST = 1 - 1e-12
"""A correlation that rounding cannot tell from 1."""


def analyse(
    target: str = "digits",
    trainings: Sequence[str] = TRAININGS,
    seeds: int = 3,
    images: int = 200,
    batch_size: int = 50,
    cells: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> AnalysisResult:
    """Tell, train, merge and measure.

    Args:
        target: a recipe of at least four tasks.
        trainings: optimizer:rate:epochs.
        seeds: of the training samples and the order of mini-batches.
        images: training samples of each task.
        batch_size: samples in a mini-batch, but for gd.
        cells: a folder that keeps finished trainings, for a study that may be stopped; empty keeps nothing.
        progress: called with how many trainings are done, and of how many.

    Returns:
        The result.

    Raises:
        TvgradError: a training is none, or there are fewer than four tasks.
    """
    positive_integer(seeds, "seeds")
    keys = {text: dict(zip(("optimizer", "lr", "epochs"), read_training(text), strict=True)) for text in trainings}
    store = ResumableCache(cells, {"target": target, "images": images, "batch_size": batch_size})
    recipes = load_recipes(target)
    if len(recipes) < 4:
        raise TvgradError(
            f"{target} has {len(recipes)} tasks, and a correlation over pairs of tasks takes four or more"
        )
    rows: Rows = []
    for done, (seed, text) in enumerate(itertools.product(range(seeds), trainings)):
        make = partial(_of_seed, recipes, text, seed, images, batch_size)
        rows += [{"training": text, "seed": seed, **row} for row in store.rows({**keys[text], "seed": seed}, make)[0]]
        if progress is not None:
            progress(done + 1, seeds * len(trainings))
    table = pd.DataFrame(rows)
    found = {text: correlation(table[table["training"] == text], "told_change", "change") for text in trainings}
    count = len(table.groupby(["seed", "training", "tasks"]))
    return AnalysisResult(
        claim=f"What merging changes in every task's loss is told before training with a correlation of at least "
        f"{GOAL}, on {target}.",
        outcome=outcome_of(
            all(one.low >= GOAL for one in found.values()), any(one.high < GOAL for one in found.values())
        ),
        evidence="; ".join(f"{text}: r = {one}" for text, one in found.items()) + f", {count} merges",
        table=table,
        draw=partial(_draw, table, "told_change", target),
        others={"cosine": partial(_draw, table, "cosine", target)},
        verdicts=tuple(
            sentence for text in trainings for sentence in _verdicts(table[table["training"] == text], text)
        ),
    )


def _of_seed(recipes: Sequence[Recipe], training: str, seed: int, images: int, batch_size: int) -> tuple[Rows]:
    return (list(_rows(tune(recipes, training, seed, images, batch_size))),)


def _rows(tuned: TunedTasks) -> Iterator[dict[str, object]]:
    """One row for each merge and task in it."""
    objectives = [task.objective for task in tuned.tasks]
    pairs = plan(objectives, forecasts=tuned.told, pairs=True)
    single = [_right(tuned, place, tuned.vectors[place]) for place in range(len(objectives))]
    for chosen in merges_of(len(objectives)):
        made = plan([objectives[place] for place in chosen], forecasts=[tuned.told[place] for place in chosen])
        merged = combination(*((1.0, tuned.vectors[place]) for place in chosen))
        for row, place in zip(made.rows, chosen, strict=True):
            others = [tuned.vectors[other] for other in chosen if other != place]
            found = {
                "tasks": "+".join(tuned.tasks[one].name for one in chosen),
                "size": len(chosen),
                "task": tuned.tasks[place].name,
                "coefficient": made.coefficient,
                "told_change": row.predicted_loss - row.loss,
                "first_order": row.slope,
                "change": _loss(tuned, place, (made.coefficient, merged)) - row.loss,
                "cosine": float(np.mean([cosine(tuned.vectors[place], other) for other in others])),
            }
            if len(chosen) == 2:
                [other] = (one for one in chosen if one != place)
                found |= {
                    "told_harm": told_harm(pairs, place, other),
                    "harm": _loss(tuned, place, (1.0, merged)) - _loss(tuned, place, (1.0, tuned.vectors[place])),
                    "accuracy": _right(tuned, place, merged),
                    "normalised": _right(tuned, place, merged) / single[place] if single[place] else math.nan,
                }
            yield found


def told_harm(pairs: Plan, task: int, other: int) -> float:
    """Tell what adding another task's vector to its own changes in a task's loss, to second order.

    Args:
        pairs: a plan with all pairs.
        task: s.
        other: u.

    Returns:
        `<g_s, tau_u> + <tau_s, H_s tau_u> + <tau_u, H_s tau_u> / 2`.
    """
    assert pairs.pairs is not None
    curved = pairs.pairs[task]
    return float(pairs.slopes[task, other] + curved[task, other] + curved[other, other] / 2)


def _loss(tuned: TunedTasks, place: int, along: tuple[float, Weights]) -> float:
    weights = combination((1.0, tuned.start))
    add_scaled(weights, along[1], along[0])
    return tuned.tasks[place].objective.value(weights)


def _right(tuned: TunedTasks, place: int, vector: Weights) -> float:
    return tuned.tasks[place].scorer.score(shifted(tuned.start, vector, 1.0))


def correlation(table: pd.DataFrame, first: str, second: str) -> Interval:
    """Correlate two columns, with an interval over new tasks.

    Args:
        table: one row for each merge and task in it, with the columns tasks (joined by plus signs) and task.
        first: a column.
        second: another.

    Returns:
        Pearson's correlation, and the jackknife's interval on Fisher's scale; the widest where it is not defined.
    """
    known = table[table[first].notna() & table[second].notna()]
    names = sorted({name for merge in known["tasks"] for name in merge.split("+")})

    def statistic(part: pd.DataFrame) -> float:
        if len(part) < 3 or not np.ptp(part[first]) or not np.ptp(part[second]):
            return math.nan
        found = float(np.corrcoef(part[first], part[second])[0, 1])
        return math.atanh(min(max(found, -CLOSEST), CLOSEST))

    found = jackknife(known, statistic, {"all": names}, without=_without)
    return Interval(*(math.tanh(end) for end in (found.mean, found.low, found.high)))


def _without(table: pd.DataFrame, task: str) -> pd.DataFrame:
    """Leave out every merge that a task takes part in."""
    return table[[task not in merge.split("+") for merge in table["tasks"]]]


def explained_by_tasks(table: pd.DataFrame, column: str) -> float:
    """Share of the variance of a quantity of pairs that a sum of two effects, one a task, explains.

    Args:
        table: one row for each pair and task in it.
        column: the quantity, whose mean over both tasks counts.

    Returns:
        R^2 of the least squares fit.
    """
    pairs = table.groupby("tasks")[column].mean()
    names = sorted({name for pair in pairs.index for name in pair.split("+")})
    effects = np.array([[float(name in pair.split("+")) for name in names] for pair in pairs.index])
    fitted = effects @ np.linalg.lstsq(effects, pairs.to_numpy(), rcond=None)[0]
    spread = float(((pairs - pairs.mean()) ** 2).sum())
    return 1 - float(((pairs - fitted) ** 2).sum()) / spread if spread else math.nan


def _verdicts(table: pd.DataFrame, text: str) -> Iterator[str]:
    pairs = table[table["size"] == 2]
    yield (
        f"{text}: told change of losses, r = {correlation(table, 'told_change', 'change')} over merges of two to "
        f"{table['size'].max()} tasks, {correlation(pairs, 'told_change', 'change')} over pairs; to first order alone "
        f"{correlation(table, 'first_order', 'change')}; cosine of the task vectors "
        f"{correlation(table, 'cosine', 'change')}"
    )
    yield (
        f"{text}: what another task's vector changes, added to a task's own: told "
        f"{correlation(pairs, 'told_harm', 'harm')}, cosine {correlation(pairs, 'cosine', 'harm')}"
    )
    merged = pairs.groupby(["seed", "tasks"], as_index=False)[["cosine", "accuracy", "normalised"]].mean()
    found = correlation(merged, "cosine", "normalised")
    small = outcome_of(max(abs(found.low), abs(found.high)) <= 0.3, found.low > 0.3 or found.high < -0.3)
    yield (
        f"{text}: the published claim that cosines tell nothing of the accuracy of merged pairs (|r| at most "
        f"{PUBLISHED_COSINE}; here: that |r| is at most 0.3): {small}, r = {found} with normalised accuracy, "
        f"{correlation(merged, 'cosine', 'accuracy')} with accuracy"
    )
    averaged = pairs.groupby(["tasks", "task"], as_index=False)[["accuracy", "normalised"]].mean()
    yield f"{text}: {two_effects(averaged)}"


def two_effects(table: pd.DataFrame) -> str:
    """Say how far two effects, one a task, explain merged pairs, and how much there is to explain.

    Args:
        table: one row for each pair and task in it, with the columns tasks, task, accuracy and normalised.

    Returns:
        A sentence.
    """
    shares = [explained_by_tasks(table, column) for column in ("accuracy", "normalised")]
    of_task = table.groupby("task")["accuracy"]
    moved, apart = (100 * float(np.max(part)) for part in (of_task.max() - of_task.min(), np.ptp(of_task.mean())))
    return (
        f"two effects, one a task, explain {shares[0]:.3f} of the variance of accuracies of merged pairs (published: "
        f"0.596 to {PUBLISHED_EFFECTS} by method) and {shares[1]:.3f} of normalised ones; the task that it is merged "
        f"with moves a task's accuracy by at most {moved:.1f} points, where tasks lie {apart:.1f} apart"
    )


def _draw(table: pd.DataFrame, column: str, target: str, ax: Axes) -> None:
    sns.scatterplot(
        table, x=column, y="change", hue="training", style="training", ax=ax, s=16, alpha=0.6, palette="colorblind"
    )
    told = column == "told_change"
    if told:
        ends = [min(table[column].min(), table["change"].min()), max(table[column].max(), table["change"].max())]
        ax.plot(ends, ends, color="0.3", linewidth=1, linestyle="--")
    ax.set(
        xlabel="told from the pretrained weights" if told else "mean cosine with the other task vectors",
        ylabel="measured change of a task's loss",
        title=f"What merging changes in each task's loss: {target}",
    )
    sns.move_legend(ax, "best", title=None, frameon=False)
