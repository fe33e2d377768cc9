"""Adding a task vector: from which lambda both of two conceptual tasks are solved, and whether there is one at all.

The statement as reproduced here (Li et al., arXiv 2504.10957): `theta_0 + tau_1 + lambda tau_2` solves both tasks when
`rho >= 0` and `lambda >= 1 - rho`, and for contradictory tasks no lambda does. The conditions are ours. The line
assumes that margins are linear in the overlap and that a trained margin is 1; with the measured margins m_2 of the
second model on its task and c of the first model on it, the same argument gives `(1 - c) / m_2`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pandas as pd
from matplotlib.axes import Axes

from .analysis_result import AnalysisResult, outcome_of
from .concept_figures import DOTS, panels, phase_diagrams
from .concept_grid import LAMBDAS, MOST_LAMBDA, MOST_RHO, RHOS, SEEDS, concept_grid, evenly
from .concept_training import CONCEPTUAL, MIX, STEPS, Progress, setting_of
from .concept_verdicts import SOLVED, TOLERANCE, closeness, overall
from .intervals import seed_mean

WIDTH, HEIGHT = 7.6, 2.7


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
    """Train pairs of tasks, add their task vectors, and compare the threshold in lambda with 1 - rho.

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
    grid = concept_grid(
        setting,
        evenly(most_rho, rhos, "rho"),
        evenly(most_lambda, lambdas, "lambda"),
        seeds,
        cells=cells,
        progress=progress,
    )
    found = thresholds(grid)
    table = _summary(found)
    line = closeness({float(rho): part["deviation"].tolist() for rho, part in found.groupby("rho")})
    corrected = closeness({float(rho): part["from_margins"].tolist() for rho, part in found.groupby("rho")})
    friendly, hostile = found[found["rho"] >= 0], found[found["rho"] < 0]
    late = int((friendly["unsolved_beyond"] > 0).sum())
    both = int((hostile["both"] > 0).sum())
    threshold = closeness({float(rho): part["deviation"].tolist() for rho, part in friendly.groupby("rho")})
    solved, none = outcome_of(late == 0), outcome_of(both == 0)
    return AnalysisResult(
        claim=(
            "theta_0 + tau_1 + lambda tau_2 solves both tasks from lambda = 1 - rho on where rho >= 0, and for no "
            "lambda where rho < 0."
        ),
        outcome=overall([threshold.outcome, solved, none]),
        evidence=(
            f"threshold minus (1 - rho) for rho >= 0: {threshold}; conditions: {setting}, {seeds} seeds; solved means "
            f"a hinge loss of at most {SOLVED:g}"
        ),
        table=table,
        draw=partial(_draw, grid, table),
        verdicts=(
            f"rho >= 0: both tasks stay solved from 1 - rho + {TOLERANCE:g} on: {solved}, {len(friendly) - late} of "
            f"{len(friendly)} pairs",
            f"rho < 0: no lambda up to {most_lambda:g} solves both: {none}, {len(hostile) - both} of {len(hostile)} "
            "pairs",
            f"task 2 alone, all rho: its threshold is 1 - rho: {line.outcome}, {line}",
            f"task 2 alone, all rho: its threshold is that of the measured margins: {corrected.outcome}, {corrected}",
        ),
    )


def thresholds(grid: pd.DataFrame) -> pd.DataFrame:
    """Find what every pair of models needs.

    Args:
        grid: of `concept_grid`.

    Returns:
        Columns rho, seed, threshold (of task 2 alone, in lambda), predicted (from the measured margins), deviation
        (from 1 - rho), from_margins (deviation from predicted), both (coefficients that solve both tasks), and
        unsolved_beyond (coefficients from 1 - rho + 0.1 on that do not).
    """
    rows = []
    for (rho, seed), part in grid.groupby(["rho", "seed"]):
        one = part.iloc[0]
        threshold = float(one["threshold"])
        predicted = (1 - one["cross"]) / one["own_2"]
        both = (part["loss_1"] <= SOLVED) & (part["loss_2"] <= SOLVED)
        rows.append({
            "rho": rho, "seed": seed, "threshold": threshold, "predicted": predicted,
            "deviation": threshold - (1 - rho), "from_margins": threshold - predicted, "both": int(both.sum()),
            "unsolved_beyond": int((~both & (part["lam"] >= 1 - rho + TOLERANCE)).sum()),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _summary(found: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for rho, part in found.groupby("rho"):
        threshold, moved = seed_mean(part["threshold"].tolist()), seed_mean(part["from_margins"].tolist())
        rows.append({
            "rho": rho, "line": 1 - float(rho),  # type: ignore[arg-type]
            "threshold": threshold.mean, "threshold_low": threshold.low, "threshold_high": threshold.high,
            "predicted": part["predicted"].mean(),
            "from_margins": moved.mean, "from_margins_low": moved.low, "from_margins_high": moved.high,
            "solved_both": int((part["both"] > 0).sum()), "seeds": len(part),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _draw(grid: pd.DataFrame, table: pd.DataFrame, ax: Axes) -> None:
    axes = panels(ax, 3, WIDTH, HEIGHT)
    losses = [grid.pivot_table(name, "lam", "rho") for name in ("loss_1", "loss_2")]
    larger = grid.assign(larger=grid[["loss_1", "loss_2"]].max(axis=1)).pivot_table("larger", "lam", "rho")
    phase_diagrams(axes, [*losses, larger], ["task 1", "task 2", "the worse of both"], "hinge loss")
    low, high = grid["lam"].min(), grid["lam"].max()
    for panel in axes[1:]:
        panel.plot(table["rho"], table["line"], color="black", linewidth=1, label=r"$1 - \rho$")
        panel.errorbar(
            table["rho"],
            table["threshold"],
            yerr=[table["threshold"] - table["threshold_low"], table["threshold_high"] - table["threshold"]],
            linestyle="none", color="white", ecolor="black", elinewidth=0.8, **DOTS, label="threshold of task 2",
        )  # fmt: skip
        panel.set_ylim(low, high)
    handles, names = axes[1].get_legend_handles_labels()
    axes[1].figure.legend(
        handles, names, loc="outside lower center", ncols=2, frameon=True, facecolor="0.75", fontsize=8
    )
