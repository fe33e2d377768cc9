"""Subtracting a task vector: for which lambda one conceptual task is forgotten and the other one kept.

The statement as reproduced here (Li et al., arXiv 2504.10957): `theta_0 + tau_1 + lambda tau_2` forgets task 2 and
keeps task 1 where the tasks are irrelevant and `lambda <= 0`, and where they are contradictory and lambda lies between
`-1 / rho^2` and rho. The conditions are ours, and the verdict is on hinge losses, because accuracy hides how far a
margin is. A task is forgotten where its loss is within 0.1 of the loss 1 of a model that knows nothing, or above it,
and kept where its loss is at most 0.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from .analysis_result import AnalysisResult, outcome_of
from .concept_figures import DOTS, panels, phase_diagrams
from .concept_grid import LAMBDAS, MOST_LAMBDA, MOST_RHO, RHOS, SEEDS, concept_grid, evenly
from .concept_training import CONCEPTUAL, MIX, STEPS, Progress, setting_of
from .concept_verdicts import TOLERANCE, overall
from .intervals import seed_mean

WIDTH, HEIGHT = 6.4, 2.9
ROUNDING = 1e-6  # of lambda on the grid


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
    """Train pairs of tasks, and measure both tasks along multiples of the second task vector.

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
    judged = negated(grid)
    table = _summary(judged)
    parts = {
        "irrelevant tasks, lambda <= 0": judged[judged["rho"].abs() < ROUNDING],
        "contradictory tasks, lambda from -1 / rho^2 to rho": judged[judged["rho"] < -ROUNDING],
    }
    asked = {words: part[part["stated"]] for words, part in parts.items()}
    outcomes = [_outcome(part) for part in asked.values()]
    said = [f"{words}: {outcome}, {_counts(asked[words])}" for words, outcome in zip(asked, outcomes, strict=True)]
    near = {f"{words}, and not below -1": part[part["lam"] >= -1 - ROUNDING] for words, part in asked.items()}
    aligned = judged[(judged["rho"] > ROUNDING) & (judged["lam"] < 0)]
    return AnalysisResult(
        claim=(
            "theta_0 + tau_1 + lambda tau_2 forgets task 2 and keeps task 1 for lambda <= 0 where rho = 0, and for "
            "-1 / rho^2 <= lambda <= rho where rho < 0."
        ),
        outcome=overall(outcomes),
        evidence=(
            f"{'; '.join(said)}; lambda down to {-most_lambda:g}; conditions: {setting}, {seeds} seeds; forgotten "
            f"means a hinge loss of at least {1 - TOLERANCE:g}, kept one of at most {TOLERANCE:g}"
        ),
        table=table,
        draw=partial(_draw, grid, table),
        verdicts=(
            *(f"{words}: {_outcome(part)}, {_counts(part)}" for words, part in near.items()),
            f"aligned tasks, lambda < 0: task 1 is kept by {int(aligned['kept'].sum())} of {len(aligned)} models, and "
            f"task 2 forgotten by {int(aligned['forgotten'].sum())}; nothing is stated here",
        ),
    )


def negated(grid: pd.DataFrame) -> pd.DataFrame:
    """Judge every model of the grid.

    Args:
        grid: of `concept_grid`.

    Returns:
        The grid with the columns forgotten (task 2), kept (task 1), works (both) and stated (the statement says so).
    """
    judged = grid.copy()
    judged["forgotten"] = judged["loss_2"] >= 1 - TOLERANCE
    judged["kept"] = judged["loss_1"] <= TOLERANCE
    judged["works"] = judged["forgotten"] & judged["kept"]
    rho, lam = judged["rho"], judged["lam"]
    irrelevant, contradictory = rho.abs() < ROUNDING, rho < -ROUNDING
    inside = (lam <= rho + ROUNDING) & (lam * rho**2 >= -1 - ROUNDING)
    judged["stated"] = (irrelevant & (lam <= ROUNDING)) | (contradictory & inside)
    return judged


def _outcome(part: pd.DataFrame) -> str:
    return outcome_of(bool(part["works"].all())) if len(part) else "undecided"


def _counts(part: pd.DataFrame) -> str:
    return (
        f"{int(part['works'].sum())} of {len(part)} models (forgotten {int(part['forgotten'].sum())}, kept "
        f"{int(part['kept'].sum())})"
    )


def _summary(judged: pd.DataFrame) -> pd.DataFrame:
    """Of every overlap, the stretch of lambda round the best one in which both happen: mean over seeds, intervals."""
    rows = []
    for rho, of_rho in judged.groupby("rho"):
        stretches = [stretch(part) for _, part in of_rho.groupby("seed")]
        found = [one for one in stretches if one is not None]
        row = {"rho": rho, "seeds": len(stretches), "found": len(found)}
        stated = of_rho[of_rho["stated"]]["lam"]
        row |= {"stated_from": stated.min(), "stated_to": stated.max()}
        for place, name in enumerate(("from", "to")):
            ends = seed_mean([one[place] for one in found]) if len(found) > 1 else None
            row |= {f"works_{name}": ends.mean if ends else float("nan")}
            row |= {f"works_{name}_low": ends.low if ends else float("nan")}
            row |= {f"works_{name}_high": ends.high if ends else float("nan")}
        rows.append(row)
    return pd.DataFrame(rows)


def stretch(part: pd.DataFrame) -> tuple[float, float] | None:
    """Find the longest stretch of coefficients in which task 2 is forgotten and task 1 kept.

    Args:
        part: the rows of one pair of models.

    Returns:
        Its ends; None where there is none.
    """
    rows = part.sort_values("lam")
    number = (rows["works"] != rows["works"].shift()).cumsum()
    runs = [run["lam"] for _, run in rows[rows["works"]].groupby(number)]
    if not runs:
        return None
    longest = max(runs, key=len)
    return float(longest.min()), float(longest.max())


def _draw(grid: pd.DataFrame, table: pd.DataFrame, ax: Axes) -> None:
    axes = panels(ax, 2, WIDTH, HEIGHT)
    losses = [grid.pivot_table(name, "lam", "rho") for name in ("loss_1", "loss_2")]
    phase_diagrams(axes, losses, ["task 1, to be kept", "task 2, to be forgotten"], "hinge loss")
    low, high = grid["lam"].min(), grid["lam"].max()
    hostile = np.linspace(table["rho"].min(), -ROUNDING, 200)
    lower = np.maximum(-1 / hostile**2, low)
    everywhere = table[table["found"] == table["seeds"]]
    for panel in axes:
        panel.fill_between(hostile, lower, hostile, facecolor="none", edgecolor="black", linewidth=1, label="stated")
        for name in ("from", "to"):
            panel.plot(
                everywhere["rho"], everywhere[f"works_{name}"], linestyle="none", color="white", **DOTS,
                label="ends of where it works" if name == "from" else None,
            )  # fmt: skip
        panel.set_ylim(low, high)
    handles, names = axes[0].get_legend_handles_labels()
    place = {"loc": "outside lower center", "ncols": 2, "frameon": True, "facecolor": "0.75", "fontsize": 8}
    axes[0].figure.legend(handles, names, **place)
