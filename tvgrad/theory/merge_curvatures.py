"""MergeCurvatures: what Hessian-vector products tell of the losses of all tasks along all task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tvgrad.problem.objective import Objective
from tvgrad.theory.forecast import Forecast
from tvgrad.vectors.algebra import combination, to_float64, zeros_like
from tvgrad.vectors.parameters import Weights, inner_product


@dataclass(frozen=True)
class MergeCurvatures:
    """What is known of the losses to second order.

    Attributes:
        slopes: `<g_s, tau_u>`.
        pairs: `<tau_t, H_s tau_u>`, or None.
        own: `<tau_t, H_s tau_s>`, shape (tasks s, tasks t).
        merged: `<tau_t, H_s T>`, likewise.
    """

    slopes: NDArray[np.float64]
    pairs: NDArray[np.float64] | None
    own: NDArray[np.float64]
    merged: NDArray[np.float64]

    @property
    def summed(self) -> NDArray[np.float64]:
        """`sum_s <tau_t, H_s tau_u>`.

        Without all pairs, what two other tasks do to each other in a task's loss is put on the diagonal, so that the
        sums over u are right.
        """
        if self.pairs is not None:
            return np.asarray(self.pairs.sum(axis=0))
        count = len(self.own)
        total = np.zeros((count, count))
        for task in range(count):
            part = np.diag(self.merged[task] - self.own[task])
            part[task, :] = part[:, task] = self.own[task]
            total += part
        return total


def curvatures(
    objectives: Sequence[Objective],
    vectors: Sequence[Weights],
    told: Sequence[Forecast],
    slopes: NDArray[np.float64],
    *,
    all_pairs: bool,
) -> MergeCurvatures:
    """Measure how the losses are curved along the task vectors: one product a task, or one for each pair.

    Args:
        objectives: one a task.
        vectors: the task vectors.
        told: their forecasts, whose products are taken again; empty for given task vectors.
        slopes: `<g_s, tau_u>`.
        all_pairs: measure every pair.

    Returns:
        They.
    """

    def against(products: Sequence[Weights]) -> NDArray[np.float64]:
        return np.array([[inner_product(vector, product) for vector in vectors] for product in products])

    if all_pairs:
        found = []
        for objective in objectives:
            matrix = against([to_float64(one, objective.home) for one in objective.hvps(vectors)])
            found.append((matrix + matrix.T) / 2)
        pairs = np.array(found)
        return MergeCurvatures(
            slopes, pairs, np.array([matrix[s] for s, matrix in enumerate(pairs)]), pairs.sum(axis=2)
        )
    merged, own, along = [], [], combination(*((1.0, vector) for vector in vectors))
    for task, objective in enumerate(objectives):
        if told:
            model = told[task].model
            pairs_of = list(zip(model.coordinates(vectors[task]), model.products, strict=True))
            mine = combination(*pairs_of) if pairs_of else zeros_like(along)
            [product] = objective.hvps([along])
        else:
            product, mine = objective.hvps([along, vectors[task]])
        merged.append(to_float64(product, objective.home))
        own.append(to_float64(mine, objective.home))
    return MergeCurvatures(slopes, None, against(own), against(merged))
