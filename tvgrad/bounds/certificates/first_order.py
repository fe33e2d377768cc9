"""The length of the first-order prediction: the rule followed on the gradient at theta_0 alone."""

from __future__ import annotations

from fractions import Fraction

import torch

from tvgrad.bounds.certificates.vector_sums import decayed
from tvgrad.bounds.rounding.parameter_sum import BoundedVector
from tvgrad.numerics.floats import round_up
from tvgrad.update_rules.base import UpdateRule
from tvgrad.update_rules.rules import Adam, linear_rule

ROUNDING = 1e-12
"""Over the relative rounding of a rule's sums of rates, and of a norm."""


def kept_rates(rule: Adam, steps: int) -> list[Fraction]:
    """How much of each step is left at the end: its rate, times what decoupled decay leaves of the weights after it.

    Args:
        rule: Adam or AdamW.
        steps: how many.

    Returns:
        A number for each step, without rounding.
    """
    kept, found = Fraction(1), list[Fraction]()
    for rate in reversed(rule.rates(steps).tolist()):
        found.append(kept * Fraction(rate))
        kept *= 1 - Fraction(rate) * Fraction(rule.decoupled_decay)
    return found[::-1]


def first_order_norms(
    gradient: BoundedVector, theta: torch.Tensor, rule: UpdateRule, steps: int
) -> tuple[float, float]:
    """Measure the prediction, without what decoupled decay takes of theta_0; coupled decay is part of the gradient.

    Args:
        gradient: of the loss of all samples at theta_0.
        theta: theta_0, flat.
        rule: a linear rule, or Adam, whose prediction has the direction `g / (|g| + eps)`.
        steps: how many.

    Returns:
        The length as computed, and a lower bound of it.
    """
    first = decayed(gradient, theta, rule.coupled_decay)
    if isinstance(rule, Adam):
        sizes = first.value.abs()
        direction = sizes / (sizes + rule.eps)
        # the slope of x / (|x| + eps) is 1 / eps at most, and it never exceeds 1
        error = round_up(first.error / rule.eps)
        total, length = abs(float(sum(kept_rates(rule, steps)))), float(direction.norm())
        return total * length, max(0.0, total * (length * (1 - ROUNDING) - error) * (1 - ROUNDING))
    weight = float(linear_rule(rule).first_order_weights(steps)[steps])
    return weight * first.norm, weight * first.lower * (1 - ROUNDING)
