"""Certificates for the gap between task arithmetic and multitask training, `theta_TA - theta_MT`, from both sides.

`GAP_FORMS` are tried, each a way of module gap_forms. The coefficient of the second-order term, `C_k` in
`theta_TA - theta_MT = -alpha eta^2 C_k + O(eta^3)`, is at most
`k (k-1)/2 sum_t H_t ( |alpha| sum_{t' != t} G_t' + |alpha - 1| G_t )` on the ball of the closed form.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tvgrad.bounds.certificates.coefficients import NoCertificate, coefficients_of
from tvgrad.bounds.certificates.form import CertificateForm, Form, ResultOfForms, attempt_all, best_of
from tvgrad.bounds.certificates.gap_forms import Gap, GapClosedForm, GapTaylorForm, GapTubeForm
from tvgrad.bounds.derivatives.derivative_bounds import DerivativeBounds
from tvgrad.errors import TvgradError
from tvgrad.numerics.floats import round_up
from tvgrad.update_rules.base import UpdateRule

GAP_FORMS: tuple[CertificateForm[Gap], ...] = (
    GapClosedForm("closed"),
    GapTaylorForm("quadratic", cubic=False),
    GapTaylorForm("cubic", cubic=True),
    GapTubeForm("tube"),
)


@dataclass(frozen=True)
class GapCertificate(ResultOfForms):
    """Bounds on `||theta_TA - theta_MT||` after k epochs, for the iterates of exact arithmetic.

    Attributes:
        upper_bound: of the gap.
        lower_bound: of the gap.
        method: the form that gave the upper bound.
        radius: of a ball round theta_0 that holds all iterates before the last.
        coefficient_bound: an upper bound of ||C_k||, or NaN where the closed form has no ball or the rule is not
            gradient descent.
        forms: every form with its bounds, or the reason why it gives none.
    """

    upper_bound: float
    lower_bound: float
    method: str
    radius: float
    coefficient_bound: float
    forms: tuple[Form, ...] = ()


def multitask_gap_bound(
    problems: Sequence[DerivativeBounds], rule: UpdateRule | float, epochs: int, *, alpha: float, simulate: bool = True
) -> GapCertificate:
    """Bound the gap between task arithmetic and multitask training, before training.

    Args:
        problems: one for each task, all at the same weights.
        rule: a linear rule without weight decay, or the learning rate of gradient descent.
        epochs: k.
        alpha: the merging coefficient.
        simulate: also simulate all runs in float64 and bound what rounding can have changed; without it all forms use
            theta_0 alone.

    Returns:
        The best bounds.

    Raises:
        TvgradError: there are no tasks, their weights differ, or alpha is not a finite number.
        NoCertificate: no form gives a bound; the message says why.

    Example:
        >>> import torch
        >>> from tvgrad.bounds import FeedForward, multitask_gap_bound
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double()
        >>> inputs, targets = torch.eye(4, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
        >>> tasks = [FeedForward(model, inputs, targets), FeedForward(model, -inputs, targets)]
        >>> gap = multitask_gap_bound(tasks, 0.01, epochs=5, alpha=0.4)
        >>> 0 < gap.lower_bound <= gap.upper_bound < 1.001 * gap.lower_bound
        True
    """
    if not problems:
        raise TvgradError("there are no tasks: give one FeedForward for each")
    if not math.isfinite(alpha):
        raise TvgradError(f"alpha must be a finite number, not {alpha!r}")
    first = problems[0].network
    for other in problems[1:]:
        if other.network.parts != first.parts or not torch.equal(other.network.flat, first.flat):
            raise TvgradError("the tasks start from different weights: give all the same pretrained model")
    rule_coefficients = coefficients_of(rule, epochs)
    if rule_coefficients.coupled or rule_coefficients.shrunk.any():
        raise NoCertificate(
            "with weight decay, merged task vectors and multitask training shrink the weights by different amounts, "
            "and there is no certificate for their gap: leave weight decay out"
        )
    gap = Gap(problems, rule_coefficients, alpha)
    has_data = all(problem.has_data for problem in problems)
    forms = attempt_all(GAP_FORMS, gap, steps=epochs, has_data=has_data, simulate=simulate)
    best, lower = best_of(forms)
    return GapCertificate(best.upper, lower, best.name, best.radius, _coefficient_bound(gap, forms[0]), forms)


def _coefficient_bound(gap: Gap, closed: Form) -> float:
    rule = gap.coefficients
    last = rule.matrix[rule.steps]
    # only for constant rates is the sum over the steps that of the text
    if not closed.exists or not np.allclose(last, last[0], rtol=1e-14, atol=0.0):
        return math.nan
    total = float(gap.hessian_norms(closed.radius) @ gap.pulls(closed.radius))
    return round_up(rule.steps * (rule.steps - 1) / 2 * total)


def multitask_gap(
    problems: Sequence[DerivativeBounds], rule: UpdateRule | float, epochs: int, alpha: float, simulate: bool = True
) -> GapCertificate:
    """The former name of `multitask_gap_bound`, to be removed in the release after 0.1.

    Args:
        problems: as there.
        rule: as there.
        epochs: as there.
        alpha: as there.
        simulate: as there.

    Returns:
        The best bounds.
    """
    message = "tvgrad.bounds.multitask_gap is now multitask_gap_bound: call that, with alpha as a keyword"
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return multitask_gap_bound(problems, rule, epochs, alpha=alpha, simulate=simulate)
