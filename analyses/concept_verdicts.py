"""Verdicts of the laboratory: quantities over seeds against a margin, several of them at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from .analysis_result import HOLDS, outcome_of
from .intervals import Interval, holm, seed_mean

LEVEL = 0.05
TOLERANCE = 0.1  # in lambda, in units of a single model's margin or logit, and in hinge loss
FINER = 20  # steps that the interval of the grid with a threshold in it is cut into
SOLVED = 0.01  # a task with at most this hinge loss is solved; the pretrained model's is about 1


@dataclass(frozen=True)
class Closeness:
    """Whether means over seeds are within a margin of 0.

    Attributes:
        outcome: holds where every 95 % interval lies within the margin, fails where a mean is shown to lie outside
            (p values corrected by Holm's method), else undecided.
        intervals: case -> the mean over seeds and its interval.
        margin: that was tested.
    """

    outcome: str
    intervals: dict[float, Interval]
    margin: float

    def __str__(self) -> str:
        worst = max(self.intervals.values(), key=lambda found: max(abs(found.low), abs(found.high)))
        inside = sum(max(abs(found.low), abs(found.high)) <= self.margin for found in self.intervals.values())
        return (
            f"{inside} of {len(self.intervals)} intervals lie within {self.margin:g}; the farthest is "
            f"{worst.mean:+.3f} [{worst.low:+.3f}, {worst.high:+.3f}]"
        )


def closeness(deviations: Mapping[float, Sequence[float]], margin: float = TOLERANCE) -> Closeness:
    """Test whether several deviations are all within a margin.

    Args:
        deviations: case -> one deviation a seed, at least two; a value that is missing is infinitely far.
        margin: above 0.

    Returns:
        The verdict. That all are within needs no correction, because each has to be shown.
    """
    arrays = {case: np.asarray(values, dtype=np.float64) for case, values in deviations.items()}
    whole = {case: values for case, values in arrays.items() if np.isfinite(values).all()}
    intervals = {
        case: seed_mean(values) if case in whole else Interval(math.inf, -math.inf, math.inf)
        for case, values in arrays.items()
    }
    within = all(max(abs(found.low), abs(found.high)) <= margin for found in intervals.values())
    outside = any(p_value <= LEVEL for p_value in holm([_beyond(values, margin) for values in whole.values()]))
    return Closeness(outcome_of(within, outside), intervals, margin)


def _beyond(values: np.ndarray[tuple[int], np.dtype[np.float64]], margin: float) -> float:
    """The p value of `the mean is within the margin`."""
    distance = abs(float(values.mean())) - margin
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    if error == 0:
        return 0.0 if distance > 0 else 1.0
    return float(stats.t.sf(distance / error, len(values) - 1))


def overall(outcomes: Sequence[str]) -> str:
    """Put the outcomes of a claim's parts together.

    Args:
        outcomes: of the parts.

    Returns:
        holds where all hold, fails where one fails, else undecided.
    """
    return outcome_of(all(one == HOLDS for one in outcomes), any(one == "fails" for one in outcomes))


def first_solved(table: pd.DataFrame, coefficient: str, loss: str) -> float:
    """The smallest coefficient of at least 0 at which a task is solved.

    Args:
        table: one pair of models: the rows of all coefficients.
        coefficient: its column.
        loss: the column of the hinge loss.

    Returns:
        The coefficient, interpolated between two of the grid; NaN where none solves it.
    """
    rows = table[table[coefficient] >= 0].sort_values(coefficient)
    places, losses = rows[coefficient].to_numpy(), rows[loss].to_numpy()
    if not (losses <= SOLVED).any():
        return math.nan
    first = int((losses <= SOLVED).argmax())
    if first == 0:
        return float(places[0])
    share = (losses[first - 1] - SOLVED) / (losses[first - 1] - losses[first])
    return float(places[first - 1] + share * (places[first] - places[first - 1]))


def finer(table: pd.DataFrame, coefficient: str, loss: str) -> list[float]:
    """Tell which coefficients to measure so that `first_solved` has a finer grid.

    Args:
        table: one pair of models: the rows of all coefficients.
        coefficient: its column.
        loss: the column of the hinge loss.

    Returns:
        `FINER` + 1 coefficients, from the last unsolved one to the first solved; empty where there are no such two.
    """
    rows = table[table[coefficient] >= 0].sort_values(coefficient)
    places, solved = rows[coefficient].tolist(), (rows[loss] <= SOLVED).tolist()
    if True not in solved or solved[0]:
        return []
    first = solved.index(True)
    low, high = places[first - 1], places[first]
    return [low + (high - low) * step / FINER for step in range(FINER + 1)]
