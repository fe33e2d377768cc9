"""Intervals of a number made of pairs, where pairs share tasks: the jackknife that leaves out a task at a time.

Pairs are no independent samples: all that have one task in common share what is peculiar to it. What counts is the
number of tasks. Tasks come in groups that share nothing (other data, say), whose variances add.

A share of all pairs that no left out task changes has a variance of 0, as if it were known exactly. So two pairs that
say the opposite of each other are added to the variance (Agresti and Min, Biometrics 57, 2001).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from .intervals import CONFIDENCE, PSEUDO_SAMPLES, Interval


def without_task(table: pd.DataFrame, task: str) -> pd.DataFrame:
    """Leave out the pairs of one task.

    Args:
        table: one row a pair, with the columns task_a and task_b.
        task: its name.

    Returns:
        The other rows.
    """
    return table[(table["task_a"] != task) & (table["task_b"] != task)]


def jackknife(
    table: pd.DataFrame,
    statistic: Callable[[pd.DataFrame], float],
    groups: Mapping[str, Sequence[str]],
    least: float = -math.inf,
    most: float = math.inf,
    *,
    of_one_pair: float = 0.0,
    without: Callable[[pd.DataFrame, str], pd.DataFrame] = without_task,
) -> Interval:
    """Estimate a statistic of pairs and its interval over new tasks.

    Args:
        table: one row a pair, with the columns task_a and task_b.
        statistic: a number of such a table.
        groups: names of independent groups -> their tasks, at least two each.
        least: the statistic cannot be lower.
        most: the statistic cannot be higher.
        of_one_pair: how much of the statistic one pair decides where it is a share of all pairs; 0 where it is none.
        without: leaves the rows of a task out of a table, where its columns are others.

    Returns:
        The statistic with Student's 95 % interval; its ends are the bounds where a statistic is not defined.
    """
    estimate = statistic(table)
    variance, freedom = PSEUDO_SAMPLES * of_one_pair**2, 0
    for tasks in groups.values():
        left = np.array([statistic(without(table, task)) for task in tasks])
        variance += (len(tasks) - 1) / len(tasks) * float(((left - left.mean()) ** 2).sum())
        freedom += len(tasks) - 1
    if not math.isfinite(variance) or not freedom:
        return Interval(estimate, least, most)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(variance)
    return Interval(estimate, max(estimate - half, least), min(estimate + half, most))
