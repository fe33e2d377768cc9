"""HeldOutCurve: what a merge scores on samples that nothing was trained on, at coefficients along it.

The coefficient of least loss and that of most right answers are two different things. The loss goes on falling while
right answers become surer, and a metric has no gradient to tell where it turns. So scores are measured, a forward pass
over the held-out samples each; before training along the sum of the *forecast* task vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tvgrad.errors import TvgradError
from tvgrad.results import Shown
from tvgrad.vectors.algebra import add_scaled, combination
from tvgrad.vectors.parameters import Weights

STEPS = 15
FURTHEST = 1.5
"""Scores are measured up to so many times the coefficient that the losses tell."""

LEAST_FURTHEST = 1.0
"""Or up to this, where they tell a smaller one."""

Score = Callable[[Weights], float]


@dataclass(frozen=True, repr=False)
class HeldOutCurve(Shown):
    """Scores along a merge; exact on the samples given.

    Attributes:
        coefficients: that were tried, from 0.
        scores: the mean over tasks at each; higher is better.
        coefficient: with the best score; of equal ones the smallest.
    """

    coefficients: tuple[float, ...]
    scores: tuple[float, ...]
    coefficient: float

    @property
    def best(self) -> float:
        """The score at `coefficient`."""
        return self.scores[self.coefficients.index(self.coefficient)]


def held_out_curve(scores: Sequence[Score], start: Weights, vector: Weights, told: float) -> HeldOutCurve:
    """Measure scores along a vector.

    Args:
        scores: one a task: weights -> how good they are on held-out samples, higher is better.
        start: the pretrained weights.
        vector: the sum of the task vectors.
        told: the coefficient that losses tell; it sets how far scores are measured.

    Returns:
        The curve.

    Raises:
        TvgradError: a score at the pretrained weights is not finite.

    Example:
        >>> import torch
        >>> from tvgrad.theory.held_out import held_out_curve
        >>> start, vector = {"w": torch.zeros(1).double()}, {"w": torch.ones(1).double()}
        >>> held_out_curve([lambda at: -abs(float(at["w"]) - 0.6)], start, vector, told=2.0).coefficient
        0.6
    """
    furthest = max(FURTHEST * told, LEAST_FURTHEST)
    tried = tuple(round(furthest * step / STEPS, 12) for step in range(STEPS + 1))
    found = []
    for a in tried:
        weights = combination((1.0, start))
        add_scaled(weights, vector, a)
        found.append(float(np.mean([score(weights) for score in scores])))
    if not math.isfinite(found[0]):
        raise TvgradError("a score is not finite at the pretrained weights: check the recipe's metric and its samples")
    best = max(
        range(len(tried)), key=lambda place: (found[place] if math.isfinite(found[place]) else -math.inf, -place)
    )
    return HeldOutCurve(tried, tuple(found), tried[best])
