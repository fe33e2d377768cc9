"""What a training without some of its samples would have made is told from a training with them.

A task is tuned; then, time after time, samples drawn at random are left out, and what that does to the loss on test
samples and to the loss on the left-out samples themselves is told to second order (`tvgrad.theory.counterfactual`) and
measured by training again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from scipy import stats

from tvgrad.errors import TvgradError
from tvgrad.problem.objective import Objective
from tvgrad.problem.recipe import Recipe, positive_integer
from tvgrad.recipes.catalogue import load_recipes
from tvgrad.recipes.of_run import objective_of
from tvgrad.record.options import TraceOptions
from tvgrad.record.training_loop import prepare, trace
from tvgrad.theory.counterfactual import Without
from tvgrad.vectors.algebra import combination

from .analysis_result import AnalysisResult, outcome_of

ENOUGH = 0.95
EFFECTS = {"test": "loss on test samples", "removed": "loss on the samples left out"}


def analyse(
    target: str = "digits",
    retrainings: int = 100,
    share: float = 0.1,
    rate: float = 0.1,
    epochs: int = 5,
    batch_size: int = 0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> AnalysisResult:
    """Train, tell and train again.

    Args:
        target: a recipe with test samples; the first of several is taken.
        retrainings: how often samples are left out.
        share: of the training samples, left out each time.
        rate: of gradient descent, or of SGD on mini-batches.
        epochs: of the training.
        batch_size: samples in a mini-batch; 0 is the full batch.
        seed: of what is left out.
        progress: called with how many trainings are done, and of how many.

    Returns:
        The result.

    Raises:
        TvgradError: the recipe has no test samples, or too few trainings or samples to correlate anything.
    """
    positive_integer(retrainings, "retrainings")
    recipe = load_recipes(target)[0]
    size = round(share * len(recipe.train))
    if recipe.test is None or retrainings < 4 or not 0 < size < len(recipe.train):
        raise TvgradError(
            f"{recipe.name} needs test samples, at least 4 retrainings, and a share that leaves some samples out"
        )
    options = TraceOptions(
        target=target,
        optimizer="sgd" if batch_size else "gd",
        lr=rate,
        epochs=epochs,
        batch_size=batch_size or None,
        dtype="float64",
        record=("batches",) if batch_size else ("gradients",),
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = _measured(recipe, options, Path(folder) / "run", size, retrainings, seed, progress)
    table = pd.DataFrame(rows)
    found = {name: stats.pearsonr(table[f"told_{name}"], table[f"true_{name}"]) for name in EFFECTS}
    intervals = {name: one.confidence_interval(0.95) for name, one in found.items()}
    said = {
        name: f"{EFFECTS[name]}: r = {found[name].statistic:.4f} (95 % interval {low:.4f} to {high:.4f})"
        for name, (low, high) in intervals.items()
    }
    holds = all(low >= ENOUGH for low, _ in intervals.values())
    fails = any(high < ENOUGH for _, high in intervals.values())
    claim = (
        f"What leaving {size} of {len(recipe.train)} samples out of {epochs} epochs on {recipe.name} does to losses is "
        f"told without training, with a correlation of at least {ENOUGH} over {retrainings} retrainings."
    )
    return AnalysisResult(claim, outcome_of(holds, fails), "; ".join(said.values()), table, partial(_draw, table))


def _measured(
    recipe: Recipe,
    options: TraceOptions,
    folder: Path,
    size: int,
    retrainings: int,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> list[dict[str, float]]:
    run = trace(prepare(recipe, options), folder)
    objective = objective_of(run, recipe, torch.float64)
    assert recipe.test is not None
    test = Objective(objective.model, recipe.loss, recipe.test.with_dtype(torch.float64), forward=recipe.forward)
    teller = Without(run, objective, run.epochs[-1])
    at_end = combination((1.0, objective.initial), (1.0, teller.task_vector))
    before = test.value(at_end)
    generator, rows = np.random.default_rng(seed), list[dict[str, float]]()
    for done in range(retrainings):
        gone = generator.choice(len(objective.samples), size, replace=False)
        told, truth = teller.tell(gone), teller.retrained(gone)
        ends = [combination((1.0, objective.initial), (1.0, vector)) for vector in (told.task_vector, truth)]
        own = objective.subset(torch.as_tensor(np.sort(gone)))
        rows.append({
            "told_test": test.value(ends[0]) - before,
            "true_test": test.value(ends[1]) - before,
            "told_removed": told.row.predicted_removed_loss - told.row.removed_loss,
            "true_removed": own.value(ends[1]) - told.row.removed_loss,
            "change_norm": told.row.change_norm,
        })
        if progress is not None:
            progress(done + 1, retrainings)
    return rows


def _draw(table: pd.DataFrame, ax: Axes) -> None:
    for name, words in EFFECTS.items():
        ax.plot(table[f"told_{name}"], table[f"true_{name}"], "o", markersize=3, alpha=0.7, label=words)
    ends = [*ax.get_xlim()]
    ax.plot(ends, ends, color="0.6", linewidth=0.8)
    ax.set(xlabel="told change", ylabel="measured change")
    ax.legend(frameon=False)
