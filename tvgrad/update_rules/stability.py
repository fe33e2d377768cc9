"""Growth: how fast a linear rule multiplies a deviation along one eigenvector of the Hessian.

Along an eigenvector with eigenvalue lambda, a step is a 2 x 2 matrix on (deviation, momentum buffer). Its spectral
radius is the growth a step; above 1 the quadratic model diverges. For plain gradient descent it is `|1 - eta lambda|`.
"""

from __future__ import annotations

import math

import numpy as np

from tvgrad.update_rules.linear import LinearRule


def step_growth(rule: LinearRule, eigenvalue: float, rate: float) -> float:
    """The factor by which one step multiplies a deviation along an eigenvector, in the long run.

    Args:
        rule: the rule; its own rate is not read.
        eigenvalue: lambda, of the Hessian without decay.
        rate: eta.

    Returns:
        The spectral radius of the step's matrix.
    """
    average, curvature = rule.average, eigenvalue + rule.coupled_decay
    kept = 1 - rate * rule.decoupled_decay
    mu, taken = average.momentum, 1 - average.dampening
    if mu == 0:
        return abs(kept - rate * curvature)
    # buffer' = mu buffer + (1 - d) curvature x;  x' = kept x - eta direction, direction = g + mu buffer' or buffer'
    weight = mu if average.lookahead else 1.0
    own = curvature if average.lookahead else 0.0
    matrix = np.array([
        [kept - rate * (own + weight * taken * curvature), -rate * weight * mu],
        [taken * curvature, mu],
    ])
    return float(np.abs(np.linalg.eigvals(matrix)).max())


def growth_factor(rule: LinearRule, eigenvalues: tuple[float, ...], epochs: int) -> float:
    """Estimate how much the quadratic model multiplies a deviation in all steps: `max |1 - eta lambda|^k`.

    Args:
        rule: the rule, with its rate or schedule.
        eigenvalues: estimated ends of the spectrum.
        epochs: k.

    Returns:
        The largest product of step growths over the eigenvalues; infinite where it overflows.
    """
    found = []
    for eigenvalue in eigenvalues:
        logs = [math.log(max(step_growth(rule, eigenvalue, rate), 1e-300)) for rate in rule.rates(epochs)]
        total = math.fsum(logs)
        found.append(math.exp(total) if total < 700 else math.inf)
    return max(found)


def stability_limit(rule: LinearRule, eigenvalue: float) -> float:
    """The learning rate above which the quadratic model diverges along an eigenvector.

    Closed forms: 2/lambda for gradient descent, 2 (1 + mu)/lambda for heavy ball, 2 (1 + mu)/((1 + 2 mu) lambda) for
    Nesterov momentum; with dampening, heavy ball's limit is divided by (1 - d). Coupled decay adds to lambda.

    Args:
        rule: the rule; its own rate is not read.
        eigenvalue: estimate of the largest eigenvalue.

    Returns:
        The limit; infinite where the eigenvalue (with decay) is not positive or no gradient is taken in.
    """
    average = rule.average
    mu, decay = average.momentum, rule.decoupled_decay
    curvature = eigenvalue + rule.coupled_decay
    # Where the characteristic polynomial of the step's matrix vanishes at -1.
    pull = (1 + 2 * mu if average.lookahead else 1 - average.dampening) * curvature + (1 + mu) * decay
    return 2 * (1 + mu) / pull if pull > 0 and curvature > 0 else math.inf
