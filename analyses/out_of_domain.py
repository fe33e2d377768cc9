"""Adding task vectors for a task that none of them was trained on: a mixture of conceptual tasks.

The mixture is `mu' = sum gamma_i mu_i + kappa mu_perp`, the tasks mu_i are orthogonal. The statement as reproduced here
(Li et al., arXiv 2504.10957): `theta_0 + sum lambda_i tau_i` solves it when `sum lambda_i gamma_i >= 1` and
`sum lambda_i gamma_i^2 >= 1`. Coefficients are chosen from gamma: `lambda_i = s gamma_i / |gamma|^2`, which makes the
first sum s, so that s = 1 is the threshold of the first condition. Whether the second one is needed is counted. With
measured margins m_i of the models on the mixture the threshold is 1 over their sum with the coefficients of s = 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes

from tvgrad.errors import TvgradError
from tvgrad.recipes.conceptual import mixture_direction

from .analysis_result import AnalysisResult, outcome_of
from .concept_grid import FEWEST
from .concept_training import (
    CONCEPTUAL,
    MIX,
    STEPS,
    ConceptSetting,
    ConceptTask,
    Progress,
    margins,
    mean_hinge,
    setting_of,
    trained_concepts,
)
from .concept_verdicts import SOLVED, TOLERANCE, closeness, first_solved, overall
from .intervals import seed_mean
from .model_stack import ModelStack, Stack, added, chosen
from .resumable_cache import ResumableCache, Rows
from .seed_blocks import rows_of_seeds

MIXTURES = ("0.9:0:0", "0.6:0.6:0", "0.5:0.5:0.5", "0.6:-0.6:0", "0.7:-0.5:0.3", "0.3:0.3:0.3")
SCALES = 41  # from 0 to MOST
MOST = 2.0
TASKS = 3


def analyse(
    target: str = CONCEPTUAL,
    mixtures: Sequence[str] = MIXTURES,
    scales: int = SCALES,
    seeds: int = 10,
    mix: Sequence[int] = MIX,
    steps: int = STEPS,
    cells: str = "",
    progress: Progress | None = None,
) -> AnalysisResult:
    """Train three orthogonal tasks, and add their vectors for mixtures of them.

    Args:
        target: nothing but `conceptual`: the tasks are the study's own.
        mixtures: of each, gamma_1:gamma_2:gamma_3, a vector of norm at most 1.
        scales: how many values of s between 0 and 2.
        seeds: how many, at least two.
        mix: label-relevant, confusing and irrelevant tokens of a sample, irrelevant patterns, dimension.
        steps: of training.
        cells: a folder that keeps what is finished; empty keeps nothing.
        progress: called with the steps done and their number.

    Returns:
        The result.

    Raises:
        TvgradError: a mixture is not three numbers of norm at most 1, or there are fewer than two seeds or scales.
    """
    setting = setting_of(target, mix, steps)
    if min(seeds, scales) < FEWEST:
        raise TvgradError(f"seeds and scales must be at least {FEWEST}, not {seeds} and {scales}")
    gammas = {text: read_mixture(text) for text in mixtures}
    for wanted in gammas.values():
        mixture_direction(setting.mix.axes(TASKS + 1, 0), wanted)
    store = ResumableCache(cells, {"setting": str(setting), "mixtures": list(mixtures), "scales": scales})
    measure = partial(_measured, setting, gammas, scales)
    grid = pd.DataFrame(rows_of_seeds(store, "mixtures", seeds, measure, progress))
    found = _thresholds(grid)
    table = _summary(found, gammas)
    moved = closeness({place: part["threshold"].sub(1).tolist() for place, part in _numbered(found)})
    corrected = closeness({place: part["from_margins"].tolist() for place, part in _numbered(found)})
    after = grid[grid["scale"] >= 1 + TOLERANCE]
    weak = after[after["square_sum"] < 1]
    solved = [int((part["loss"] <= SOLVED).sum()) for part in (after, weak)]
    stays = outcome_of(solved[0] == len(after))
    return AnalysisResult(
        claim="theta_0 + sum lambda_i tau_i solves a mixture of orthogonal tasks from sum lambda_i gamma_i = 1 on.",
        outcome=overall([moved.outcome, stays]),
        evidence=(
            f"threshold of sum lambda_i gamma_i minus 1: {moved}; conditions: {setting}, {seeds} seeds; solved means a "
            f"hinge loss of at most {SOLVED:g}"
        ),
        table=table,
        draw=partial(_draw, grid),
        verdicts=(
            f"solved wherever the sum is at least {1 + TOLERANCE:g}: {stays}, {solved[0]} of {len(after)} models",
            f"the threshold is that of the measured margins: {corrected.outcome}, {corrected}",
            f"sum lambda_i gamma_i^2 >= 1 is not needed: {outcome_of(bool(len(weak)) and solved[1] == len(weak))}, "
            f"{solved[1]} of {len(weak)} models with a smaller sum are solved",
        ),
    )


def read_mixture(text: str) -> list[float]:
    """Read the gammas of a mixture.

    Args:
        text: three numbers with colons between them.

    Returns:
        The numbers, not all 0.

    Raises:
        TvgradError: they are not.
    """
    try:
        gammas = [float(part) for part in text.split(":")]
    except ValueError:
        gammas = []
    if len(gammas) != TASKS or not any(gammas) or not all(map(math.isfinite, gammas)):
        raise TvgradError(f"{text!r} is no mixture of {TASKS} tasks: give {TASKS} numbers, as in 0.6:-0.6:0")
    return gammas


def _measured(
    setting: ConceptSetting, gammas: dict[str, list[float]], scales: int, seeds: range, progress: Progress
) -> tuple[Rows]:
    axes = [setting.mix.axes(TASKS + 1, seed) for seed in seeds]
    tasks = [
        ConceptTask(seed, number + 1, setting.mix.table(turned, turned[number]))
        for seed, turned in zip(seeds, axes, strict=True)
        for number in range(TASKS)
    ]
    stack, vectors = trained_concepts(setting, tasks, progress)
    rows: Rows = []
    for place, seed in enumerate(seeds):
        mine = slice(place * TASKS, (place + 1) * TASKS)
        base, three = chosen(stack.start, slice(place * TASKS, place * TASKS + 1)), chosen(vectors, mine)
        for text, gamma in gammas.items():
            table = setting.mix.table(axes[place], mixture_direction(axes[place], gamma))
            found = _along(setting, stack, base, three, table, gamma, scales)
            rows += [{"mixture": text, "seed": seed, **row} for row in found]
    return (rows,)


def _along(
    setting: ConceptSetting,
    stack: ModelStack,
    base: Stack,
    three: Stack,
    table: torch.Tensor,
    gamma: list[float],
    scales: int,
) -> Rows:
    """One seed and mixture: every scale, and the margins of the single models."""
    square = sum(one**2 for one in gamma)
    direction = [one / square for one in gamma]
    scale = torch.linspace(0, MOST, scales)
    coefficients = torch.cat([scale[:, None] * torch.tensor(direction), torch.eye(TASKS)])
    terms = [(coefficients[:, place], chosen(three, slice(place, place + 1))) for place in range(TASKS)]
    weights = added(base, *terms)
    values = margins(stack, weights, setting, table)
    losses, means = mean_hinge(values).tolist(), values.mean(-1).tolist()
    unit = sum(one * mean for one, mean in zip(direction, means[-TASKS:], strict=True))
    logits = ((weights["attention"] - base["attention"]) @ table[0] @ table[0]).tolist()
    return [
        {
            "scale": round(float(one), 6), "square_sum": float(one) * sum(one**3 for one in gamma) / square,
            "loss": losses[place], "margin": means[place], "logit": logits[place], "predicted": 1 / unit,
        }
        for place, one in enumerate(scale)
    ]  # fmt: skip


def _thresholds(grid: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (mixture, seed), part in grid.groupby(["mixture", "seed"], sort=False):
        threshold, predicted = first_solved(part, "scale", "loss"), float(part["predicted"].iloc[0])
        rows.append({
            "mixture": mixture, "seed": seed, "threshold": threshold, "predicted": predicted,
            "from_margins": threshold - predicted,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _numbered(found: pd.DataFrame) -> list[tuple[float, pd.DataFrame]]:
    return [(float(place), part) for place, (_, part) in enumerate(found.groupby("mixture", sort=False))]


def _summary(found: pd.DataFrame, gammas: dict[str, list[float]]) -> pd.DataFrame:
    rows = []
    for mixture, part in found.groupby("mixture", sort=False):
        gamma = gammas[str(mixture)]
        threshold, moved = seed_mean(part["threshold"].tolist()), seed_mean(part["from_margins"].tolist())
        square = sum(one**2 for one in gamma)
        rows.append({
            "mixture": mixture, "kappa": max(0.0, 1 - square) ** 0.5,
            "threshold": threshold.mean, "threshold_low": threshold.low, "threshold_high": threshold.high,
            "square_sum_at_1": sum(one**3 for one in gamma) / square, "predicted": part["predicted"].mean(),
            "from_margins": moved.mean, "from_margins_low": moved.low, "from_margins_high": moved.high,
            "seeds": len(part),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _draw(grid: pd.DataFrame, ax: Axes) -> None:
    sns.lineplot(
        grid.rename(columns={"mixture": "gamma"}), x="scale", y="loss", hue="gamma", style="gamma",
        palette="colorblind", errorbar=("pi", 100), linewidth=1.3, ax=ax,
    )  # fmt: skip
    ax.axvline(1, color="0.3", linewidth=0.8, linestyle=":")
    ax.set(xlabel=r"$\sum_i \lambda_i \gamma_i$", ylabel="hinge loss on the mixture")
    sns.move_legend(ax, "upper right", title=r"$\gamma_1:\gamma_2:\gamma_3$", frameon=False, fontsize=8)
