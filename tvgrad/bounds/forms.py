r"""The forms of a certificate: each bounds the error of the first-order prediction, `||sum_e c[k,e] (g_e - g_0)||`.

All forms find a ball that holds the iterates, and only a verified inequality counts. With the notation of
`tvgrad.bounds.plan`, D_e a bound of ||theta_e - theta_0||, R the radius of the ball:

- *closed*: `D_e = ||shrunk_e theta_0|| + S_e G(R)`; if `max_{e<k} D_e <= R`, then by induction all iterates before the
  last lie in the ball, and the error is at most `H(R) sum_e c[k,e] D_e` (mean value theorem).
- *remainder*: `g_e - g_0 = H_0 tau_e + r_e`, `||r_e|| <= rho/2 D_e^2` (the integral of `(1-t) D^3 L[tau, tau]`), and
  `tau_e = p_e - sum_j c[e,j] (g_j - g_0)`, so that the error vector is `-H_0 sum_e c[k,e] p_e` up to
  `Rem_k = sum_e c[k,e] (h_0 E_e + r_e)`, `E_e = ||H_0 sum_j c[e,j] p_j|| + Rem_e`, `D_e = ||p_e|| + E_e`.
- *layer-wise*: the same, with `r_e <= 1/2 ( ||D3[., d, d]|| + 2 ||D3[., ., d]||_2 E_e + rho E_e^2 )`, d the layer norms
  of p_e, D3 the layers' third-derivative constants.
- *quadratic*: around q_e, the rule run on the quadratic model of L at theta_0: `||tau_e - q_e|| <= X_e`,
  `X_s = sum_e c[s,e] (h_0 X_e + r_e)` with r_e as above, d the layer norms of q_e and X_e for E_e; the error vector is
  `-sum_e c[k,e] H_0 q_e` up to X_k.

The last three bound the error from both sides. Vectors are computed with a bound on their rounding, which is added
on both sides; recursions have nonnegative terms only, so that `(1 + margin)` covers theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tvgrad.bounds.layer_constants import LayerBounds
from tvgrad.bounds.network import UNIT
from tvgrad.bounds.plan import NoCertificate
from tvgrad.bounds.running_error import Approximate
from tvgrad.bounds.start import Start, weighted
from tvgrad.update_rule_base import Array

__all__ = ["Form", "QuadraticPath", "attempt", "closed", "lost", "quadratic", "remainder", "without"]

ATTEMPTS = 40
QUADRATIC_STEPS = 100  # a product with the Hessian each
LOCAL_ATTEMPTS = 12  # local constants cost a few gradients each time
FURTHEST = 30.0  # how much further than the first-order path a ball may reach before it is given up
GROWTH = 1.01
HUGE = 1e100  # beyond it there is no ball, and squares would overflow


@dataclass(frozen=True)
class Form:
    """One sound way of bounding the error, or the reason why it gives none.

    Attributes:
        name: of the form.
        upper: an upper bound of the error's norm; infinity where the form does not exist.
        lower: a lower bound of it.
        radius: of the verified ball round theta_0 (for a tube: the largest distance of the tube from theta_0).
        reason: why the form does not exist; empty where it does.
    """

    name: str
    upper: float = math.inf
    lower: float = 0.0
    radius: float = math.nan
    reason: str = ""

    @property
    def exists(self) -> bool:
        """Whether there is a bound."""
        return math.isfinite(self.upper)


def _enlarged(radius: float) -> float:
    """Round a radius up to one of a few values, so that different forms ask for the same constants.

    Args:
        radius: at least this much.

    Returns:
        The next power of 2^(1/32), some two per cent larger at most, above a margin of one per cent.
    """
    if not 0 < radius < HUGE:
        return radius
    exponent = math.ceil(32 * math.log2(GROWTH * radius)) / 32
    return max(GROWTH * radius, math.exp2(exponent))


def attempt(name: str, build: Callable[[], Form]) -> Form:
    """Build a form.

    Args:
        name: of the form.
        build: makes it.

    Returns:
        The form, or one that says why there is none.
    """
    try:
        return build()
    except NoCertificate as reason:
        return Form(name, reason=str(reason))


def lost(radius: float) -> str:
    """Say that no ball was found.

    Args:
        radius: the last one that was tried.

    Returns:
        The reason.
    """
    return f"no ball is known to hold the iterates: the radius ran to {radius:.3g}"


def without(forms: Sequence[Form]) -> str:
    """Say why no form gives a bound.

    Args:
        forms: all that were tried.

    Returns:
        One sentence with every form's reason, each of them told once.
    """
    reasons: dict[str, list[str]] = {}
    for form in forms:
        reasons.setdefault(form.reason, []).append(form.name)
    told = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in reasons.items())
    return f"there is no certificate, lower the learning rate or the number of epochs: {told}"


def closed(
    name: str,
    steps: Array,
    totals: Array,
    decay: Array,
    constants: Callable[[float], tuple[float, float]],
    attempts: int = ATTEMPTS,
) -> Form:
    """The closed form on its own ball.

    Args:
        name: of the form.
        steps: c[k, e], (k,).
        totals: S_e for e < k, (k,).
        decay: `||shrunk_e theta_0||` for e < k, (k,).
        constants: (G(R), H(R)) for a radius, decay included.
        attempts: how often the ball is enlarged before it is given up.

    Returns:
        The bound.

    Raises:
        NoCertificate: no ball was found.
    """
    radius = 0.0
    for _ in range(attempts):
        gradient, hessian = constants(radius)
        if not gradient < HUGE:
            break
        distances = (decay + totals * gradient) * (1 + 1e-9)
        reached = float(distances.max())
        if reached <= radius:
            return Form(name, hessian * float(steps @ distances) * (1 + 1e-9), 0.0, radius)
        radius = _enlarged(reached)
    raise NoCertificate(lost(radius))


def remainder(name: str, start: Start, constants: Callable[[float], LayerBounds], layerwise: bool) -> Form:
    """The asymptotically exact form, with third derivatives as one number or layer by layer.

    Args:
        name: of the form.
        start: what is known at theta_0.
        constants: the layers' constants for a radius.
        layerwise: whether to use them layer by layer.

    Returns:
        The bound, from both sides.

    Raises:
        NoCertificate: no ball was found.
    """
    plan, steps = start.plan, start.plan.steps
    paths = [start.first_order(step) for step in range(steps)]
    seconds = start.second_orders
    layers = start.layer_norms(paths) if layerwise else None
    norms, sizes = np.array([p.upper for p in paths]), np.array([v.upper for v in seconds])

    def recursion(bounds: LayerBounds) -> tuple[float, Array]:
        along = _along(bounds, layers)
        left = np.zeros(steps)  # h_0 E_e + r_e
        distances = np.zeros(steps)
        for step in range(steps):
            excess = sizes[step] + float(plan.coefficients[step, :step] @ left[:step])
            distances[step] = norms[step] + excess
            left[step] = start.hessian_norm * excess + _third_order(bounds, along, step, norms[step], excess)
        return float(plan.coefficients[steps] @ left) * (1 + 1e-9), distances * (1 + 1e-9)

    rest, radius = _fixed_point(recursion, constants, float(norms.max()))
    return Form(name, seconds[steps].upper + rest, max(0.0, seconds[steps].lower - rest), radius)


def quadratic(name: str, start: Start, constants: Callable[[float], LayerBounds], layerwise: bool = True) -> Form:
    """The two-sided form round the path of the quadratic model, k Hessian-vector products.

    Args:
        name: of the form.
        start: what is known at theta_0.
        constants: the layers' constants for a radius.
        layerwise: whether to use them layer by layer.

    Returns:
        The bound, from both sides.

    Raises:
        NoCertificate: no ball was found.
    """
    path = QuadraticPath(start)
    radius, _, rest = path.verified(constants, layerwise)
    error = path.error(path.start.plan.steps)
    return Form(name, error.upper + rest, max(0.0, error.lower - rest), radius)


class QuadraticPath:
    """The rule run on the quadratic model of the loss at theta_0, with all rounding errors.

    Attributes:
        start: what is known at theta_0.
        points: q_e for e < k.
        products: H_0 q_e for e < k.
    """

    def __init__(self, start: Start) -> None:
        """Run the rule.

        Args:
            start: what is known at theta_0.
        """
        self.start = start
        plan = start.plan
        self.points: list[Approximate] = []
        self.products: list[Approximate] = []
        for step in range(plan.steps):
            first, bent = start.first_order(step), self.error(step)
            value = first.value + bent.value
            # the computed point is the centre of the tube: its distance from the exact rule goes into X
            self.points.append(Approximate(value, first.error + bent.error + 2 * UNIT * (first.norm + bent.norm)))
            self.products.append(start.products([value])[0])

    def error(self, step: int) -> Approximate:
        """The model's error of the first-order prediction, `-sum_e c[s,e] H_0 q_e`.

        Args:
            step: s.

        Returns:
            The vector.
        """
        plan = self.start.plan
        if step == 0:
            return Approximate(torch.zeros_like(self.start.theta), 0.0)
        errors = np.array([one.error for one in self.products[:step]])
        norms = np.array([one.norm for one in self.products[:step]])
        total = weighted(plan.coefficients[step, :step], lambda e: self.products[e].value, errors, norms, plan.rounding)
        return Approximate(-total.value, total.error)

    def verified(self, constants: Callable[[float], LayerBounds], layerwise: bool) -> tuple[float, Array, float]:
        """Bound how far the iterates stray from the path.

        Args:
            constants: the layers' constants for a radius.
            layerwise: whether to use them layer by layer.

        Returns:
            The ball's radius, X_e for e < k, and X_k without the rounding of the path's own vectors.
        """
        start, plan = self.start, self.start.plan
        steps = plan.steps
        layers = start.layer_norms([Approximate(p.value, 0.0) for p in self.points]) if layerwise else None
        norms = np.array([Approximate(p.value, 0.0).upper for p in self.points])
        own = np.array([p.error for p in self.points])
        strays = np.zeros(steps)

        def recursion(bounds: LayerBounds) -> tuple[float, Array]:
            along = _along(bounds, layers)
            left = np.zeros(steps)
            for step in range(steps):
                strays[step] = own[step] + float(plan.coefficients[step, :step] @ left[:step])
                third = _third_order(bounds, along, step, norms[step], strays[step])
                left[step] = start.hessian_norm * strays[step] + third
            return float(plan.coefficients[steps] @ left) * (1 + 1e-9), (norms + strays) * (1 + 1e-9)

        rest, radius = _fixed_point(recursion, constants, float(norms.max()))
        return radius, strays * (1 + 1e-9), rest


Along = list[tuple[float, float]] | None


def _along(bounds: LayerBounds, layers: torch.Tensor | None) -> Along:
    return None if layers is None else [bounds.along(norms) for norms in layers]


def _third_order(bounds: LayerBounds, along: Along, step: int, norm: float, excess: float) -> float:
    """A bound of r_e: a known displacement of that norm, and an unknown one of at most `excess`."""
    rho = bounds.hessian_lipschitz
    if not (norm + excess < HUGE and rho < math.inf):
        return math.inf
    whole = 0.5 * rho * (norm + excess) ** 2
    if along is None:
        return whole
    twice, once = along[step]
    return min(whole, 0.5 * (twice + 2 * once * excess + rho * excess**2))


def _fixed_point(
    recursion: Callable[[LayerBounds], tuple[float, Array]],
    constants: Callable[[float], LayerBounds],
    radius: float,
) -> tuple[float, float]:
    """Enlarge the ball until it holds what the recursion says about itself."""
    radius = _enlarged(radius)
    limit = FURTHEST * radius
    for _ in range(LOCAL_ATTEMPTS):
        bounds = constants(radius)
        rest, distances = recursion(bounds)
        reached = float(distances.max())
        if not math.isfinite(reached) or not math.isfinite(rest):
            break
        if reached <= radius:
            return rest, radius
        radius = _enlarged(reached)
        if radius > limit:
            break
    raise NoCertificate(lost(radius))
