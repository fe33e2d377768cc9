"""The certificate of a program that knows theta_0 alone.

With G and H bounds of the gradient and of the Hessian on a ball of radius R, and D_e = `||shrunk_e theta_0|| + S_e G`:
where all D_e with e < k are at most R, the iterates before the last lie in the ball by induction, and the error of the
first-order prediction is at most `H sum_e c[k,e] D_e` by the mean value theorem (`certificates.ball_forms`, the closed
form). G is the gradient's norm at theta_0 and H R. Each radius that is tried costs one measurement.
"""

from __future__ import annotations

import math

from tvgrad.bounds.certificates.coefficients import NoCertificate, StepCoefficients
from tvgrad.bounds.certificates.form import Form
from tvgrad.bounds.certificates.verified_ball import LOCAL_ATTEMPTS, NoBall, verified_ball
from tvgrad.bounds.program.point import PointBounds
from tvgrad.bounds.program.tube import Measurable, norm_of
from tvgrad.numerics.double_double import DoubleDouble
from tvgrad.numerics.floats import FEW_OPERATIONS_MARGIN, round_up

NAME = "closed, from theta_0"


def closed_form(problem: Measurable, rule: StepCoefficients) -> Form:
    """Bound the error of the first-order prediction from theta_0 alone.

    Args:
        problem: the loss.
        rule: coefficients of the rule's steps.

    Returns:
        The form; its lower bound is 0.

    Raises:
        NoCertificate: no ball is known to hold the iterates; says how far it ran and which operation is to blame.
    """
    flat = problem.flat
    start = DoubleDouble(flat, flat * 0)
    length = round_up(float(flat.norm()))
    decay = rule.shrunk[:-1] * length
    here = problem.measure(start, 0.0)
    gradient = round_up(norm_of(here.gradient) + here.error)
    last: PointBounds = here

    def evaluate(radius: float) -> tuple[float, float]:
        nonlocal last
        last = problem.measure(start, radius) if radius else here
        hessian = round_up(last.hessian_norm + rule.coupled, FEW_OPERATIONS_MARGIN)
        if not math.isfinite(hessian):
            return math.inf, math.inf
        slope = round_up(gradient + rule.coupled * length + hessian * radius)
        if not math.isfinite(slope):
            return math.inf, math.inf
        distances = round_up(decay + rule.totals[:-1] * slope)
        return round_up(hessian * float(rule.matrix[rule.steps] @ distances)), float(distances.max())

    try:
        upper, radius = verified_ball(evaluate, attempts=LOCAL_ATTEMPTS)
    except NoBall as ran:
        raise NoCertificate(f"from theta_0 alone {ran}; {last.loudest}") from None
    return Form(NAME, upper, 0.0, radius)
