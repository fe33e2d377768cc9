r"""Scaled dot-product attention as one operation: `S = scale Q K'`, `P = softmax(S)`, `O = P V`, head by head.

With o_t = sum_s p_ts v_s, and dS_ts = scale (dq_t . k_s + q_t . dk_s), the derivative is

    do_t = sum_s p_ts dv_s + sum_s p_ts (v_s - o_t) dS_ts.

So its norm is at most `||P||_2` in V; in Q `scale max_t ||sum_s p_ts (v_s - o_t) k_s'||_2`, because rows do not mix;
and in K that of the matrix of all `scale p_ts (v_s - o_t) q_t'`, or `scale max_t ||M_t||_2 ||Q||_2`, M_t the matrix
with the columns `p_ts (v_s - o_t)`. A constant added to all k_s
changes no difference of scores, so that K stands here without its mean, as does V.

With g the derivative of the loss in O, the derivative of the loss in P is `g_t . (v_s - o_t)` up to a constant that
softmax does not see. The second derivative tested with g is

    <g, dP dV' + dP' dV> + sum_t D^2 softmax [dS_t, dS'_t] . (g_t . (v_s - o_t))_s + scale <dL/dS, dQ dK'' + dQ' dK'>

with `||dP||_F <= kappa ||dS||_F`, `||dS||_F <= scale (||K||_2 ||dQ||_F + ||Q||_2 ||dK||_F)`, and the bounds of softmax
of the module `normalisation`. Without g, the same bounds say how much the derivative can change over a ball.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tvgrad.bounds.network.spectral_norm import spectral_norms
from tvgrad.bounds.program.attention_bends import Pair, Reaches, Scores, bends, fits
from tvgrad.bounds.program.balls import Ball, add, matmul, multiply, negated, once, scaled, total
from tvgrad.bounds.program.normalisation import SOFTMAX_THIRD, softmax
from tvgrad.bounds.program.operation import SQUARINGS, Enclosure, Operation, Second, norm, reduced
from tvgrad.numerics.floats import round_up

_SLACK = 1e-11
"""Over the relative rounding of what is computed here in float64 from three factors, up to ten thousand terms."""


def _transpose(part: torch.Tensor) -> torch.Tensor:
    return part.mT


@dataclass(frozen=True)
class _Sizes:
    """Bounds over the ball, one for each sample, beside the numbers at the centre."""

    probabilities: torch.Tensor
    uncertain: torch.Tensor
    centred_values: torch.Tensor
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    moved: torch.Tensor
    curvature: torch.Tensor


@dataclass(frozen=True)
class Attention(Operation):
    """Attention of queries (n, ..., t, d) to keys (n, ..., s, d) and values (n, ..., s, e).

    Attributes:
        scale: of the scores.
        mask: (t, s), False where a key is not seen; None for none.
    """

    scale: float
    mask: torch.Tensor | None

    def _probabilities(self, q: Ball, k: Ball) -> Ball:
        return softmax(scaled(matmul(q, k.map(_transpose)), self.scale), self.mask)

    def value(self, *args: Ball) -> Ball:
        """Compute the result."""
        q, k, v = args
        return matmul(self._probabilities(q, k), v)

    def pull(self, args: Sequence[Ball], out: Ball, p: Ball, wanted: Sequence[bool]) -> list[Ball | None]:
        """Multiply the transposed derivatives with p."""
        q, k, v = (once(one) for one in args)
        probabilities = self._probabilities(q, k)
        weights = matmul(p, v.map(_transpose))
        mean = total(multiply(probabilities, weights), [-1], keep=True)
        scores = scaled(multiply(probabilities, add(weights, negated(mean))), self.scale)
        found = [matmul(scores, k), matmul(scores.map(_transpose), q), matmul(probabilities.map(_transpose), p)]
        return [reduced(one, arg.shape) if want else None for one, arg, want in zip(found, args, wanted, strict=True)]

    def _sizes(self, args: Sequence[Enclosure]) -> _Sizes:
        q, k, v = args
        probabilities = self._probabilities(*(Ball(one.value, None, one.spread) for one in (q, k)))
        centred_k = Enclosure(k.value - k.value.mean(-2, keepdim=True), k.spread, k.reach)
        centred_v = Enclosure(v.value - v.value.mean(-2, keepdim=True), v.spread, v.reach)
        slack = [round_up(_SLACK * one.norm) for one in (k, v)]
        query, key, value = q.spectral(), centred_k.spectral() + slack[0], centred_v.spectral() + slack[1]
        # the scores move by dQ K' + Q dK', both factors anywhere in the ball
        moved = round_up(abs(self.scale) * (key * q.radius + query * k.radius))
        sizes = probabilities.hi + probabilities.err
        axes = [1] * (sizes.ndim - 1)
        curvature = round_up(sizes.amax(-1, keepdim=True) + moved.reshape(-1, *axes) / 2).clamp(max=0.5)[..., 0]
        out = probabilities.hi @ v.value
        differences = v.value[..., None, :, :] - out[..., :, None, :]
        uncertain = round_up(norm(probabilities.err))
        return _Sizes(probabilities.hi, uncertain, differences, query, key, value, moved, curvature)

    def first(self, args: Sequence[Enclosure], out: Enclosure) -> list[torch.Tensor | float]:
        """Bound the norms of the derivatives."""
        q, k, v = args
        sizes, scale = self._sizes(args), abs(self.scale)
        weighted = sizes.probabilities[..., None] * sizes.centred_values  # (n, ..., t, s, e)
        centred_k = k.value - k.value.mean(-2, keepdim=True)
        in_query = _largest(weighted.mT @ centred_k[..., None, :, :])
        columns = _largest(weighted)
        # J_K as a matrix from (s, d) to (t, e), head by head
        whole = torch.einsum("...tse,...td->...tesd", weighted, q.value)
        in_key = _largest(whole.flatten(-4, -3).flatten(-2), 1)
        # rounding: of three factors each, relative to the sizes of what was multiplied
        lost = (_SLACK + sizes.uncertain) * (v.norm + 1)
        gains = [
            scale * (in_query + lost * k.norm),
            scale * torch.minimum((columns + lost) * sizes.query, in_key + lost * q.norm),
            _largest(sizes.probabilities) + _SLACK + sizes.uncertain,
        ]
        # how much the derivative can change over the ball: second derivatives, without g
        kappa = sizes.curvature.flatten(1).amax(1)
        score = kappa * scale * sizes.key, kappa * scale * sizes.query
        bend = SOFTMAX_THIRD * scale**2 * sizes.value
        mixed = bend * sizes.key * sizes.query + kappa * scale * sizes.value
        rq, rk, rv = q.radius, k.radius, v.radius
        widened = (
            gains[0] + bend * sizes.key**2 * rq + mixed * rk + score[0] * rv,
            gains[1] + bend * sizes.query**2 * rk + mixed * rq + score[1] * rv,
            gains[2] + score[0] * rq + score[1] * rk,
        )
        return [round_up(one) for one in widened]

    def second(self, args: Sequence[Enclosure], out: Enclosure, p: Enclosure) -> Second:
        """Bound the second derivatives, tested with p."""
        sizes, scale = self._sizes(args), abs(self.scale)
        # g_t . (v_s - o_t) at the centre, and how far g and v - o take it: o_t moves by dv + moved ||V|| / 2 at most
        weights = (sizes.centred_values @ p.value[..., None])[..., 0].norm(dim=-1)
        g_rows, axes = p.rows(), [1] * (weights.ndim - 1)
        far = ((2 * args[2].radius + sizes.moved * sizes.value) * math.sqrt(weights.shape[-1])).reshape(-1, *axes)
        centred = round_up(sizes.centred_values.norm(dim=(-1, -2)) + _SLACK * args[2].norm.reshape(-1, *axes))
        change = (p.spread.norm(dim=-1) + p.reach.reshape(-1, *axes)) * centred + g_rows * far
        lost = (_SLACK + sizes.uncertain.reshape(-1, *axes)) * g_rows * (centred + 1)
        rows = round_up(weights + lost + change)
        third = round_up(math.sqrt(2) * sizes.curvature).clamp(max=SOFTMAX_THIRD)
        bend = scale**2 * (rows * third).flatten(1).amax(1)
        scores = (rows * sizes.curvature).flatten(1).norm(dim=1)
        kappa = sizes.curvature.flatten(1).amax(1)
        spectral = p.spectral()
        found = {
            (0, 0): bend * sizes.key**2,
            (1, 1): bend * sizes.query**2,
            (0, 1): bend * sizes.key * sizes.query + scale * scores,
            (0, 2): spectral * kappa * scale * sizes.key,
            (1, 2): spectral * kappa * scale * sizes.query,
        }
        if fits(args[0].value, args[2].value) and bool(p.value.any()):
            exact = self._exact(args, p, sizes)
            found = {pair: torch.minimum(weight, exact[pair]) for pair, weight in found.items()}
        return {pair: round_up(weight) for pair, weight in found.items()}

    def _exact(self, args: Sequence[Enclosure], p: Enclosure, sizes: _Sizes) -> dict[Pair, torch.Tensor]:
        """The second derivative as it is at the centre, widened."""
        q, k, v = args
        centred_k = k.value - k.value.mean(-2, keepdim=True)
        whole = [part.expand(len(p.value), *part.shape[1:]) for part in (q.value, centred_k)]
        scale = abs(self.scale)
        scores = Scores(
            scale,
            whole[0] * math.copysign(1.0, self.scale),
            whole[1],
            sizes.centred_values,
            sizes.probabilities,
            sizes.uncertain,
            p.value,
            norm(v.value),
        )
        reaches = Reaches(
            sizes.query,
            sizes.key,
            sizes.value,
            p.rows().flatten(1).amax(1),
            p.spectral(),
            (q.radius, k.radius, v.radius),
            p.radius,
        )
        return bends(scores, reaches)


def _largest(matrices: torch.Tensor, squarings: int = SQUARINGS) -> torch.Tensor:
    """The largest spectral norm of each sample's matrices."""
    if not bool(torch.isfinite(matrices).all()):
        return torch.full((len(matrices),), math.inf, dtype=torch.float64)
    return spectral_norms(matrices, squarings).flatten(1).amax(1)
