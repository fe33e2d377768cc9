"""The grid of overlaps, coefficients and seeds that the studies of conceptual pairs share.

For every overlap rho and seed two models are trained from one start, and `theta_0 + tau_1 + lambda tau_2` is measured
on both tasks for every lambda: hinge losses, margins (means over test samples) and attention logits
`mu' (W - W_0) mu`, of the change because the start's own logits are no part of the task vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

import pandas as pd
import torch

from tvgrad.errors import TvgradError
from tvgrad.recipes.conceptual import TokenMix, pair_direction

from .concept_training import ConceptSetting, ConceptTask, Progress, margins, mean_hinge, trained_concepts
from .concept_verdicts import finer, first_solved
from .model_stack import ModelStack, Stack, added, chosen
from .resumable_cache import ResumableCache, Rows
from .seed_blocks import rows_of_seeds

RHOS, LAMBDAS, SEEDS = 21, 41, 10
MOST_RHO, MOST_LAMBDA = 0.8, 2.0
FEWEST = 2


def evenly(most: float, count: int, name: str) -> list[float]:
    """Spread numbers evenly.

    Args:
        most: the largest, above 0; the smallest is minus that.
        count: how many, at least two.
        name: of the numbers, for a message.

    Returns:
        The numbers, rounded to six digits.

    Raises:
        TvgradError: there are fewer than two, or the largest is no number above 0.
    """
    if count < FEWEST:
        raise TvgradError(f"{name}s must be at least {FEWEST}, not {count}: intervals and figures need several")
    if not 0 < most < math.inf:
        raise TvgradError(f"most_{name} must be a finite number above 0, not {most:g}")
    return [round(most * (2 * place / (count - 1) - 1), 6) for place in range(count)]


def concept_grid(
    setting: ConceptSetting,
    rhos: Sequence[float],
    lambdas: Sequence[float],
    seeds: int,
    *,
    cells: str = "",
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Train and measure the whole grid.

    Args:
        setting: the conditions.
        rhos: overlaps.
        lambdas: coefficients of the second task vector.
        seeds: how many, at least two.
        cells: a folder that keeps finished blocks of seeds; empty keeps nothing.
        progress: called with the trainings and measurements done and their number.

    Returns:
        Columns seed, rho, lam, loss_1, loss_2, margin_1, margin_2, logit_1, logit_2; of the single models own_1 and
        own_2 (margins on their own tasks), cross (of the first model on the second task), logit_own_1, logit_own_2; and
        threshold: the smallest lambda >= 0 that solves task 2, NaN where there is none.

    Raises:
        TvgradError: there are fewer than two seeds, overlaps or coefficients, or an overlap is outside [-1, 1].
    """
    for name, number in (("seeds", seeds), ("rhos", len(rhos)), ("lambdas", len(lambdas))):
        if number < FEWEST:
            raise TvgradError(f"{name} must be at least {FEWEST}, not {number}: intervals and figures need several")
    for rho in rhos:
        pair_direction(setting.mix.axes(2, 0), rho)
    store = ResumableCache(cells, {**asdict(setting), "rhos": list(rhos), "lambdas": list(lambdas)})
    measure = partial(_block, setting, rhos, torch.tensor(lambdas))
    return pd.DataFrame(rows_of_seeds(store, "pairs", seeds, measure, progress))


def pair_tasks(setting: ConceptSetting, rhos: Sequence[float], seed: int) -> list[ConceptTask]:
    """List the trainings of a seed.

    Args:
        setting: the conditions.
        rhos: overlaps.
        seed: which.

    Returns:
        The first task, and a second one for every overlap.
    """
    mix: TokenMix = setting.mix
    axes = mix.axes(2, seed)
    second = [ConceptTask(seed, 2, mix.table(axes, pair_direction(axes, rho))) for rho in rhos]
    return [ConceptTask(seed, 1, mix.table(axes, axes[0])), *second]


def _block(
    setting: ConceptSetting, rhos: Sequence[float], lambdas: torch.Tensor, seeds: range, told: Progress
) -> tuple[Rows]:
    """Train the pairs of some seeds in one call, and measure their sums."""
    tasks = [task for seed in seeds for task in pair_tasks(setting, rhos, seed)]
    total = setting.steps + len(tasks)
    stack, vectors = trained_concepts(setting, tasks, lambda done, _: told(done, total))
    rows: Rows = []
    for place, seed in enumerate(seeds):
        first = place * (len(rhos) + 1)
        for number, rho in enumerate(rhos):
            second = first + 1 + number
            tables = tasks[first].table, tasks[second].table
            found = _sums(setting, stack, vectors, (first, second), tables, lambdas)
            rows += [{"seed": seed, "rho": rho, **row} for row in found]
            told(setting.steps + second, total)
    told(total, total)
    return (rows,)


def _sums(
    setting: ConceptSetting,
    stack: ModelStack,
    vectors: Stack,
    pair: tuple[int, int],
    tables: tuple[torch.Tensor, torch.Tensor],
    lambdas: torch.Tensor,
) -> Rows:
    """The measurements of one pair for every lambda."""
    base, one, two = chosen(stack.start, slice(pair[0], pair[0] + 1)), *(chosen(vectors, slice(i, i + 1)) for i in pair)
    # The two models themselves are measured along with their sums: the first is that of lambda 0.
    weights = added(base, (torch.tensor([*[1.0] * len(lambdas), 1.0, 0.0]), one),
                    (torch.tensor([*lambdas.tolist(), 0.0, 1.0]), two))  # fmt: skip
    measured = [margins(stack, weights, setting, table) for table in tables]
    losses = [mean_hinge(values).tolist() for values in measured]
    means = [values.mean(-1).tolist() for values in measured]
    change = weights["attention"] - base["attention"]
    logits = [(change @ table[0] @ table[0]).tolist() for table in tables]
    coarse = pd.DataFrame({"lam": lambdas.tolist(), "loss_2": losses[1][:-2]})
    between = finer(coarse, "lam", "loss_2")
    if between:
        sums = added(base, (torch.ones(len(between)), one), (torch.tensor(between), two))
        fine = mean_hinge(margins(stack, sums, setting, tables[1])).tolist()
        coarse = pd.DataFrame({"lam": between, "loss_2": fine})
    single = {
        "threshold": first_solved(coarse, "lam", "loss_2"),
        "own_1": means[0][-2],
        "own_2": means[1][-1],
        "cross": means[1][-2],
        "logit_own_1": logits[0][-2],
        "logit_own_2": logits[1][-1],
    }
    return [
        {
            "lam": round(lam, 6), "loss_1": losses[0][place], "loss_2": losses[1][place],
            "margin_1": means[0][place], "margin_2": means[1][place],
            "logit_1": logits[0][place], "logit_2": logits[1][place], **single,
        }
        for place, lam in enumerate(lambdas.tolist())
    ]  # fmt: skip
