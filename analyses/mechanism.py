"""Why it works: margins are linear in the overlap of two conceptual tasks, attention logits quadratic.

The value weights of task i write mu_i into the neurons, so that `theta_0 + tau_1 + lambda tau_2` should have on task
1 the margin `m_1 + lambda rho m_2` and on task 2 `rho m_1 + lambda m_2`, m_i being that of model i on its own task. The
change of the attention weights lies in the span of the task's own tokens, mu_i and the v_j, so that the logits
`mu' (W - W_0) mu` are `w_1 + lambda rho^2 w_2` and `rho^2 w_1 + lambda w_2` up to rounding: a check of the code more
than of the theory. Deviations are in units of m_i and w_i, tested apart for lambda on either side of 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from .analysis_result import AnalysisResult
from .concept_figures import panels
from .concept_grid import LAMBDAS, MOST_LAMBDA, MOST_RHO, RHOS, SEEDS, concept_grid, evenly
from .concept_training import CONCEPTUAL, MIX, STEPS, Progress, setting_of
from .concept_verdicts import Closeness, closeness, overall
from .intervals import seed_mean

WIDTH, HEIGHT = 6.8, 3.0
DRAWN = (-0.8, -0.4, 0.0, 0.4, 0.8)
QUANTITIES = ("margin_1", "margin_2", "logit_1", "logit_2")
NAMES = {"margin": "margin", "logit": "attention logit"}


def analyse(
    target: str = CONCEPTUAL,
    rhos: int = RHOS,
    lambdas: int = LAMBDAS,
    seeds: int = SEEDS,
    most_rho: float = MOST_RHO,
    most_lambda: float = MOST_LAMBDA,
    mix: Sequence[int] = MIX,
    steps: int = STEPS,
    cells: str = "",
    progress: Progress | None = None,
) -> AnalysisResult:
    """Train pairs of tasks, and compare margins and logits of their sums with the predictions.

    Args:
        target: nothing but `conceptual`: the tasks are the study's own.
        rhos: how many overlaps.
        lambdas: how many coefficients.
        seeds: how many.
        most_rho: the largest overlap; the smallest is minus that.
        most_lambda: the largest coefficient; the smallest is minus that.
        mix: label-relevant, confusing and irrelevant tokens of a sample, irrelevant patterns, dimension.
        steps: of training.
        cells: a folder that keeps what is finished; empty keeps nothing.
        progress: called with what is done and how much there is.

    Returns:
        The result.
    """
    setting = setting_of(target, mix, steps)
    grid = predicted(
        concept_grid(
            setting,
            evenly(most_rho, rhos, "rho"),
            evenly(most_lambda, lambdas, "lambda"),
            seeds,
            cells=cells,
            progress=progress,
        )
    )
    sides = {"lambda >= 0": grid[grid["lam"] >= 0], "lambda < 0": grid[grid["lam"] < 0]}
    verdicts = {(name, side): _worst(part, name) for name in QUANTITIES for side, part in sides.items()}
    said = [f"{_words(name)}, {side}: {found.outcome}, {found}" for (name, side), found in verdicts.items()]
    return AnalysisResult(
        claim=(
            "Margins of theta_0 + tau_1 + lambda tau_2 are linear in the overlap, and attention logits quadratic, for "
            "all lambda."
        ),
        outcome=overall([found.outcome for found in verdicts.values()]),
        evidence=(
            "largest deviation over lambda, in units of a single model's, for each overlap: "
            + "; ".join(f"{_words(name)}, {side}: {found.outcome}" for (name, side), found in verdicts.items())
            + f"; conditions: {setting}, {seeds} seeds"
        ),
        table=_summary(grid),
        draw=partial(_draw, grid),
        verdicts=tuple(said),
    )


def predicted(grid: pd.DataFrame) -> pd.DataFrame:
    """Add predictions and deviations to the grid.

    Args:
        grid: of `concept_grid`.

    Returns:
        The grid with the columns Q_predicted and Q_deviation for each quantity Q; deviations are relative to the single
        model's.
    """
    made = grid.copy()
    for kind, own in (("margin", "own"), ("logit", "logit_own")):
        overlap = made["rho"] ** (1 if kind == "margin" else 2)
        first, second = made[f"{own}_1"], made[f"{own}_2"]
        made[f"{kind}_1_predicted"] = first + made["lam"] * overlap * second
        made[f"{kind}_2_predicted"] = overlap * first + made["lam"] * second
        for task in (1, 2):
            name = f"{kind}_{task}"
            made[f"{name}_deviation"] = (made[name] - made[f"{name}_predicted"]) / made[f"{own}_{task}"]
    return made


def _words(name: str) -> str:
    kind, task = name.split("_")
    return f"{NAMES[kind]} on task {task}"


def _worst(part: pd.DataFrame, name: str) -> Closeness:
    """The largest deviation over lambda of every seed, with its sign taken off."""
    largest = part.assign(size=part[f"{name}_deviation"].abs()).groupby(["rho", "seed"])["size"].max()
    return closeness({float(rho): values.tolist() for rho, values in largest.groupby("rho")})


def _summary(grid: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (rho, lam), part in grid.groupby(["rho", "lam"]):
        row = {"rho": rho, "lam": lam}
        for name in QUANTITIES:
            found = seed_mean(part[f"{name}_deviation"].tolist())
            row |= {name: part[name].mean(), f"{name}_predicted": part[f"{name}_predicted"].mean()}
            row |= {f"{name}_deviation": found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
        rows.append(row)
    return pd.DataFrame(rows)


def _draw(grid: pd.DataFrame, ax: Axes) -> None:
    axes = panels(ax, 2, WIDTH, HEIGHT, share=False)
    found = sorted(set(grid["rho"]))
    drawn = sorted({min(found, key=lambda rho, wanted=wanted: abs(rho - wanted)) for wanted in DRAWN})  # type: ignore[misc]
    colours = dict(zip(drawn, sns.color_palette("viridis", len(drawn)), strict=True))
    for panel, kind in zip(axes, ("margin", "logit"), strict=True):
        for rho in drawn:
            means = grid[grid["rho"] == rho].groupby("lam")[[f"{kind}_2", f"{kind}_2_predicted"]].mean()
            panel.plot(means.index, means[f"{kind}_2"], color=colours[rho], linewidth=1.4, label=f"{rho:g}")
            panel.plot(means.index, means[f"{kind}_2_predicted"], color=colours[rho], linewidth=0.9, linestyle=":")
        panel.set(xlabel=r"coefficient $\lambda$", ylabel=f"{NAMES[kind]} on task 2")
    axes[1].set_title(r"equal for $\rho$ and $-\rho$")
    handles, names = axes[0].get_legend_handles_labels()
    axes[0].figure.legend(
        handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=8,
        title=r"overlap $\rho$; dotted: predicted", title_fontsize=8,
    )  # fmt: skip
