"""Derivatives of log-sum-exp: the largest curvature at given probabilities, and how it widens over a ball.

With p = softmax(f), the Hessian of log-sum-exp is H = diag p - p p', and D^3[u, v, w] = E_p (u - Eu)(v - Ev)(w - Ew).
A symmetric form's norm is attained on the diagonal, so with k = lambda_max(H):

- k <= 1/2: u' H u is the variance of a variable of range at most sqrt 2 for a unit u, at most range^2 / 4;
- the norm of D^3 is at most sqrt 6 / 9: a third central moment is at most range^3 / (6 sqrt 3); two classes attain it;
- it is at most sqrt 2 k: |u - Eu| <= range <= sqrt 2 in one factor of E (u - Eu)^3;
- over a step of length z, k rises by at most sqrt 6 / 9 z, and at most e^(sqrt 2 z) times: with unit w,
  |D^3[u, u, w]| <= max |w - Ew| E (u - Eu)^2 <= sqrt 2 H[u, u];
- the norm of D^4 is at most 1/2, and at most 2 k: on the diagonal it is the fourth cumulant `m_4 - 3 m_2^2` of u, with
  `m_2 = H[u, u] <= 1/2`, `m_2^2 <= m_4 <= 2 m_2` by the range, and `m_4 <= range^4 / 12 = 1/3`; so it is at least
  `-2 m_2^2 >= -m_2 >= -1/2` and at most `min(2 m_2, 1/3)`.
"""

from __future__ import annotations

import torch

from tvgrad.numerics.floats import UNIT_ROUNDOFF, round_up

THIRD = 0.2721655269759087  # sqrt 6 / 9, rounded up
SQRT_2 = 1.4142135623730952  # rounded up
# The bracket holds its root within a factor of two, so this many halvings leave 1e-9 of it.
HALVINGS = 30


def largest_curvature(p: torch.Tensor, halvings: int = HALVINGS) -> torch.Tensor:
    """Upper bounds on lambda_max(diag p - p p'), tight to 1e-9 after all halvings and to a factor of two without any.

    Let p_1 be the largest probability, and p_2 < x < p_1. Then x - diag p has one negative eigenvalue, adding p p'
    leaves at most one, and the determinant of the sum, `det(x - diag p) (1 + p' (x - diag p)^-1 p)`, is not negative
    when `p_1^2 / (p_1 - x) >= 1 + sum_(i>1) p_i^2 / (x - p_i)`: then x bounds all eigenvalues. With s = sum_(i>1) p_i
    = 1 - p_1 that reads `x - p_1 s >= (p_1 - x) sum_(i>1) p_i^2 / (x - p_i)`, free of cancellation for p_1 near 1.
    Bisection between max(p_2, p_1 s) and min(p_1, 2 p_1 s, 1/2) only ever lowers the upper end to a checked x: p_1
    bounds lambda_max because p p' is subtracted, 2 p_1 s is Gershgorin's bound.

    Rounding: each side of the check is widened by (4 C + 64) u. Computed probabilities have relative errors of at most
    (C + 1000) u (an exponent of -745 underflows to zero, an absolute error below 1e-300); the curvature is the largest
    `1/2 sum_ij p_i p_j (v_i - v_j)^2` over unit v, so it changes by at most twice that, relatively.

    Args:
        p: probabilities (n, C), float64, as `torch.softmax` computes them.
        halvings: of the bracket.

    Returns:
        Upper bounds (n,) for the exact probabilities.
    """
    classes = p.shape[1]
    margin = 1 + (4 * classes + 64) * UNIT_ROUNDOFF
    top, index = p.max(dim=1)
    rest = p.scatter(1, index[:, None], 0.0)
    others = rest.sum(dim=1) * margin
    low = torch.maximum(rest.amax(dim=1), top * others / margin**2)
    high = torch.minimum(top, 2 * top * others).clamp(max=0.5)
    low = torch.minimum(low, high)
    for _ in range(halvings):
        middle = (low + high) / 2
        # not squared first: p_i^2 underflows long before the curvature does
        weight = (rest * (rest / (middle[:, None] - rest))).sum(dim=1) * margin
        # 0/0 and a middle that meets an end of the bracket are not proofs
        proven = middle / margin - top * others >= (top - middle) * weight
        proven &= (middle > low) & (middle < top) & (middle > rest.amax(dim=1))
        high = torch.where(proven, middle, high)
        low = torch.where(proven, low, middle)
    bound = round_up(high * margin, 4 * (classes + 1000) * UNIT_ROUNDOFF) + 1e-300
    return bound.clamp(max=0.5)


def widened_curvature(curvature: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
    """Upper bounds on the largest curvature over a ball of logits.

    Args:
        curvature: upper bounds at the centre, (n,).
        distance: the ball's radius, (n,) or a number.

    Returns:
        The least of 1/2, k + sqrt 6 / 9 z and k e^(sqrt 2 z), rounded up.
    """
    linear = curvature + THIRD * distance
    multiple = curvature * torch.exp(round_up(SQRT_2, 4 * UNIT_ROUNDOFF) * distance)
    # the rounded exponent is off by at most 4 u of itself, which is included, and exp by a few u
    return round_up(torch.minimum(linear, multiple), 16 * UNIT_ROUNDOFF).clamp(max=0.5)


def widened_gradient(curvature: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
    """Upper bounds on how far the softmax moves when its logits move: the curvature integrated along the way.

    Args:
        curvature: upper bounds at the centre, (n,).
        distance: how far the logits move, (n,) or a number.

    Returns:
        The least of z/2, k z + sqrt 6 / 18 z^2 and k (e^(sqrt 2 z) - 1) / sqrt 2, rounded up.
    """
    linear = curvature * distance + THIRD / 2 * distance**2
    grown = torch.expm1(round_up(SQRT_2, 4 * UNIT_ROUNDOFF) * distance)
    multiple = round_up(curvature * grown / SQRT_2, 4 * UNIT_ROUNDOFF)
    return round_up(torch.minimum(torch.minimum(linear, multiple), distance / 2), 16 * UNIT_ROUNDOFF)
