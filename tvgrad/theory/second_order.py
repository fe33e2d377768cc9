"""Predictions of a task vector from the pretrained weights alone: to first order, to second order, and quadratic.

Order 1 is `-S_k g_0`: the task vector is the gradient. Order 2 adds `Q_k H_0 g_0`, from one Hessian-vector product; its
length is the predicted *second-order error*. The quadratic model follows the update rule on the loss's second-order
Taylor polynomial, one more product for each epoch after the second. All three are estimates: their residuals are of
order 2, 3 and 3 in the learning rate (the quadratic model's constant is usually the smaller one), and nothing bounds
them here; bounds are another matter (`tvgrad bound`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from tvgrad.errors import TvgradError
from tvgrad.problem.evaluations import Evaluations
from tvgrad.problem.objective import Objective, require_objective
from tvgrad.problem.recipe import positive, positive_integer
from tvgrad.results import Plotted, Result, Shown
from tvgrad.theory.curvature import Curvature, estimate_curvature
from tvgrad.theory.expansion import Expansion, expand
from tvgrad.theory.kinks import kink_sentence
from tvgrad.theory.quadratic_path import quadratic_path
from tvgrad.update_rules.base import UpdateRule
from tvgrad.update_rules.given import Given, as_rule
from tvgrad.update_rules.linear import LinearRule
from tvgrad.update_rules.rules import linear_rule
from tvgrad.update_rules.stability import growth_factor, stability_limit
from tvgrad.vectors.algebra import difference, to_float64
from tvgrad.vectors.parameters import Weights, norm
from tvgrad.wording import percent

THRESHOLD = 0.1

WORTHLESS = 2.0
"""Factor between the true and the predicted change of a gradient from which on kinks make a prediction worthless."""

SECOND_ORDER = (
    "error_norm",
    "order2_error_norm",
    "relative_error",
    "quadratic_error_norm",
    "epochs_within",
    "lr_within",
)
"""The numbers of a row that are withheld then."""

VISIBLE_SHARE = 5e-4


@dataclass(frozen=True)
class PredictionRow(Result):
    """The numbers of a prediction; all are estimates.

    Attributes:
        rule: the update rule's name.
        lr: the learning rate, or the largest of a schedule.
        epochs: k.
        task_vector_norm: norm of the order-2 task vector.
        error_norm: predicted norm of the second-order error, with saturation (see `tvgrad.theory.expansion`).
        order2_error_norm: the same without: `||order2 - order1||`.
        relative_error: `order2_error_norm` over the norm of the order-1 task vector.
        quadratic_error_norm: `||quadratic - order1||`, NaN where the quadratic model was not followed.
        threshold: relative error that the next two speak of.
        epochs_within: last epoch before the predicted relative error passes the threshold; NaN where none does.
        lr_within: learning rate (largest of the schedule) at which it is the threshold after k epochs.
        largest_eigenvalue: Lanczos estimate of lambda_max(H_0), NaN where it was not asked for.
        stability_limit: rate above which the quadratic model diverges by that estimate.
        growth_factor: estimate of what the quadratic model multiplies a deviation by in k epochs.
        frozen_share: share of the coordinates with a gradient that the first step will leave as they are, bit for bit,
            in the parameters' format.
        gradients: full-batch gradients that were computed.
        hvps: full-batch Hessian-vector products.
        kind: `estimate`.
    """

    rule: str
    lr: float
    epochs: int
    task_vector_norm: float
    error_norm: float
    order2_error_norm: float
    relative_error: float
    quadratic_error_norm: float
    threshold: float
    epochs_within: float
    lr_within: float
    largest_eigenvalue: float
    stability_limit: float
    growth_factor: float
    frozen_share: float
    gradients: int
    hvps: int
    kind: str = "estimate"


@dataclass(frozen=True, repr=False)
class Prediction(Plotted, Shown):
    """What the task vector of k epochs will be, by three estimates.

    Attributes:
        rule: the update rule.
        epochs: k.
        order1: `-S_k g_0` (with decay, its first-order form).
        order2: order 1 plus `Q_k H_0 g_0`.
        quadratic: the rule followed on the quadratic model, or None where it was not asked for.
        row: the numbers.
        counts: gradients and Hessian-vector products that it took.
        curvature: the spectrum's estimated end, or None where it was not asked for.
        sentences: what the user should know: divergence, kinks.
        relative_errors: the predicted relative error after 1 .. k epochs; empty where it is withheld.
    """

    rule: UpdateRule
    epochs: int
    order1: Weights
    order2: Weights
    quadratic: Weights | None
    row: PredictionRow
    counts: Evaluations
    curvature: Curvature | None
    sentences: tuple[str, ...]
    relative_errors: tuple[float, ...] = ()

    @cached_property
    def norms(self) -> dict[str, float]:
        """Norms of the three task vectors, and of their second-order parts (`error`, `quadratic_error`)."""
        found = {"order1": norm(self.order1), "order2": norm(self.order2), "error": self.row.order2_error_norm}
        if self.quadratic is not None:
            found |= {"quadratic": norm(self.quadratic), "quadratic_error": self.row.quadratic_error_norm}
        return found


@np.errstate(over="ignore", invalid="ignore")  # huge rates give infinite norms, and sentences that say so
def predict(
    objective: Objective,
    rule: Given,
    epochs: int,
    *,
    quadratic: bool = True,
    curvature: bool = False,
    threshold: float = THRESHOLD,
    at: Mapping[str, torch.Tensor] | None = None,
) -> Prediction:
    """Predict the task vector of full-batch training before it is trained.

    Orders 1 and 2 take one gradient and one Hessian-vector product whatever k is (two under decoupled decay); the
    quadratic model takes k - 2 more, and lambda_max a few dozen. `planned_cost` tells the count beforehand.

    Args:
        objective: model, loss and data.
        rule: a linear update rule, or an optimizer that follows one; one step an epoch.
        epochs: k, at least 1.
        quadratic: follow the quadratic model too.
        curvature: estimate lambda_max by Lanczos, and with it the stability limit and the growth factor.
        threshold: relative error up to which the task vector counts as the gradient.
        at: the pretrained weights; by default the objective's own.

    Returns:
        The predictions.

    Raises:
        TvgradError: there is no objective, the rule is not linear, its schedule too short, or a number out of range.

    Examples:
        >>> import torch, tvgrad
        >>> model, data = torch.nn.Linear(3, 1, bias=False).double(), (torch.eye(3).double(), torch.ones(3, 1).double())
        >>> objective = tvgrad.Objective(model, torch.nn.MSELoss(), data)
        >>> row = tvgrad.predict(objective, tvgrad.update_rules.GD(0.1), epochs=5).row
        >>> round(row.relative_error, 3)  # the Hessian is 2/3 of the identity: (k - 1)/2 times 0.1 times 2/3
        0.133
    """
    require_objective(objective)
    positive_integer(epochs, "epochs")
    positive(threshold, "the threshold")
    rule = linear = linear_rule(as_rule(rule))
    linear.rates(epochs)  # before any work, whether the schedule is long enough
    before = objective.evaluations.copy()
    expansion = expand(objective, linear, at)
    if not all(math.isfinite(value) for row in expansion.products for value in row):
        raise TvgradError("the gradient or the Hessian is not finite at these weights: check model, loss and data")
    order1, order2 = expansion.order1(linear, epochs), expansion.order2(linear, epochs)
    path = quadratic_path(objective, linear, epochs, expansion, at) if quadratic else ()
    followed = next(iter(deque(path, maxlen=1)), None)
    found = estimate_curvature(objective, at, smallest=True) if curvature else None
    kinks = kink_sentence(objective)
    changed = None if kinks is None else _change_of_gradient(objective, expansion, order1, at)
    counts = objective.evaluations - before
    frozen = frozen_share(linear, _start(objective, at), expansion.loss_gradient)
    row = PredictionRow(
        **_predicted_errors(linear, epochs, expansion, threshold),
        **_spectral_numbers(linear, epochs, found),
        task_vector_norm=norm(order2),
        quadratic_error_norm=math.nan if followed is None else norm(difference(followed, order1)),
        frozen_share=frozen,
        gradients=counts.gradients,
        hvps=counts.hvps,
    )
    errors = tuple(expansion.relative_errors(linear, epochs)[1:].tolist())
    said = [_divergence(linear, row, expansion, found), _unconverged(found), _unmoved(row, objective), kinks]
    if changed is not None and not 1 / WORTHLESS <= changed <= WORTHLESS:
        withheld: dict[str, Any] = dict.fromkeys(SECOND_ORDER, math.nan)
        row, errors = replace(row, **withheld), ()
        said.append(
            f"over the predicted path the gradient changes about {changed:.2g} times as much as the Hessian at the "
            "pretrained weights says, so that the second-order error is withheld: `tvgrad trace` measures it"
        )
    return Prediction(rule, epochs, order1, order2, followed, row, counts, found, tuple(filter(None, said)), errors)


def frozen_share(rule: LinearRule, weights: Weights, gradient: Mapping[str, torch.Tensor]) -> float:
    """Tell how many coordinates the first step will leave as they are, their step being under half a spacing.

    Args:
        rule: the update rule.
        weights: theta_0, in the format that is trained.
        gradient: g_0.

    Returns:
        Their share of the coordinates with a gradient; NaN where there is none, or no PyTorch optimizer for the rule.
    """
    if rule.decoupled_decay:
        return math.nan
    after = {name: torch.nn.Parameter(tensor.detach().clone()) for name, tensor in weights.items()}
    for name, parameter in after.items():
        parameter.grad = gradient[name].detach().to(parameter).clone()
    optimizer = rule.make_optimizer(list(after.values()))
    rule.set_rate(optimizer, 0)
    optimizer.step()
    moving = still = 0
    for name, parameter in after.items():
        has_gradient = gradient[name].to(parameter) != 0
        moving += int(has_gradient.sum())
        still += int((has_gradient & (parameter.detach() == weights[name])).sum())
    return still / moving if moving else math.nan


def _change_of_gradient(
    objective: Objective, expansion: Expansion, order1: Weights, at: Mapping[str, torch.Tensor] | None
) -> float:
    """How often the gradient changes what the Hessian says, from theta_0 to the end of the first-order path.

    Gates that flip on the way change the gradient, and the Hessian of the smooth piece does not know of them.

    Returns:
        The factor; infinite where the Hessian says that nothing changes.
    """
    start = _start(objective, at)
    end = {name: (start[name].double() + order1[name].to(start[name].device)).to(start[name].dtype) for name in start}
    moved = {name: end[name].double() - start[name].double() for name in start}
    actual = norm(
        difference(
            to_float64(objective.gradient(end), objective.home),
            to_float64(expansion.loss_gradient, objective.home),
        )
    )
    said = norm(objective.hvp(moved, at))
    return actual / said if said else math.inf if actual else 1.0


def _start(objective: Objective, at: Mapping[str, torch.Tensor] | None) -> Weights:
    """theta_0 in the parameters' own format."""
    own = objective.initial
    return own if at is None else {name: at[name].to(tensor) for name, tensor in own.items()}


def _unmoved(row: PredictionRow, objective: Objective) -> str | None:
    if not row.frozen_share >= VISIBLE_SHARE:
        return None
    formats = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in objective.initial.values()})
    return (
        f"{percent(row.frozen_share)} of the coordinates will not move in the first step, which for them is under half "
        f"the spacing of {' and '.join(formats)} numbers: the task vector will be another one than exact arithmetic "
        "gives, of which these predictions speak"
    )


def _predicted_errors(rule: LinearRule, epochs: int, expansion: Expansion, threshold: float) -> dict[str, Any]:
    """The numbers of a row that come from the expansion alone."""
    largest = float(rule.rates(epochs).max())
    within = expansion.epochs_within(rule, threshold)
    return {
        "rule": rule.name,
        "lr": largest,
        "epochs": epochs,
        "error_norm": float(expansion.saturated_norms(rule, epochs)[epochs]),
        "order2_error_norm": float(expansion.error_norms(rule, epochs)[epochs]),
        "relative_error": float(expansion.relative_errors(rule, epochs)[epochs]),
        "threshold": threshold,
        "epochs_within": math.nan if within is None else within,
        "lr_within": expansion.rate_factor_within(rule, epochs, threshold) * largest,
    }


def _spectral_numbers(rule: LinearRule, epochs: int, found: Curvature | None) -> dict[str, Any]:
    """The numbers of a row that come from the ends of the spectrum; NaN where they were not asked for."""
    if found is None:
        return dict.fromkeys(("largest_eigenvalue", "stability_limit", "growth_factor"), math.nan)
    return {
        "largest_eigenvalue": found.largest,
        "stability_limit": stability_limit(rule, found.largest),
        "growth_factor": growth_factor(rule, (found.largest, found.smallest), epochs),
    }


def planned_cost(rule: UpdateRule, epochs: int, quadratic: bool = True) -> Evaluations:
    """Tell what `predict` will compute, without lambda_max.

    Args:
        rule: a linear update rule.
        epochs: k.
        quadratic: follow the quadratic model too.

    Returns:
        Counts of gradients and Hessian-vector products.
    """
    products = 2 if linear_rule(rule).decoupled_decay else 1
    return Evaluations(gradients=1, hvps=products + (max(0, epochs - 2) if quadratic else 0))


def _divergence(rule: LinearRule, row: PredictionRow, expansion: Expansion, found: Curvature | None) -> str | None:
    """The sentence on a rate above the stability limit. Without lambda_max, the Rayleigh quotient of the gradient."""
    if found is None:
        # With coupled decay the quotient is that of H + lambda I already, and the limit adds lambda again.
        limit = stability_limit(rule, expansion.rayleigh - rule.coupled_decay)
        if not row.lr > limit:
            return None
        return (
            f"the learning rate {row.lr:g} is over the stability limit: along the gradient alone the quadratic model "
            f"diverges above {limit:.3g}, so choose a smaller rate"
        )
    if row.lr > row.stability_limit:
        return (
            f"the learning rate {row.lr:g} is over the stability limit {row.stability_limit:.3g} (lambda_max is "
            f"{found.largest:.3g} by estimate): the quadratic model diverges, by a factor of {row.growth_factor:.3g} "
            f"in {row.epochs} epochs; choose a smaller rate"
        )
    if row.growth_factor > 2:
        return (
            f"the Hessian has a negative eigenvalue (about {found.smallest:.3g}), along which the quadratic model "
            f"grows by a factor of {row.growth_factor:.3g} in {row.epochs} epochs: trust it for fewer"
        )
    return None


def _unconverged(found: Curvature | None) -> str | None:
    if found is None or found.converged:
        return None
    return (
        f"Lanczos did not converge in {found.hvps} products: lambda_max is at least about {found.largest:.3g} "
        f"(residual {found.residual:.2g})"
    )
