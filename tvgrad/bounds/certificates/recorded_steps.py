"""Certificates after training: bounds for every step of recorded weights, by a tube round them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tvgrad.bounds.certificates.coefficients import NoCertificate, coefficients_of
from tvgrad.bounds.certificates.tubes import TubeBuilder
from tvgrad.bounds.derivatives.derivative_bounds import DerivativeBounds
from tvgrad.update_rules.base import UpdateRule


@dataclass(frozen=True)
class StepBound:
    """What a tube round recorded weights says of one of their steps.

    Attributes:
        error: an upper bound of `||theta_s - theta_0 - p_s||` for the exact iterate.
        deviation: an upper bound of the distance between the exact iterate and the recorded weights after s steps.
    """

    error: float
    deviation: float


def certify_steps(
    problem: DerivativeBounds, rule: UpdateRule | float, weights: Sequence[torch.Tensor]
) -> tuple[list[StepBound], str]:
    """Bound the error after each step of recorded weights, by one tube round all of them.

    Args:
        problem: the network with its data, at theta_0.
        rule: the rule that was followed, one step an epoch.
        weights: flat weights theta_0 .. theta_k, like `network.flat`.

    Returns:
        Bounds for the steps 1 .. k, or for fewer, and why there are no more.

    Raises:
        NoCertificate: the first weights are not the problem's, or the rule is not linear.
    """
    if not len(weights) or not torch.equal(weights[0].double(), problem.network.flat):
        raise NoCertificate("the recorded weights do not start at the problem's own: build it from the first of them")
    builder = TubeBuilder([problem], coefficients_of(rule, len(weights) - 1))
    tube, reason = builder.tube, ""
    try:
        builder.build(weights)
    except NoCertificate as why:
        reason = str(why)
    deviations = tube.deviations[1:] if reason else [*tube.deviations[1:], tube.end_deviation]
    found: list[StepBound] = []
    for step, deviation in enumerate(deviations, start=1):
        error, width = tube.error(step)
        if not math.isfinite(error.upper + width + deviation):
            return found, f"the tube grows beyond all bounds at step {step}"
        found.append(StepBound(error.upper + width, deviation))
    return found, reason
