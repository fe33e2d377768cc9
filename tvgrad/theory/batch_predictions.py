"""Predictions for mini-batch epochs whose sample order is known.

With c[k,s] the rule's coefficients and B_s the batch of step s, everything on the right at theta_0,

    order 1:  tau = -sum_s c_s g_{B_s}
    order 2:  tau = order 1 + sum_s c_s H_{B_s} sum_{j<s} c[s,j] g_{B_j}

and the quadratic model follows the rule with `g_{B_s} + H_{B_s} q_s`. Each is the rule itself on other gradients, so
that the sums need no table of coefficients: two or three vectors are kept, and one batch's graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from tvgrad.problem.evaluations import Evaluations
from tvgrad.problem.objective import Objective
from tvgrad.update_rules.base import UpdateRule
from tvgrad.update_rules.rules import linear_rule
from tvgrad.update_rules.trajectory import Trajectory
from tvgrad.vectors.algebra import combination, to_float64
from tvgrad.vectors.parameters import Weights


@dataclass(frozen=True)
class BatchPrediction:
    """Predictions at the end of one epoch; the tensors are moved on in place when the next one is asked for.

    Attributes:
        epoch: epochs done.
        order1: `-sum_s c_s g_{B_s}(theta_0)`, with decay's first-order part.
        order2: with the curvature that each step saw, or None where it was not asked for.
        quadratic: the rule on the batches' quadratic models, or None where it was not asked for.
        counts: batch gradients and batch Hessian-vector products so far.
    """

    epoch: int
    order1: Weights
    order2: Weights | None
    quadratic: Weights | None
    counts: Evaluations


def batch_view(
    objective: Objective, indices: Sequence[int] | torch.Tensor, counts: Evaluations | None = None
) -> Objective:
    """The objective of one mini-batch, whose evaluations are counted apart from full passes over the data.

    Args:
        objective: model, loss and data.
        indices: positions of the batch's samples.
        counts: where they are counted; by default nowhere.

    Returns:
        A view; the chunk size is the whole objective's.
    """
    view = objective.subset(indices)
    view.evaluations = Evaluations() if counts is None else counts
    return view


def predict_batches(
    objective: Objective,
    rule: UpdateRule,
    epochs: Iterable[Sequence[torch.Tensor]],
    *,
    order2: bool = True,
    quadratic: bool = False,
    at: Mapping[str, torch.Tensor] | None = None,
) -> Iterator[BatchPrediction]:
    """Predict the task vector of mini-batch training in a known order, after each epoch.

    Costs one batch gradient and one batch Hessian-vector product a step (the first step needs no product), so about a
    gradient and a product over the data for each epoch; the quadratic model one product more a step after the second.

    Args:
        objective: model, loss and data.
        rule: a linear rule; its schedule counts steps.
        epochs: for each epoch, the positions of each batch's samples.
        order2: compute the second-order term.
        quadratic: follow the quadratic model too.
        at: theta_0; by default the objective's own weights.

    Yields:
        The predictions after each epoch.

    Raises:
        TvgradError: the rule is not linear.
    """
    linear = linear_rule(rule)
    start = to_float64(objective.initial if at is None else at, objective.home)
    counts = Evaluations()
    # Coupled decay acts on the displacement at which a gradient is taken: it is part of the gradients here.
    decay = linear.coupled_decay
    plain = linear.without_decay() if decay else linear
    first, second, model = (Trajectory(plain, start) for _ in range(3))
    step = 0
    for epoch, batches in enumerate(epochs, start=1):
        for indices in batches:
            view = batch_view(objective, indices, counts)
            gradient = to_float64(view.gradient(at))
            # After one step all three have the same displacement; before it, none.
            wanted = [] if step == 0 else [first.task_vector] if order2 or quadratic else []
            if quadratic and step > 1:
                wanted = [first.task_vector, model.task_vector] if order2 else [model.task_vector]
            products = view.hvps(wanted, at)
            if order2:
                second.step(_summed(gradient, products[:1], decay, (start, first.task_vector)))
            if quadratic:
                model.step(_summed(gradient, products[-1:], decay, (start, model.task_vector)))
            first.step(_summed(gradient, [], decay, (start,)))
            step += 1
        yield BatchPrediction(
            epoch,
            first.task_vector,
            second.task_vector if order2 else None,
            model.task_vector if quadratic else None,
            counts.copy(),
        )


def _summed(gradient: Weights, products: list[Weights], decay: float, decayed: tuple[Weights, ...]) -> Weights:
    """A batch's gradient at theta_0, its Hessian times the displacement, and coupled decay's part."""
    pulls = ((decay, vector) for vector in decayed if decay)
    return combination((1.0, gradient), *((1.0, product) for product in products), *pulls)
