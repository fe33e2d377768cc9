"""The length of the first-order prediction: the rule followed on the gradient at theta_0 alone."""

from __future__ import annotations

from tvgrad.bounds.rounding.parameter_sum import BoundedVector
from tvgrad.numerics.floats import round_up
from tvgrad.update_rules.base import UpdateRule
from tvgrad.update_rules.rules import Adam, linear_rule

ROUNDING = 1e-12
"""Over the relative rounding of a rule's sums of rates, and of a norm."""


def first_order_norms(gradient: BoundedVector, rule: UpdateRule, steps: int) -> tuple[float, float]:
    """Measure the prediction, without the part of decay.

    Args:
        gradient: of all samples at theta_0.
        rule: a linear rule, or Adam, whose prediction has the direction `g / (|g| + eps)`.
        steps: how many.

    Returns:
        The length as computed, and a lower bound of it.
    """
    if isinstance(rule, Adam):
        sizes = gradient.value.abs()
        direction = sizes / (sizes + rule.eps)
        # the slope of x / (|x| + eps) is 1 / eps at most, and it never exceeds 1
        error = round_up(gradient.error / rule.eps)
        total, length = float(rule.rates(steps).sum()), float(direction.norm())
        return total * length, max(0.0, total * (length * (1 - ROUNDING) - error) * (1 - ROUNDING))
    weight = float(linear_rule(rule).first_order_weights(steps)[steps])
    return weight * gradient.norm, weight * gradient.lower * (1 - ROUNDING)
