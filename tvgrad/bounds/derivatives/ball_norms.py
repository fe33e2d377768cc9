r"""Ball norms: the numbers that were measured at the centre of a ball, widened so that they hold anywhere in it.

A step of size R moves z_l by at most `dz_l = R At_{l-1}(R) + s_l dh_{l-1}`, and by at most R times the norm of c_l(R).
It changes a Jacobian by at most `dJ_{j,l} = R ||D J||(R) + s_l ( min(2 b1, b2 dz) ||J_0|| + |s'| dJ_{j,l-1} )`. The
others follow the same rule: the centre's matrix times the change of its argument, plus the matrix's change times the
argument anywhere in the ball. Each number is capped by the product of norms that holds everywhere. A skip adds the
change of the h that it adds, and its cap. The rounding of z is one more radius (`SampleNorms.rounding`), that of the
sums a few u of the norms of their terms.

Without caps, every change is a nonnegative, increasing and convex function of the radius: it is made of the radius by
sums, products and roots of sums of squares of nonnegative numbers. Of two bounds the one that is smaller at R is then
used for smaller radii too. At radius 0 a change is rounding: the numbers were measured at weights that differ from
exact ones by the rounding radius, so that the same change once more leads to the exact centre. There the larger of two
bounds is taken, which covers both.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch

from tvgrad.bounds.derivatives.sample_norms import EVALUATION, Pair, SampleNorms
from tvgrad.bounds.derivatives.worst_case import layer_stretch, magnitudes, perturbation
from tvgrad.bounds.losses.base import LocalLoss, Loss
from tvgrad.bounds.network.network import Network
from tvgrad.numerics.floats import FEW_OPERATIONS_MARGIN, TINY, UNIT_ROUNDOFF, round_up

Vector = torch.Tensor


@dataclass(frozen=True)
class BallNorms:
    """Upper bounds that hold anywhere in a ball, (n,) each.

    Attributes:
        norms: the numbers that were measured, widened; its sizes, columns and `|q|` are still those of the centre.
        steps: `At` of each layer: how far a unit step in its parameters moves its z.
        loss: of the loss, at all logits that the ball reaches.
    """

    norms: SampleNorms
    steps: list[Vector]
    loss: LocalLoss


def measured_norms(network: Network, loss: Loss, at: SampleNorms) -> BallNorms:
    """The numbers as they were measured, at the centre and without their rounding.

    Args:
        network: the network that was measured.
        loss: the loss.
        at: what was measured.

    Returns:
        The same numbers.
    """
    steps = [perturbation(network, end, at.sizes[source]) for end, source in enumerate(network.skips.reads)]
    return BallNorms(at, steps, loss.local(at.logits, at.targets, 0.0, at.curvatures))


def ball_norms(network: Network, loss: Loss, at: SampleNorms, radius: float, *, capped: bool = True) -> BallNorms:
    """Widen what was measured to a ball.

    Args:
        network: the network that was measured.
        loss: the loss.
        at: what was measured.
        radius: of the ball, in the trainable parameters.
        capped: whether numbers are capped by what holds everywhere; without caps they are convex in the radius.

    Returns:
        Bounds that hold anywhere in the ball.

    Raises:
        OutsideValidity: an activation is another function somewhere in the ball.
    """  # noqa: DOC502 - raised by the network
    ball = _Widening(network, at, radius, capped)
    for end in range(network.depth):
        ball.go_forward(end)
    moved = ball.z_changes[-1]
    widened = loss.local(at.logits, at.targets, moved, at.curvatures) if capped else _uncapped(loss, at, moved, radius)
    z_gradient, h_gradient = ball.go_backward(widened)
    of_z = at.z_columns, at.z_columns_second, at.z_jacobian, ball.z_jacobian_changes, ball.z_jacobian
    of_h = at.h_columns, at.h_columns_second, at.h_jacobian, ball.h_jacobian_changes, ball.h_jacobian
    norms = replace(
        at,
        maxima=ball.maxima,
        z_jacobian=ball.z_jacobian,
        h_jacobian=ball.h_jacobian,
        z_columns_second={pair: ball.column(pair, *of_z) for pair in at.z_columns},
        h_columns_second={pair: ball.column(pair, *of_h) for pair in at.h_columns},
        z_gradient=z_gradient,
        h_gradient=h_gradient,
    )
    return BallNorms(norms, ball.steps, widened)


def _uncapped(loss: Loss, at: SampleNorms, moved: Vector, radius: float) -> LocalLoss:
    """The loss's bounds at the logits, each with what it changes by over a distance."""
    local = loss.local(at.logits, at.targets, 0.0, at.curvatures)
    uniform = loss.uniform(at.targets, at.logits.shape[1], 0.0)
    hessian = round_up(local.hessian + uniform.third * moved, 8 * UNIT_ROUNDOFF)
    # of the bounds of the fourth derivative the smaller one; at the centre the larger one, which covers both
    fourth = loss.fourth(hessian if radius else hessian + uniform.hessian, uniform.hessian)
    third = round_up(local.third + fourth * moved, 8 * UNIT_ROUNDOFF)
    return replace(local, hessian=hessian, third=third)


class _Widening:
    """A pass forward and one backward through the layers; each number with a bound on its change over the ball."""

    def __init__(self, network: Network, at: SampleNorms, radius: float, capped: bool) -> None:
        self.network, self.at, self.radius, self.capped = network, at, radius, capped
        self.ones = torch.ones(len(at.logits), dtype=torch.float64)
        self.zeros = torch.zeros_like(self.ones)
        # Of two bounds the smaller one; at the centre of uncapped numbers the larger one, which covers both.
        self.choose = torch.maximum if not capped and radius == 0 else torch.minimum
        self.norms = [layer.spectral_norm for layer in network.layers]
        pairs = zip(network.layers, at.rounding, strict=True)
        self.weight_changes = [layer.moves_weight * radius + rounding for layer, rounding in pairs]
        self.stretches = [layer_stretch(network, index, radius) + each for index, each in enumerate(at.rounding)]
        self.largest_sizes, _ = magnitudes(network, at.sizes[0], radius)
        self.sizes: list[Vector] = []
        self.steps: list[Vector] = []
        self.z_changes: list[Vector] = []
        self.h_changes, self.h_rounding = [self.zeros], [self.zeros]  # of h_k; the rounding is a part of the change
        self.maxima: dict[Pair, Vector] = {}
        self.maxima_changes: dict[Pair, Vector] = {}
        self.z_jacobian: dict[Pair, Vector] = {}
        self.h_jacobian: dict[Pair, Vector] = {}
        self.z_jacobian_changes: dict[Pair, Vector] = {}
        self.h_jacobian_changes: dict[Pair, Vector] = {}
        self.caps: dict[Pair, Vector] = {}  # of the z_jacobian

    def go_forward(self, end: int) -> None:
        """Widen what belongs to one layer, after all layers before it."""
        source = self.network.skips.reads[end]
        largest = round_up(self.largest_sizes[end], FEW_OPERATIONS_MARGIN)
        self.sizes.append(self._capped(self.at.sizes[end] + self.h_changes[end], largest))
        if self.capped:
            self.steps.append(perturbation(self.network, end, self.sizes[source]))
        else:  # a root of a sum of squares grows by less than what changes in it
            at_centre = perturbation(self.network, end, self.at.sizes[source])
            self.steps.append(at_centre + self.network.layers[end].moves_weight * self.h_changes[source])
        self._widen_z_jacobians(end)
        rounding = self._move_z(end)
        if end < self.network.depth - 1:
            self._widen_activation(end)
            self._move_h(end, rounding)

    def _capped(self, value: Vector, cap: Vector) -> Vector:
        return torch.minimum(value, cap) if self.capped else value

    def _widen_z_jacobians(self, end: int) -> None:
        self.z_jacobian_changes[end, end], self.z_jacobian[end, end], self.caps[end, end] = (
            self.zeros, self.ones, self.ones,
        )  # fmt: skip
        source, added = self.network.skips.reads[end], self.network.skips.adds[end]
        for j in range(end):
            change = cap = self.zeros
            if source > j:
                change = self.weight_changes[end] * self.h_jacobian[j, source - 1]
                change = change + self.norms[end] * self.h_jacobian_changes[j, source - 1]
                cap = self.caps[j, source - 1] * self.stretches[end] * self.maxima[1, source - 1]
            for k in added:
                if k > j:
                    change = change + self.h_jacobian_changes[j, k - 1]
                    cap = cap + self.caps[j, k - 1] * self.maxima[1, k - 1]
            self.z_jacobian_changes[j, end], self.caps[j, end] = change, cap
            self.z_jacobian[j, end] = self._capped(self.at.z_jacobian[j, end] + change, cap)

    def _move_z(self, end: int) -> Vector:
        """Bound how far z_l moves, rounding included; return the part that is rounding."""
        layer, source, added = self.network.layers[end], self.network.skips.reads[end], self.network.skips.adds[end]
        terms = sum((self.sizes[k] for k in added), self.norms[end] * self.sizes[source] + layer.offset_size)
        own = self.at.rounding[end] * torch.hypot(self.sizes[source], self.ones)
        own = own + 2 * len(added) * UNIT_ROUNDOFF * terms
        moved = self.radius * self.steps[end] + own + self.norms[end] * self.h_changes[source]
        moved = sum((self.h_changes[k] for k in added), moved)
        rounding = sum((self.h_rounding[k] for k in added), own + self.norms[end] * self.h_rounding[source])
        self.z_changes.append(self.choose(moved, self._along_ball(self.z_jacobian, end) + rounding))
        return rounding

    def _widen_activation(self, end: int) -> None:
        """The maxima of s' to s''' over the units, and the Jacobians of h_l."""
        self.network.check_validity(end, self.at.highest[end], self.z_changes[end], self.radius)
        s = self.network.layers[end].activation
        for order, (bound, following) in enumerate(itertools.pairwise((s.b1, s.b2, s.b3, s.b4)), start=1):
            change = self._capped(following * self.z_changes[end], 2 * bound * self.ones)
            self.maxima_changes[order, end] = change
            self.maxima[order, end] = self._capped(self.at.maxima[order, end] + change, bound * self.ones)
        for j in range(end + 1):
            change = self.maxima_changes[1, end] * self.at.z_jacobian[j, end]
            change = change + self.maxima[1, end] * self.z_jacobian_changes[j, end]
            self.h_jacobian_changes[j, end] = change
            cap = self.caps[j, end] * self.maxima[1, end]
            self.h_jacobian[j, end] = self._capped(self.at.h_jacobian[j, end] + change, cap)

    def _move_h(self, end: int, rounding: Vector) -> None:
        """Bound how far h_l moves: `|s(z + d) - s(z)| <= |s'| |d| + b2 d^2 / 2`, entry by entry."""
        layer, skips, moved = self.network.layers[end], self.network.skips, self.z_changes[end]
        s = layer.activation
        change = self.choose(s.b1 * moved, self.at.maxima[1, end] * moved + 0.5 * s.b2 * moved.square())
        change = self.choose(change, self._along_ball(self.h_jacobian, end) + s.b1 * rounding)
        z = self.norms[end] * self.sizes[skips.reads[end]] + layer.offset_size
        z = sum((self.sizes[k] for k in skips.adds[end]), z)
        # |s(z)| is at most b1 |z| + |s(0)|; a folded BatchNorm's terms may cancel in it
        evaluation = EVALUATION * (2 * s.b1 * z + layer.width**0.5 * (s.at_zero + 2 * s.added + TINY))
        self.h_changes.append(change + evaluation)
        self.h_rounding.append(s.b1 * rounding + evaluation)

    def _along_ball(self, jacobian: dict[Pair, Vector], end: int) -> Vector:
        """R times a bound of the derivative anywhere on the way, all layers' steps together (mean value theorem)."""
        squares = ((jacobian[j, end] * self.steps[j]).square() for j in range(end + 1))
        return self.radius * sum(squares, self.zeros).sqrt()

    def column(
        self,
        pair: Pair,
        columns: dict[Pair, Vector],
        columns_second: dict[Pair, Vector],
        at_centre: dict[Pair, Vector],
        changes: dict[Pair, Vector],
        jacobian: dict[Pair, Vector],
    ) -> Vector:
        """Widen the largest column norm of `dz_l/dh_k diag s''` or `dh_l/dh_k diag s''`.

        Args:
            pair: (k, l).
            columns: the norms without s'', as measured.
            columns_second: the norms, as measured.
            at_centre: the Jacobians in the z, as measured.
            changes: how much they change.
            jacobian: the Jacobians anywhere in the ball.

        Returns:
            The norm anywhere in the ball.
        """
        k, end = pair
        collect, stretches = self.network.skips.collect, self.stretches
        change = collect(
            k,
            lambda m: changes[m, end] * stretches[m] + at_centre[m, end] * self.weight_changes[m],
            lambda m: changes[m, end],
            end,
        )
        whole = collect(k, lambda m: jacobian[m, end] * stretches[m], lambda m: jacobian[m, end], end)
        return self._weighted(2, k, columns_second[pair], columns[pair], change, whole)

    def _weighted(
        self, order: int, k: int, weighted: Vector, plain: Vector, change: list[Vector], whole: list[Vector]
    ) -> Vector:
        """Widen a number that is measured with and without a derivative of the activation that makes h_k."""
        unit = (order, k - 1)
        wide = weighted + plain * self.maxima_changes[unit] + sum(change, self.zeros) * self.maxima[unit]
        return self._capped(wide, sum(whole, self.zeros) * self.maxima[unit])

    def go_backward(self, loss: LocalLoss) -> tuple[dict[int, Vector], dict[Pair, Vector]]:
        """Widen the norms of p_l, and the weighted ones of q_l."""
        at, last = self.at, self.network.depth - 1
        skips, stretches = self.network.skips, self.stretches
        start = at.z_gradient[last] + loss.residual_error
        drift = self._capped(loss.hessian * self.z_changes[-1], start + loss.gradient) + loss.residual_error
        # what goes back through a matrix of zeros is zero, without rounding
        inexact = [
            0.0 if norm == 0 and layer.gains is None else rounding / max(norm, 1e-300)
            for layer, rounding, norm in zip(self.network.layers, at.rounding, self.norms, strict=True)
        ]
        reach, changes, gradient = {last: start}, dict[int, Vector](), dict[int, Vector]()
        for m in range(last, -1, -1):
            if m < last:
                terms = skips.collect(m + 1, lambda r: reach[r] * stretches[r], reach.__getitem__)
                reach[m] = sum(terms, self.zeros) * self.network.layers[m].activation.b1
            # p_m accumulated the rounding of the backward products, each relative to the norms of its factors.
            relative = 4 * (sum(inexact[m + 1 :]) + (last + 1) * skips.extra * UNIT_ROUNDOFF)
            change = self.z_jacobian[m, last] * drift + self.z_jacobian_changes[m, last] * start
            changes[m] = change + relative * reach[m]
            gradient[m] = self._capped(at.z_gradient[m] + changes[m], self.z_jacobian[m, last] * loss.gradient)
        h_gradient = {}
        for order, k in itertools.product((2, 3), range(1, last + 1)):
            change_of_q = skips.collect(
                k, lambda m: self.weight_changes[m] * gradient[m] + self.norms[m] * changes[m], changes.__getitem__
            )
            whole = skips.collect(k, lambda m: stretches[m] * gradient[m], gradient.__getitem__)
            measured = at.h_gradient[order, k - 1], at.h_gradient[0, k - 1]
            h_gradient[order, k - 1] = self._weighted(order, k, *measured, change_of_q, whole)
        return gradient, h_gradient
