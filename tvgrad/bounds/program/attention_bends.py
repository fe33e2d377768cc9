r"""The second derivative of attention, as it is at the centre of a ball, and how far it can be from that in the ball.

Head by head, with `S = scale Q K'`, p_t the softmax of row t of S, g_t the derivative of the loss in `o_t = sum_s
p_ts v_s`, and `w_ts = g_t . v_s`: the loss has the part `phi = sum_t p_t . w_t`, linear in w. With `J_t = diag p_t -
p_t p_t'`, `a_ts = p_ts (w_ts - p_t . w_t)` and `T_t = diag a_t - p_t a_t' - a_t p_t'`, the second derivative of `p . w`
in the scores, the blocks of the second derivative of phi are

    QQ: scale^2 K' T_t K, for each t                KK: scale^2 sum_t T_t[s, s'] q_t q_t'
    QK: scale^2 (T_t K)_s q_t' + scale a_ts I       QV: scale (J_t K)_s g_t'       KV: scale sum_t J_t[s, s'] q_t g_t'

They are small matrices, whose norms are taken as they are. Over the ball they move by at most the third derivative
times the radii r, and by what they are for the change of g. Let s = scale (||K||, ||Q||, 0) bound the change of S by a
step of Q, K, V, m = scale for the pair of Q and K and 0 for others, d_l = 1 for V and 0 for others, omega = max ||w_t||
and gamma = ||G||_2. By the product rule, with the third
and fourth derivatives of logsumexp below `sqrt 6 / 9` and 1/2,

    |D^3 phi|_ijl <= 1/2 omega s_i s_j s_l + sqrt 6/9 omega (m_ij s_l + m_il s_j + m_jl s_i)
                     + sqrt 6/9 gamma (d_i s_j s_l + d_j s_i s_l + d_l s_i s_j)
                     + 1/2 gamma (d_i m_jl + d_j m_il + d_l m_ij)

The fourth derivative along u, the largest of a symmetric form, is the fourth cumulant `E c^4 - 3 v^2` of u, with
|c| <= sqrt 2, the range, and v <= 2/4 the variance: at least `-2 v^2 >= -1/2` by Jensen, and at most `2 v - 3 v^2 <=
1/3`. Tested in `tests/bounds/program/test_attention_bends.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from tvgrad.bounds.network.spectral_norm import spectral_norms
from tvgrad.bounds.program.normalisation import SOFTMAX_THIRD
from tvgrad.numerics.floats import round_up

QUARTIC = 0.5
LARGEST = 1024  # rows of a block; its norm costs the cube
SLACK = 1e-11
"""Over the relative rounding of products of five factors in float64, up to ten thousand terms."""

Pair = tuple[int, int]
PAIRS: tuple[Pair, ...] = ((0, 0), (1, 1), (0, 1), (0, 2), (1, 2))


@dataclass(frozen=True)
class Scores:
    """What the second derivative is made of, for n samples.

    Attributes:
        scale: of the scores, positive.
        query: (n, ..., t, d), at the centre.
        key: (n, ..., s, d), at the centre, without its mean.
        centred: v_s - o_t at the centre, (n, ..., t, s, e).
        probabilities: (n, ..., t, s).
        uncertain: how far these can be, in Euclidean norm, (n,).
        g: derivative of the loss in the result, at the centre, (n, ..., t, e).
        values: norms of V, (n,).
    """

    scale: float
    query: torch.Tensor
    key: torch.Tensor
    centred: torch.Tensor
    probabilities: torch.Tensor
    uncertain: torch.Tensor
    g: torch.Tensor
    values: torch.Tensor


@dataclass(frozen=True)
class Reaches:
    """Norms over the ball, (n,) each.

    Attributes:
        query: of Q, spectral.
        key: of K without its mean.
        value: of V without its mean.
        g_row: of the largest row of g.
        g: of G, spectral.
        radii: of Q, K and V.
        g_radius: of g.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    g_row: torch.Tensor
    g: torch.Tensor
    radii: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    g_radius: torch.Tensor


def fits(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether the blocks are small enough to be made.

    Args:
        query: (n, ..., t, d).
        value: (n, ..., s, e).

    Returns:
        Whether they are.
    """
    rows = query.shape[-2] * query.shape[-1], value.shape[-2] * max(value.shape[-1], query.shape[-1])
    return max(rows) <= LARGEST


def blocks(scores: Scores) -> dict[Pair, torch.Tensor]:
    """The blocks of the second derivative at the centre.

    Args:
        scores: what they are made of.

    Returns:
        For pairs of Q, K, V = 0, 1, 2: matrices (n, m, rows, columns), m of each sample.
    """
    scale, q, k, p, g = scores.scale, scores.query, scores.key, scores.probabilities, scores.g
    weighted = p * (scores.centred @ g[..., None])[..., 0]  # a
    third = torch.diag_embed(weighted) - p[..., None] * weighted[..., None, :] - weighted[..., None] * p[..., None, :]
    second = torch.diag_embed(p) - p[..., None] * p[..., None, :]
    third_k, second_k = scale * third @ k[..., None, :, :], scale * second @ k[..., None, :, :]  # (n, ..., t, s, d)
    identity = torch.eye(q.shape[-1], dtype=torch.float64)
    qk = scale * (
        torch.einsum("...tsi,...tj->...tisj", third_k, q) + torch.einsum("...ts,ij->...tisj", weighted, identity)
    )
    found = {
        (0, 0): scale * k.mT[..., None, :, :] @ third_k,
        (1, 1): scale**2 * torch.einsum("...tsu,...ti,...tj->...siuj", third, q, q),
        (0, 1): qk,
        (0, 2): torch.einsum("...tsi,...tj->...tisj", second_k, g),
        (1, 2): scale * torch.einsum("...tsu,...ti,...tj->...siuj", second, q, g),
    }
    return {
        pair: (one if pair == (0, 0) else one.flatten(-4, -3).flatten(-2)).flatten(1, -3) for pair, one in found.items()
    }


def bends(scores: Scores, reaches: Reaches) -> dict[Pair, torch.Tensor]:
    """Bound the blocks anywhere in the ball.

    Args:
        scores: at the centre.
        reaches: over the ball.

    Returns:
        For pairs of Q, K, V: (n,) each.
    """
    scale = scores.scale
    made = blocks(scores)
    steps = (scale * reaches.key, scale * reaches.query, torch.zeros_like(reaches.key))
    omega = reaches.g_row * reaches.value
    far, wide = reaches.g_radius, reaches.g_radius * reaches.value
    sizes = [one.flatten(1).norm(dim=1) for one in (scores.query, scores.key, scores.g, scores.centred)]
    both, rounding = sizes[0] + sizes[1], SLACK + scores.uncertain
    weights = sizes[2] * (sizes[3] + scores.values + 1)
    lost = 16 * rounding * (scale * both + 1) * (scale * both * (weights + sizes[2]) + weights * max(scale, 1.0))
    found = {}
    for i, j in PAIRS:
        matrices = made[i, j]
        if bool(torch.isfinite(matrices).all()):
            at_centre = spectral_norms(matrices, 0).amax(1)
        else:
            at_centre = torch.full((len(matrices),), math.inf, dtype=torch.float64)
        moved = sum(
            (_third(i, j, k, steps, omega, reaches.g, scale) * reaches.radii[k] for k in range(3)), torch.zeros(1)
        )
        mixed = scale if {i, j} == {0, 1} else 0.0
        turned = SOFTMAX_THIRD * wide * steps[i] * steps[j] + wide * mixed / 2 + far * (steps[i] * (j == 2)) / 2
        found[i, j] = round_up(at_centre + lost + round_up(moved) + round_up(turned))
    return found


def _third(
    i: int, j: int, k: int, s: tuple[torch.Tensor, ...], omega: torch.Tensor, gamma: torch.Tensor, scale: float
) -> torch.Tensor:
    """|D^3 phi| of the module's docstring."""
    total = QUARTIC * omega * s[i] * s[j] * s[k]
    for a, b, c in ((i, j, k), (j, i, k), (k, i, j)):
        mixed = scale if {b, c} == {0, 1} else 0.0
        total = total + SOFTMAX_THIRD * omega * mixed * s[a]
        if a == 2:
            total = total + gamma * (SOFTMAX_THIRD * s[b] * s[c] + mixed / 2)
    return total
