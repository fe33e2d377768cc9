r"""The forms of a certificate: each bounds the error of the first-order prediction, `||sum_e c[k,e] (g_e - g_0)||`.

All forms find a ball that holds the iterates, and only a verified inequality counts. With the notation of
`tvgrad.bounds.certificates.coefficients`, D_e a bound of ||theta_e - theta_0||, R the radius of the ball:

- *closed*: `D_e = ||shrunk_e theta_0|| + S_e G(R)`; if `max_{e<k} D_e <= R`, then by induction all iterates before the
  last lie in the ball, and the error is at most `H(R) sum_e c[k,e] D_e` (mean value theorem).
- *remainder*: `g_e - g_0 = H_0 tau_e + r_e`, `||r_e|| <= rho/2 D_e^2` (the integral of `(1-t) D^3 L[tau, tau]`), and
  `tau_e = p_e - sum_j c[e,j] (g_j - g_0)`, so that the error vector is `-H_0 sum_e c[k,e] p_e` up to
  `Rem_k = sum_e c[k,e] (h_0 E_e + r_e)`, `E_e = ||H_0 sum_j c[e,j] p_j|| + Rem_e`, `D_e = ||p_e|| + E_e`.
- *layer-wise*: the same, with `r_e <= 1/2 ( ||D3[., d, d]|| + 2 ||D3[., ., d]||_2 E_e + rho E_e^2 )`, d the layer norms
  of p_e, D3 the layers' third-derivative constants.
Two more, *quadratic* and *cubic*, follow the rule on a model of the loss (module model_paths). All but the closed form
bound the error from both sides. Vectors are computed with a bound on their rounding, which is added
on both sides; recursions have nonnegative terms only, so that `(1 + margin)` covers theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from tvgrad.bounds.certificates.coefficients import NoCertificate
from tvgrad.bounds.certificates.expansion_point import Start
from tvgrad.bounds.derivatives.worst_case import LayerBounds
from tvgrad.update_rules.base import Array

ATTEMPTS = 40
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
        along = along_all(bounds, layers)
        left = np.zeros(steps)  # h_0 E_e + r_e
        distances = np.zeros(steps)
        for step in range(steps):
            excess = sizes[step] + float(plan.coefficients[step, :step] @ left[:step])
            distances[step] = norms[step] + excess
            left[step] = start.hessian_norm * excess + third_order(bounds, along, step, norms[step], excess)
        return float(plan.coefficients[steps] @ left) * (1 + 1e-9), distances * (1 + 1e-9)

    rest, radius = fixed_point(recursion, constants, float(norms.max()))
    return Form(name, seconds[steps].upper + rest, max(0.0, seconds[steps].lower - rest), radius)


Along = list[tuple[float, float]] | None
Constants = TypeVar("Constants")


def along_all(bounds: LayerBounds, layers: torch.Tensor | None) -> Along:
    """Bound the third derivative with known directions in its slots, layer by layer.

    Args:
        bounds: of the third derivative's blocks.
        layers: layer norms of each direction, (steps, L), or None.

    Returns:
        For each direction what `LayerBounds.along` says of it, or None.
    """
    return None if layers is None else [bounds.along(norms) for norms in layers]


def third_order(bounds: LayerBounds, along: Along, step: int, norm: float, excess: float) -> float:
    """Bound r_e for a known displacement and an unknown one beside it.

    Args:
        bounds: of the third derivative's blocks.
        along: what they say along the known displacements, or None for its norm alone.
        step: e.
        norm: of the known displacement.
        excess: of the unknown one at most.

    Returns:
        Half of the third derivative's bound with both in two of its slots.
    """
    rho = bounds.hessian_lipschitz
    if not (norm + excess < HUGE and rho < math.inf):
        return math.inf
    whole = 0.5 * rho * (norm + excess) ** 2
    if along is None:
        return whole
    twice, once = along[step]
    return min(whole, 0.5 * (twice + 2 * once * excess + rho * excess**2))


def fixed_point(
    recursion: Callable[[Constants], tuple[float, Array]],
    constants: Callable[[float], Constants],
    radius: float,
) -> tuple[float, float]:
    """Enlarge the ball until it holds what the recursion says about itself.

    Args:
        recursion: from the constants of a ball, the remainder and the distances of the iterates.
        constants: of a ball.
        radius: the least that is tried.

    Returns:
        The remainder and the radius of the verified ball.

    Raises:
        NoCertificate: no ball was found.
    """
    radius = _enlarged(radius)
    limit = FURTHEST * radius
    for _ in range(LOCAL_ATTEMPTS):
        if not radius < HUGE:
            break
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
