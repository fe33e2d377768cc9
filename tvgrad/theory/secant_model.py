"""A task's loss round theta_0 as a quadratic, made of one gradient and the few Hessian products that are known.

Of the Hessian H the products `w_i = H p_i` are known, the first of them with the gradient itself. Among all positive
semidefinite matrices with these products the smallest is `W (P'W)^-1 W'`, here the *secant* model; for one product it
is `w w' / <g, w>`, whose only curvature `<w, w> / <g, w>` is the one that the saturated error of
`tvgrad.theory.expansion` takes. Where a product points along negative or hardly any curvature there is no such matrix,
and the model is the smallest symmetric one, in the Frobenius norm: `W P+ + P+'W' - P+'(P'W) P+`.

Both agree with the true Hessian on the span of P, so that what they say of the task vector is right up to the third
order in the learning rate, as order 2 is. Everything happens in coordinates: a vector is a combination of basis vectors
whose inner products are known, and no vector of the size of the model is formed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tvgrad.update_rules.base import Array
from tvgrad.update_rules.linear import LinearRule

LEAST_COSINE = 0.1
"""Between a direction and its product: below, the two are nearly orthogonal, and no one curvature describes them."""
NOTHING_NEW = 1e-5
"""Share of a product, in norm, that rounding of float32 may leave where earlier products say all of it."""


@dataclass(frozen=True)
class SecantModel:
    """The quadratic of one task, in the coordinates of a basis B.

    Attributes:
        gram: inner products of the basis vectors, shape (n, n).
        gradient: coordinates of the task's gradient at theta_0, shape (n,).
        hessian: K, shape (n, n): the model's Hessian is `B K B'`.
        positive: whether it is positive semidefinite: the secant model.
    """

    gram: Array
    gradient: Array
    hessian: Array
    positive: bool

    @classmethod
    def fitted(cls, gram: Array, gradient: Array, probes: Sequence[Array], products: Sequence[Array]) -> SecantModel:
        """Make the model of what is known.

        Args:
            gram: inner products of the basis vectors, shape (n, n).
            gradient: coordinates of the gradient, shape (n,).
            probes: coordinates of the directions p_i, linearly independent, the gradient first.
            products: coordinates of `H p_i`, in the same order.

        Returns:
            The secant model, or the smallest symmetric one where a product is not along positive curvature.
        """
        hessian = np.zeros_like(gram)
        done: list[tuple[Array, Array, float]] = []
        for given, of_given in zip(probes, products, strict=True):
            probe, product = given, of_given
            for other, of_other, curvature in done:  # made conjugate to the earlier ones
                share = float(given @ gram @ of_other) / curvature
                probe, product = probe - share * other, product - share * of_other
            curvature, length = float(probe @ gram @ product), _norm(gram, product)
            lengths = _norm(gram, probe) * length
            if done and length <= NOTHING_NEW * _norm(gram, of_given):
                continue  # the earlier products say it already, up to rounding
            if not curvature > LEAST_COSINE * lengths:
                return cls(gram, gradient, _smallest_symmetric(gram, probes, products), positive=False)
            hessian = hessian + np.outer(product, product) / curvature
            done.append((probe, product, curvature))
        return cls(gram, gradient, hessian, positive=True)

    @property
    def curvature(self) -> float:
        """The sum of the Hessian's eigenvalues: of a secant model of one product, its only curvature."""
        return float(np.trace(self.hessian @ self.gram))

    def task_vector(self, rule: LinearRule, epochs: int, start: Array) -> Array:
        """Follow an update rule on the model.

        Args:
            rule: the rule, one step an epoch.
            epochs: k.
            start: coordinates of theta_0, which only weight decay reads; zeros without.

        Returns:
            The coordinates of the task vector after k epochs.
        """
        moved, buffer = np.zeros_like(self.gradient), None
        image = self.hessian @ self.gram
        for rate in rule.rates(epochs):
            slope = self.gradient + image @ moved + rule.coupled_decay * (moved + start)
            direction, buffer = rule.average.direction(slope, buffer)
            moved = moved - rate * (rule.decoupled_decay * (moved + start) + direction)
        return moved

    def line(self, origin: Array, direction: Array) -> Array:
        """Follow the loss along a line.

        Args:
            origin: coordinates of a displacement from theta_0.
            direction: coordinates.

        Returns:
            (a, b, c): at `origin + x direction` the loss minus that at theta_0 is `a + b x + c x^2`.
        """
        slopes = [float(self.gradient @ self.gram @ one) for one in (origin, direction)]
        images = [self.gram @ one for one in (origin, direction)]
        own, mixed, other = (
            float(one @ self.hessian @ two)
            for one, two in ((images[0], images[0]), (images[0], images[1]), (images[1], images[1]))
        )
        return np.array([slopes[0] + own / 2, slopes[1] + mixed, other / 2])


def _norm(gram: Array, vector: Array) -> float:
    return math.sqrt(max(float(vector @ gram @ vector), 0.0))


def _smallest_symmetric(gram: Array, probes: Sequence[Array], products: Sequence[Array]) -> Array:
    directions, images = np.stack(probes, axis=1), np.stack(products, axis=1)
    inverse = np.linalg.pinv(directions.T @ gram @ directions, hermitian=True)
    half = images @ inverse @ directions.T
    seen = directions.T @ gram @ images
    return np.asarray(half + half.T - directions @ inverse @ ((seen + seen.T) / 2) @ inverse @ directions.T)
