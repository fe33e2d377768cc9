"""The second-order expansion of full-batch training round theta_0: four vectors, and any number of epochs from them.

With the coefficients of `tvgrad.update_rules.linear`, v = g_0 + lambda theta_0 and w = (H_0 + lambda I) v for coupled
decay lambda (v = g_0, w = H_0 g_0 without),

    order 1:  tau^(k) = -(1 - P[k,0]) theta_0 - S_k v
    order 2:  tau^(k) = order 1 + Q_k w + D_k H_0 theta_0

so that one gradient and one Hessian-vector product serve all k and all rates; decoupled decay takes a second product.

The order-2 term grows without end, while in training the curved directions are used up. The same two vectors give the
curvature along w, `c = <w, w> / <v, w>`: if w were an eigenvector, c would be its eigenvalue, and the quadratic model
could be followed in closed form. The *saturated* norm does so: `q_k(c) ||w||`,
where `q_k(c) = sum_e c[k,e] y_e` and `y_e` follows the rule with gradient `1 - c y`; at c = 0 this is Q_k. It differs
from order 2 in third order alone, and is the better estimate of a norm at the rates that people use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq

from tvgrad.problem.objective import Objective
from tvgrad.update_rules.base import Array
from tvgrad.update_rules.linear import LinearRule
from tvgrad.update_rules.stability import step_growth
from tvgrad.vectors.algebra import combination, to_float64
from tvgrad.vectors.parameters import Weights, inner_product

MOST_EPOCHS = 100_000


@dataclass(frozen=True)
class Expansion:
    """The vectors of the expansion, and their inner products.

    Attributes:
        start: theta_0, in float64.
        gradient: v, the gradient with coupled decay's part.
        hessian_gradient: w, the Hessian with coupled decay's part times v.
        hessian_start: H_0 theta_0 under decoupled decay, else None.
        loss_gradient: g_0 alone, in the objective's dtype.
        products: inner products of (v, theta_0, w, H_0 theta_0); rows that are not needed are zero.
    """

    start: Weights
    gradient: Weights
    hessian_gradient: Weights
    hessian_start: Weights | None
    loss_gradient: Weights
    products: tuple[tuple[float, ...], ...]

    @property
    def rayleigh(self) -> float:
        """`<v, w> / <v, v>`: no more than the largest eigenvalue of the Hessian (with coupled decay's part)."""
        return self.products[0][2] / self.products[0][0] if self.products[0][0] else math.nan

    def order1(self, rule: LinearRule, epochs: int) -> Weights:
        """Predict the task vector to first order.

        Args:
            rule: the update rule.
            epochs: k.

        Returns:
            Name -> float64 tensor.
        """
        return self._combined(self._coefficients(rule, epochs)[epochs, :2], (self.gradient, self.start))

    def order2(self, rule: LinearRule, epochs: int) -> Weights:
        """Predict the task vector to second order.

        Args:
            rule: the update rule.
            epochs: k.

        Returns:
            Name -> float64 tensor.
        """
        vectors = (self.gradient, self.start, self.hessian_gradient, self.hessian_start)
        return self._combined(self._coefficients(rule, epochs)[epochs], vectors)

    def error_norms(self, rule: LinearRule, epochs: int) -> Array:
        """Predict the norm of the second-order error after every epoch.

        Args:
            rule: the update rule.
            epochs: k.

        Returns:
            `||Q_s w + D_s H_0 theta_0||` for s = 0 .. k.
        """
        return self._norms(self._second_order(rule, epochs))

    def saturated_norms(self, rule: LinearRule, epochs: int) -> Array:
        """Predict the norm of the second-order error after every epoch, with saturation.

        Args:
            rule: the update rule.
            epochs: k.

        Returns:
            `||q_s w + D_s H_0 theta_0||` for s = 0 .. k; those of `error_norms` where the gradient does not point along
            positive curvature, or the rule is not stable on it.
        """
        coefficients, curvature = self._second_order(rule, epochs), self._curvature
        # v and w contain coupled decay already
        stable = all(step_growth(rule, curvature - rule.coupled_decay, rate) <= 1 for rate in set(rule.rates(epochs)))
        if curvature > 0 and stable:
            coefficients[:, 2] = rule.weighted_sums(_saturating(rule, curvature, epochs))
        return self._norms(coefficients)

    @property
    def _curvature(self) -> float:
        """`<w, w> / <v, w>`; 0 where v and w are nearly orthogonal, so that no one curvature describes them."""
        vv, vw, ww = self.products[0][0], self.products[0][2], self.products[2][2]
        return ww / vw if vw > 0.1 * math.sqrt(vv * ww) else 0.0

    def relative_errors(self, rule: LinearRule, epochs: int) -> Array:
        """Predict the second-order error over the norm of the first-order task vector, after every epoch.

        Args:
            rule: the update rule.
            epochs: k.

        Returns:
            Numbers for s = 0 .. k; 0 where both vanish.
        """
        coefficients = self._coefficients(rule, epochs)
        first, second = coefficients.copy(), coefficients
        first[:, 2:], second[:, :2] = 0, 0
        sizes, errors = self._norms(first), self._norms(second)
        ratios: Array = np.divide(errors, sizes, out=np.where(errors > 0, np.inf, 0.0), where=sizes > 0)
        return ratios

    def epochs_within(self, rule: LinearRule, threshold: float) -> int | None:
        """Find how many epochs keep the predicted relative error at or below a threshold.

        Args:
            rule: the update rule; a schedule is followed to its end.
            threshold: the relative error.

        Returns:
            The last epoch before the first that passes it; None where none does, up to the schedule's end or 100,000.
        """
        most = len(rule.lr) if isinstance(rule.lr, Sequence) else MOST_EPOCHS
        tried = min(64, most)
        while True:
            # Rates so large that the sums overflow give NaN, which is not within anything.
            over = np.flatnonzero(~(self.relative_errors(rule, tried) <= threshold))
            if len(over):
                return int(over[0]) - 1
            if tried == most:
                return None
            tried = min(8 * tried, most)

    def rate_factor_within(self, rule: LinearRule, epochs: int, threshold: float) -> float:
        """Find the factor on the learning rate (or on a whole schedule) at which the predicted error is a threshold.

        Args:
            rule: the update rule.
            epochs: k.
            threshold: the relative error after k epochs.

        Returns:
            The factor; infinite where no rate that the rule allows reaches it.
        """
        present = float(self.relative_errors(rule, epochs)[epochs])
        if present == 0:
            return math.inf
        if not rule.decoupled_decay:
            return threshold / present  # S is of degree 1 in the rate, and Q of degree 2
        largest = float(rule.rates(epochs).max())
        limit = 0.999 / (largest * rule.decoupled_decay)

        def excess(logarithm: float) -> float:
            scaled = _scaled(rule, math.exp(logarithm))
            return float(self.relative_errors(scaled, epochs)[epochs]) - threshold

        low, high = math.log(1e-9 * min(1.0, limit)), math.log(limit)
        if excess(high) < 0:
            return math.inf
        return math.exp(brentq(excess, low, high, xtol=1e-9)) if excess(low) < 0 else 0.0

    def _coefficients(self, rule: LinearRule, epochs: int) -> Array:
        """Coefficients of (v, theta_0, w, H_0 theta_0) in the order-2 prediction, one row for each epoch."""
        return np.stack(
            [
                -rule.first_order_weights(epochs),
                -rule.decay_shrinkages(epochs),
                rule.second_order_weights(epochs),
                rule.decay_weights(epochs) if self.hessian_start is not None else np.zeros(epochs + 1),
            ],
            axis=1,
        )

    def _second_order(self, rule: LinearRule, epochs: int) -> Array:
        coefficients = self._coefficients(rule, epochs)
        coefficients[:, :2] = 0
        return coefficients

    def _norms(self, coefficients: Array) -> Array:
        squares = np.einsum("ki,ij,kj->k", coefficients, np.array(self.products), coefficients)
        return np.asarray(np.sqrt(np.maximum(squares, 0.0)))

    @staticmethod
    def _combined(coefficients: Array, vectors: tuple[Weights | None, ...]) -> Weights:
        pairs = zip(coefficients.tolist(), vectors, strict=True)
        return combination(*((coefficient, vector) for coefficient, vector in pairs if vector is not None))


def expand(
    objective: Objective,
    rule: LinearRule,
    at: Mapping[str, torch.Tensor] | None = None,
    gradient: Mapping[str, torch.Tensor] | None = None,
) -> Expansion:
    """Compute the vectors of the expansion: one gradient and one Hessian-vector product (two under decoupled decay).

    Args:
        objective: model, loss and data.
        rule: the update rule; of it only the decay is read.
        at: theta_0; by default the objective's own weights.
        gradient: the full-batch gradient there, where it is known already.

    Returns:
        The expansion.
    """
    start = to_float64(objective.initial if at is None else at, objective.home)
    loss_gradient = objective.gradient(at) if gradient is None else dict(gradient)
    v = to_float64(loss_gradient, objective.home)
    if rule.coupled_decay:
        v = combination((1.0, v), (rule.coupled_decay, start))
    w, *others = (to_float64(one) for one in objective.hvps([v, start] if rule.decoupled_decay else [v], at))
    if rule.coupled_decay:
        w = combination((1.0, w), (rule.coupled_decay, v))
    hessian_start = others[0] if others else None
    vectors = (v, start if rule.decoupled_decay else None, w, hessian_start)
    products = tuple(
        tuple(0.0 if one is None or other is None else inner_product(one, other) for other in vectors)
        for one in vectors
    )
    return Expansion(start, v, w, hessian_start, loss_gradient, products)


def _saturating(rule: LinearRule, curvature: float, epochs: int) -> Array:
    """`y_e` for e = 0 .. k-1: minus the displacement of the rule on a parabola, over its first gradient."""
    found = np.zeros(epochs)
    displacement, buffer = 0.0, None
    for step, rate in enumerate(rule.rates(epochs)):
        found[step] = displacement
        direction, buffer = rule.average.direction(np.asarray(1.0 - curvature * displacement), buffer)
        displacement = float((1 - rate * rule.decoupled_decay) * displacement + rate * direction)
    return found


def _scaled(rule: LinearRule, factor: float) -> LinearRule:
    rates = rule.lr
    return rule.with_lr([factor * rate for rate in rates] if isinstance(rates, Sequence) else factor * rates)
