"""Gradients and Hessian products of several tasks as basis vectors, and what any two of the tasks are in that basis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tvgrad.errors import TvgradError
from tvgrad.problem.objective import Objective
from tvgrad.theory.secant_model import SecantModel
from tvgrad.update_rules.base import Array
from tvgrad.update_rules.linear import LinearRule
from tvgrad.vectors.algebra import to_float64
from tvgrad.vectors.parameters import Weights, cosine_from, inner_product

PARALLEL = 1e-12
"""Squared sine of an angle below which two gradients count as one direction, whose second product tells nothing new."""


@dataclass(frozen=True)
class PairForecast:
    """Two task vectors on quadratic models, as numbers.

    Attributes:
        cosine: of the task vectors; NaN where one is zero.
        changes: of each task's loss when the other task vector is added to its own.
        lines: (a, b, c) of each loss along `tau_a + x tau_b`, minus that at theta_0: `a + b x + c x^2`.
    """

    cosine: float
    changes: tuple[float, float]
    lines: tuple[Array, Array]


@dataclass(frozen=True)
class PairBasis:
    """theta_0, the gradients g_t, and the products: H_t g_t of each task, or H_t g_s of each two tasks.

    Attributes:
        tasks: how many.
        gram: inner products of the vectors, in this order; products stand task by task.
        cross: whether the products with other tasks' gradients are there.
    """

    tasks: int
    gram: Array
    cross: bool

    @classmethod
    def of(cls, objectives: Sequence[Objective], names: Sequence[str], *, cross: bool) -> PairBasis:
        """Compute the vectors and their inner products.

        Args:
            objectives: of the tasks, all at the same weights.
            names: of the tasks, for messages.
            cross: take the products with the other tasks' gradients too.

        Returns:
            The basis.

        Raises:
            TvgradError: a gradient or a product is not finite.
        """
        device = objectives[0].home
        gradients = [to_float64(task.gradient(), device) for task in objectives]
        vectors: list[Weights] = [to_float64(objectives[0].initial, device), *gradients]
        for place, task in enumerate(objectives):
            wanted = gradients if cross else [gradients[place]]
            vectors += [to_float64(product, device) for product in task.hvps(wanted)]
        gram = np.empty((len(vectors), len(vectors)))
        for row, one in enumerate(vectors):
            for column in range(row + 1):
                gram[row, column] = gram[column, row] = inner_product(one, vectors[column])
        products = (len(vectors) - 1 - len(names)) // len(names)
        for place, name in enumerate(names):
            own = [1 + place, *range(1 + len(names) + place * products, 1 + len(names) + (place + 1) * products)]
            if not np.isfinite(gram[np.ix_(own, own)]).all():
                raise TvgradError(
                    f"the gradient or the Hessian of {name} is not finite at the pretrained weights: check model, "
                    "loss and data"
                )
        return cls(len(names), gram, cross)

    def own(self, task: int) -> SecantModel:
        """Model a task's loss from the product with its own gradient.

        Args:
            task: which.

        Returns:
            The model.
        """
        gradient = self._gradient(task)
        return SecantModel.fitted(self.gram, gradient, [gradient], [self._product(task, task)])

    def seen_from(self, task: int, other: int) -> SecantModel:
        """Model a task's loss from all that is known of it along its own and another task's gradient.

        Args:
            task: whose loss.
            other: the other task.

        Returns:
            The model; `own` without cross products.
        """
        own, mixed, others = (self.gram[1 + a, 1 + b] for a, b in ((task, task), (task, other), (other, other)))
        if not self.cross or own * others - mixed**2 <= PARALLEL * own * others:
            return self.own(task)
        both = (task, other)
        return SecantModel.fitted(
            self.gram,
            self._gradient(task),
            [self._gradient(probe) for probe in both],
            [self._product(task, probe) for probe in both],
        )

    def without_cross(self) -> PairBasis:
        """Forget the products with other tasks' gradients.

        Returns:
            The basis that one product a task makes.
        """
        if not self.cross:
            return self
        first = 1 + self.tasks
        kept = [*range(first), *(first + task * (self.tasks + 1) for task in range(self.tasks))]
        return PairBasis(self.tasks, self.gram[np.ix_(kept, kept)], cross=False)

    def task_vector(self, rule: LinearRule, steps: int, task: int) -> Array:
        """Follow a rule on a task's own model.

        Args:
            rule: how it is trained.
            steps: of training.
            task: which.

        Returns:
            The coordinates of its task vector.
        """
        return self.own(task).task_vector(rule, steps, self._unit(0))

    def forecast(self, left: Array, right: Array, first: int, second: int) -> PairForecast:
        """Combine two task vectors.

        Args:
            left: coordinates of task a's.
            right: coordinates of task b's.
            first: task a.
            second: task b.

        Returns:
            The numbers.
        """
        models = self.seen_from(first, second), self.seen_from(second, first)
        changes = tuple(
            float(model.line(own, other)[1:].sum())
            for model, own, other in ((models[0], left, right), (models[1], right, left))
        )
        return PairForecast(
            self.cosine(left, right),
            (changes[0], changes[1]),
            (models[0].line(left, right), models[1].line(left, right)),
        )

    def cosine(self, left: Array, right: Array) -> float:
        """Cosine of two vectors.

        Args:
            left: coordinates.
            right: coordinates.

        Returns:
            A number in [-1, 1], NaN where one of them is zero or not finite.
        """
        lengths = [math.sqrt(max(float(one @ self.gram @ one), 0.0)) for one in (left, right)]
        return cosine_from(float(left @ self.gram @ right), lengths[0] * lengths[1])

    def cosine_of_gradients(self, first: int, second: int) -> float:
        """Cosine of two tasks' gradients at theta_0.

        Args:
            first: task a.
            second: task b.

        Returns:
            As `cosine`.
        """
        return self.cosine(self._gradient(first), self._gradient(second))

    def _unit(self, place: int) -> Array:
        return np.asarray(np.eye(len(self.gram))[place])

    def _gradient(self, task: int) -> Array:
        return self._unit(1 + task)

    def _product(self, task: int, probe: int) -> Array:
        return self._unit(1 + self.tasks + (task * self.tasks + probe if self.cross else task))
