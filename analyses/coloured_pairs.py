"""Adding, subtracting and mixing task vectors of real coloured digits, against what the theory says of such pairs.

As in the experiment of Li et al. (arXiv 2504.10957): a pair is aligned (close colours, the same labels), irrelevant
(far colours, the same labels) or contradictory (close colours, exchanged labels); the head is frozen, tuning is one
epoch of Adam, and lambda runs from -1 to 1. The colours, networks and samples are ours, and so are the thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from tvgrad.errors import TvgradError
from tvgrad.problem.recipe import Recipe
from tvgrad.recipes.catalogue import load_recipes
from tvgrad.recipes.coloured_digits import COLOURS, HALF
from tvgrad.update_rules.rules import make_rule
from tvgrad.vectors.algebra import combination, difference
from tvgrad.vectors.parameters import Weights, cosine

from .analysis_result import AnalysisResult, outcome_of
from .concept_figures import panels
from .concept_verdicts import overall
from .intervals import Interval, seed_mean
from .resumable_cache import ResumableCache, Rows
from .task_training import FEWEST as FEWEST_SAMPLES
from .task_training import tasks_of, train_alone

KINDS = ("aligned", "irrelevant", "contradictory")
LAMBDAS = 17  # from -1 to 1
SCALES = 13  # of a mixture, from 0 to 1.5
MOST_SCALE = 1.5
NEAR = 0.05  # accuracy that a task may lose and still counts as solved, or kept
FORGOTTEN = 0.6  # accuracy, of two classes, from which down a task counts as forgotten
FEWEST = 2
WIDTH, HEIGHT = 9.6, 2.7


def analyse(
    target: str = "coloured-digits",
    seeds: int = 3,
    lambdas: int = LAMBDAS,
    samples: int = 1000,
    cells: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> AnalysisResult:
    """Tune on five colours, and add, subtract and mix the task vectors.

    Args:
        target: a recipe with the tasks of `coloured-digits`.
        seeds: orders of the samples, at least two.
        lambdas: how many coefficients between -1 and 1.
        samples: training samples of a task.
        cells: a folder that keeps what is finished; empty keeps nothing.
        progress: called with the seeds done and their number.

    Returns:
        The result.

    Raises:
        TvgradError: too few seeds or coefficients, or a recipe without these tasks.
    """
    if seeds < FEWEST or lambdas < FEWEST + 1:
        raise TvgradError(f"seeds must be at least 2 and lambdas at least 3, not {seeds} and {lambdas}")
    if samples < FEWEST_SAMPLES:
        raise TvgradError(f"samples must be at least {FEWEST_SAMPLES}, not {samples}")
    recipes = load_recipes(target)
    if [recipe.name for recipe in recipes] != list(COLOURS):
        raise TvgradError(
            f"{target} has not the tasks {', '.join(COLOURS)}: take coloured-digits or coloured-digits-vit"
        )
    store = ResumableCache(cells, {"lambdas": lambdas, "samples": samples})
    rows: Rows = []
    for seed in range(seeds):
        make = partial(_measured, recipes, seed, samples=samples, lambdas=lambdas)
        found = store.rows({"target": target, "seed": seed}, make)
        rows += [{"seed": seed, **row} for row in found[0]]
        if progress is not None:
            progress(seed + 1, seeds)
    grid = pd.DataFrame(rows)
    return _result(grid, target, seeds)


def _measured(recipes: Sequence[Recipe], seed: int, *, samples: int, lambdas: int) -> tuple[Rows]:
    """Accuracies of one seed: kind, x (lambda, or a mixture's scale), both accuracies, and those of single models."""
    tasks = tasks_of(recipes, seed, samples)
    start = tasks[0].objective.initial
    by_name = {task.name: task for task in tasks}
    vectors: dict[str, Weights] = {}
    for task in tasks:
        tuned = train_alone(task, make_rule("adam", 1e-3), start, [1], 32, seed).weights[1]
        vectors[task.name] = difference(tuned, start)

    def accuracy(of: str, *terms: tuple[float, Weights]) -> float:
        return by_name[of].scorer.score(combination((1.0, start), *terms))

    own = {name: accuracy(name, (1.0, vector)) for name, vector in vectors.items()}
    rows: Rows = []
    for kind in KINDS:
        near = cosine(vectors["red"], vectors[kind])
        for x in np.linspace(-1, 1, lambdas).tolist():
            terms = (1.0, vectors["red"]), (x, vectors[kind])
            rows.append({
                "kind": kind, "x": x, "accuracy_1": accuracy("red", *terms), "accuracy_2": accuracy(kind, *terms),
                "own_1": own["red"], "own_2": own[kind], "start": accuracy(kind), "cosine": near,
            })  # fmt: skip
    for x in np.linspace(0, MOST_SCALE, SCALES).tolist():
        # gamma = (HALF, HALF), of norm 1: lambda_i = x gamma_i
        terms = (x * HALF, vectors["red"]), (x * HALF, vectors["irrelevant"])
        found = accuracy("mixture", *terms)
        rows.append({
            "kind": "mixture", "x": x, "accuracy_1": found, "accuracy_2": found, "own_1": own["mixture"],
            "own_2": own["mixture"], "start": accuracy("mixture"),
            "cosine": cosine(vectors["red"], vectors["irrelevant"]),
        })  # fmt: skip
    return (rows,)


def margins(grid: pd.DataFrame) -> pd.DataFrame:
    """Say of every seed and pair by how much the statements are met at the best coefficient.

    Args:
        grid: columns seed, kind, x, accuracy_1, accuracy_2, own_1 and own_2.

    Returns:
        Columns seed, kind, added (the smaller of both accuracies minus the single model's, at the best lambda above 0,
        plus the points that may be lost: at least 0 where some lambda solves both) and negated (at least 0 where some
        lambda below 0 keeps task 1 and forgets task 2); of a mixture, added at scale 1 and NaN.
    """
    rows = []
    for (seed, kind), part in grid.groupby(["seed", "kind"], sort=False):
        first = part["accuracy_1"] - part["own_1"] + NEAR
        second = part["accuracy_2"] - part["own_2"] + NEAR
        both = np.minimum(first, second)
        away = np.minimum(first, FORGOTTEN - part["accuracy_2"])
        if kind == "mixture":
            added, negated = float(both[np.isclose(part["x"], 1)].iloc[0]), float("nan")
        else:
            added, negated = float(both[part["x"] > 0].max()), float(away[part["x"] < 0].max())
        rows.append({"seed": seed, "kind": kind, "added": added, "negated": negated})
    return pd.DataFrame(rows)


def _judged(found: pd.DataFrame, kind: str, column: str, *, wanted: bool) -> tuple[str, str]:
    """The outcome of one statement, and its margin with how many seeds meet it."""
    values = found.loc[found["kind"] == kind, column]
    interval = seed_mean(values.tolist())
    if wanted:
        outcome = outcome_of(interval.low >= 0, interval.high < 0)
    else:
        outcome = outcome_of(interval.high < 0, interval.low >= 0)
    met = int((values >= 0).sum())
    return outcome, f"margin {interval.points()}, {met} of {len(values)} seeds have such a coefficient"


def _result(grid: pd.DataFrame, target: str, seeds: int) -> AnalysisResult:
    found = margins(grid)
    statements = [
        ("added", "aligned", True, "adding an aligned task: some lambda in (0, 1] solves both"),
        ("added", "irrelevant", True, "adding an irrelevant task: some lambda in (0, 1] solves both"),
        ("added", "contradictory", False, "adding a contradictory task: no lambda in (0, 1] solves both"),
        ("negated", "irrelevant", True, "negating an irrelevant task: some lambda in [-1, 0) keeps 1 and forgets 2"),
        ("negated", "contradictory", True, "negating a contradictory task: some lambda in [-1, 0) does likewise"),
        ("added", "mixture", True, "mixing far colours: sum lambda_i gamma_i = 1 solves the colour between them"),
    ]
    judged = [(text, *_judged(found, kind, column, wanted=wanted)) for column, kind, wanted, text in statements]
    cosines = {kind: seed_mean(grid.loc[grid["kind"] == kind].groupby("seed")["cosine"].first()) for kind in KINDS}
    alone = seed_mean(found.loc[found["kind"] == "aligned", "negated"].tolist())
    return AnalysisResult(
        claim=(
            "Task vectors of coloured digits can be added where tasks are aligned or irrelevant, subtracted where they "
            "are irrelevant or contradictory, and mixed for a colour between them."
        ),
        outcome=overall([outcome for _, outcome, _ in judged]),
        evidence=(
            f"{sum(outcome == 'holds' for _, outcome, _ in judged)} of {len(judged)} statements hold on {target}, "
            f"{seeds} seeds; solved and kept mean at most {100 * NEAR:g} points below the task's own model, forgotten "
            f"means an accuracy of at most {FORGOTTEN:g}"
        ),
        table=_summary(grid),
        draw=partial(_draw, grid),
        verdicts=(
            *(f"{text}: {outcome}, {numbers}" for text, outcome, numbers in judged),
            f"negating an aligned task, of which nothing is stated: margin {alone.points()}",
            f"cosines of the task vectors with red: {', '.join(f'{kind} {cosines[kind]}' for kind in KINDS)}",
        ),
    )


def _summary(grid: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (kind, x), part in grid.groupby(["kind", "x"], sort=False):
        row: dict[str, object] = {"kind": kind, "x": x}
        for name in ("accuracy_1", "accuracy_2"):
            mean: Interval = seed_mean(part[name].tolist(), 0.0, 1.0)
            row |= {name: mean.mean, f"{name}_low": mean.low, f"{name}_high": mean.high}
        rows.append(row | {"own_1": part["own_1"].mean(), "own_2": part["own_2"].mean(), "seeds": len(part)})
    return pd.DataFrame(rows)


def _draw(grid: pd.DataFrame, ax: Axes) -> None:
    table = _summary(grid)
    axes = panels(ax, 4, WIDTH, HEIGHT)
    for panel, kind in zip(axes, (*KINDS, "mixture"), strict=True):
        part = table[table["kind"] == kind]
        names = {"accuracy_1": ("C0", "red")} | ({} if kind == "mixture" else {"accuracy_2": ("C1", "the other")})
        if kind == "mixture":
            names = {"accuracy_1": ("C2", "the colour between")}
        for name, (colour, label) in names.items():
            panel.plot(part["x"], part[name], color=colour, label=label)
            panel.fill_between(
                part["x"], part[f"{name}_low"], part[f"{name}_high"], color=colour, alpha=0.2, linewidth=0
            )
            panel.axhline(part[name.replace("accuracy", "own")].iloc[0], color=colour, linestyle=":", linewidth=1)
        label = "scale of both vectors" if kind == "mixture" else r"coefficient $\lambda$"
        panel.set(xlabel=label, title=kind, ylim=(0, 1.02))
    axes[0].set_ylabel("test accuracy")
    lines = [*axes[0].get_lines()[::2], axes[-1].get_lines()[0]]
    axes[0].figure.legend(handles=lines, loc="outside lower center", ncols=3, fontsize=8)
