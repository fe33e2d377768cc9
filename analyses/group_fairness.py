"""Measures of fairness between two groups, each as a mean over samples, so that intervals of means apply.

Answers are 0 or 1, y is the truth, g the group. *Demographic parity* asks how much more often group 0 is answered 1
than group 1; *equalised odds* asks the same of the samples with y = 1, and of those with y = 0, and takes the larger
difference. Both are 0 for a model that treats the groups alike.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tvgrad.errors import TvgradError

Array = NDArray[np.float64]


def parity_values(answers: Array, groups: Array) -> Array:
    """Share of answers 1 in group 0 minus that in group 1, linearised.

    Args:
        answers: 0 or 1, shape (..., samples).
        groups: 0 or 1, shape (samples,).

    Returns:
        Values whose mean over samples is the difference, and whose spread is that of its estimate for groups of these
        sizes.

    Raises:
        TvgradError: a group has no sample.
    """  # noqa: DOC502 - raised by what is called
    return _difference(answers, groups, np.ones(len(groups), dtype=bool))


def odds_values(answers: Array, groups: Array, targets: Array) -> tuple[Array, Array]:
    """The same among the samples with y = 1 (true positives) and among those with y = 0 (false positives).

    Args:
        answers: 0 or 1, shape (..., samples).
        groups: 0 or 1, shape (samples,).
        targets: y, likewise.

    Returns:
        Values of both differences.

    Raises:
        TvgradError: a group has no sample of a target.
    """  # noqa: DOC502 - raised by what is called
    return _difference(answers, groups, targets == 1), _difference(answers, groups, targets == 0)


def _difference(answers: Array, groups: Array, counted: NDArray[np.bool_]) -> Array:
    values = np.zeros(answers.shape)
    total = np.zeros(answers.shape[:-1])
    for group, sign in ((0, 1.0), (1, -1.0)):
        inside = counted & (groups == group)
        if not inside.any():
            raise TvgradError(f"group {group} has no sample that a difference can be counted on: take more samples")
        mean = answers[..., inside].mean(axis=-1)
        total += sign * mean
        values[..., inside] = sign * (answers[..., inside] - mean[..., None]) * len(groups) / inside.sum()
    return np.asarray(values + total[..., None])


def absolute(values: Array) -> Array:
    """Values of the absolute difference, by the sign of the estimate over all seeds.

    Args:
        values: of a difference, shape (seeds, samples).

    Returns:
        They, or minus they. Near a difference of 0 the estimate is too large, as that of every absolute value.
    """
    return values if values.mean() >= 0 else -values


def larger(first: Array, second: Array) -> Array:
    """Values of the larger of two absolute differences, the one whose estimate is larger.

    Args:
        first: shape (seeds, samples).
        second: likewise.

    Returns:
        One of them, made absolute.
    """
    return max(absolute(first), absolute(second), key=lambda values: float(values.mean()))
