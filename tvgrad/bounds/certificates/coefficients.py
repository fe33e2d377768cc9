"""What a certificate needs to know of an update rule: the weight of every gradient in every step.

For every linear rule `theta_s - theta_0 = -shrunk_s theta_0 - sum_{e<s} c[s,e] g(theta_e)` with c >= 0, exactly.
Coupled decay adds `lambda theta` to every gradient: the same rule on `L + lambda/2 ||theta||^2`, whose Hessian is
`H + lambda I` and whose third derivative is that of L. The first-order part is `p_s = -shrunk_s theta_0 - S_s g_0`;
what a certificate bounds is the norm of `tau_k - p_k = -sum_e c[k,e] (g_e - g_0)`, the error of that prediction.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from tvgrad.errors import TvgradError
from tvgrad.numerics.floats import gamma
from tvgrad.update_rules.base import Array, UpdateRule
from tvgrad.update_rules.linear import LinearRule
from tvgrad.update_rules.rules import GD

LEAST_RATE = 1e-60


class NoCertificate(TvgradError):
    """There is no bound for this network, rule and number of epochs; the message says why.

    Example:
        >>> import torch
        >>> from tvgrad.bounds import FeedForward, NoCertificate
        >>> problem = FeedForward.from_matrices([torch.eye(2), torch.eye(2)], None, "tanh", input_norms=1.0)
        >>> try:
        ...     problem.certificate(100.0, epochs=5)
        ... except NoCertificate as reason:
        ...     print(str(reason).split(":")[0])
        there is no certificate, lower the learning rate or the number of epochs
    """


@dataclass(frozen=True)
class StepCoefficients:
    """The coefficients of k steps of a linear rule.

    Attributes:
        matrix: c[s, e], (k+1, k), nonnegative.
        totals: S_s, (k+1,).
        shrunk: the share of theta_0 that decoupled decay has taken after s steps, (k+1,).
        coupled: the lambda that is added to gradients.
    """

    matrix: Array
    totals: Array
    shrunk: Array
    coupled: float

    @property
    def steps(self) -> int:
        """The number of steps k."""
        return len(self.totals) - 1

    @property
    def rounding(self) -> float:
        """The relative rounding error of every coefficient at most: sums of positive products of k factors."""
        return gamma(8 * self.steps + 32)


def coefficients_of(rule: UpdateRule | float, epochs: int) -> StepCoefficients:
    """Compute the coefficients of a rule.

    Args:
        rule: a linear rule that makes one step an epoch, or the learning rate of gradient descent.
        epochs: k.

    Returns:
        Its coefficients.

    Raises:
        TvgradError: the number of epochs is not a whole number of at least 1.
        NoCertificate: the rule is not linear.
    """
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise TvgradError(f"the number of epochs must be a whole number of at least 1, not {epochs!r}")
    if not isinstance(rule, UpdateRule):
        rule = GD(rule)
    if not isinstance(rule, LinearRule):
        raise NoCertificate(
            f"{rule.name} divides by a root of past squares, so its steps have no coefficients that are fixed "
            "beforehand and no certificate: use gd, sgd, momentum or nesterov, or read the estimates"
        )
    matrix = rule.coefficient_matrix(epochs)
    if rule.decoupled_decay:
        matrix, shrunk = _decayed(rule, epochs)
    else:
        shrunk = np.zeros(epochs + 1)
    sizes = matrix[matrix != 0]
    if not np.isfinite(sizes).all() or (sizes < 0).any() or (sizes < LEAST_RATE).any() or not sizes.size:
        raise NoCertificate(
            f"the rule weighs gradients by {matrix.min() if (sizes < 0).any() else sizes.min(initial=0.0):.3g}, and "
            f"certificates need finite weights of at least {LEAST_RATE:g}: below, float64 underflows"
        )
    return StepCoefficients(matrix, np.asarray(matrix.sum(axis=1)), shrunk, rule.coupled_decay)


def _decayed(rule: LinearRule, steps: int) -> tuple[Array, Array]:
    """The matrix and the shares of theta_0 taken, in exact arithmetic: `1 - rate lambda` may cancel, near 0 and 1."""
    plain = rule.without_decay()
    rates = [Fraction(float(rate)) for rate in rule.rates(steps)]
    kept = [1 - rate * Fraction(rule.decoupled_decay) for rate in rates]
    if any(share < 0 for share in kept):
        raise NoCertificate("a rate times the weight decay is more than 1, which turns the weights round: lower one")
    # what step s adds to the task vector: rate_s w[s,e], the difference of two rows without decay
    rows, shrunk = [[Fraction(0)] * steps], [Fraction(0)]
    mixtures = _mixtures(plain, rates)
    for step in range(steps):
        rows.append([kept[step] * old + new for old, new in zip(rows[-1], mixtures[step], strict=True)])
        shrunk.append(1 - kept[step] * (1 - shrunk[-1]))
    return np.array([[float(x) for x in row] for row in rows]), np.array([float(x) for x in shrunk])


def _mixtures(rule: LinearRule, rates: list[Fraction]) -> list[list[Fraction]]:
    """`rate_s w[s,e]`, from float64 mixtures of nonnegative numbers."""
    average, found = rule.average, []
    buffer: Array | None = None
    for step, rate in enumerate(rates):
        direction, buffer = average.direction(np.eye(len(rates))[step], buffer)
        found.append([rate * Fraction(float(weight)) for weight in direction])
    return found
