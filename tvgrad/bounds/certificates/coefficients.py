"""What a certificate needs to know of an update rule: the weight of every gradient in every step.

For every linear rule `theta_s - theta_0 = -shrunk_s theta_0 - sum_{e<s} c[s,e] g(theta_e)` with c >= 0, exactly.
Coupled decay adds `lambda theta` to every gradient: the same rule on `L + lambda/2 ||theta||^2`, whose Hessian is
`H + lambda I` and whose third derivative is that of L. The first-order part is `p_s = -shrunk_s theta_0 - S_s g_0`;
what a certificate bounds is the norm of `tau_k - p_k = -sum_e c[k,e] (g_e - g_0)`, the error of that prediction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tvgrad.errors import TvgradError
from tvgrad.numerics.floats import gamma
from tvgrad.update_rules.base import Array, UpdateRule
from tvgrad.update_rules.linear import LinearRule
from tvgrad.update_rules.rules import GD


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
    shrunk = np.asarray(rule.decay_shrinkages(epochs))
    return StepCoefficients(matrix, np.asarray(matrix.sum(axis=1)), shrunk, rule.coupled_decay)
