"""QuadraticModel: the loss round theta_0 to second order, on the few directions that training takes first.

The gradient g and the products `H q` on a basis q_1 .. q_m give the model's gradient at any displacement d of the span,
`g + sum_i <q_i, d> H q_i`. The basis is the Krylov basis of what moves the weights: of g and H under gradient descent,
of P g and P H under Adam, whose step is P g with the diagonal `P = 1 / (sqrt(v) + eps)`. It is orthonormal in the inner
product `sum_j a_j b_j / P_j`, in which P H is symmetric. Gradient descent on the model stays in the span up to m steps,
and beyond them the model is Lanczos' approximation to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from tvgrad.problem.objective import Objective
from tvgrad.update_rules.base import UpdateRule
from tvgrad.update_rules.rules import Adam
from tvgrad.vectors.algebra import add_scaled, combination, to_float64, zeros_like
from tvgrad.vectors.parameters import Weights, norm

PRODUCTS = 2
ORDER_SEED = 0
FLOOR = 1e-3
"""Of Adam's root in the choice of a basis, over its root mean square."""

DEPENDENT = 1e-10
"""Share of its norm that must be left of a new direction for it to be one."""


@dataclass(frozen=True)
class QuadraticModel:
    """The loss round theta_0, to second order.

    Attributes:
        loss: at theta_0, the mean over the data; NaN where it was not asked for.
        gradient: g, name -> float64 tensor.
        variance: of a mini-batch gradient round g, by coordinate; None where steps take the full batch.
        basis: q_1 .. q_m.
        products: H q_1 .. H q_m.
        preconditioner: P, or None where it is 1.
    """

    loss: float
    gradient: Weights
    variance: Weights | None
    basis: tuple[Weights, ...]
    products: tuple[Weights, ...]
    preconditioner: Weights | None

    def coordinates(self, displacement: Weights) -> list[float]:
        """Project a displacement on the basis.

        Args:
            displacement: name -> tensor.

        Returns:
            `<q_i, d>` for each i.
        """
        return [_inner(direction, displacement, self.preconditioner) for direction in self.basis]

    def gradient_at(self, displacement: Weights) -> Weights:
        """The model's gradient.

        Args:
            displacement: from theta_0; what is not in the span counts as flat.

        Returns:
            Name -> new float64 tensor.
        """
        return combination((1.0, self.gradient), *zip(self.coordinates(displacement), self.products, strict=True))


def quadratic_model(objective: Objective, rule: UpdateRule, batch_size: int | None = None) -> QuadraticModel:
    """Measure the model: one pass for the gradient, and two Hessian-vector products.

    Under Adam with mini-batches the pass is one of mini-batch gradients, in an order of its own, whose mean is g and
    whose spread enters v.

    Args:
        objective: model, loss and data of one task.
        rule: what will move the weights.
        batch_size: samples in a mini-batch; None is the full batch.

    Returns:
        The model.
    """
    variance = preconditioner = roots = None
    if isinstance(rule, Adam):
        start = to_float64(objective.initial, objective.home)
        loss, gradient, variance = _batch_gradients(objective, batch_size)
        decayed = combination((1.0, gradient), (rule.coupled_decay, start))
        roots = {name: tensor.square().add_(variance[name]).sqrt_() for name, tensor in decayed.items()}
        preconditioner = _preconditioner(rule, roots)
    else:
        loss, found = objective.value_and_gradient()
        gradient = to_float64(found)
    basis, products = _krylov(objective, _first_direction(objective, rule, gradient, roots), preconditioner)
    return QuadraticModel(loss, gradient, variance, basis, products, preconditioner)


def full_batch(rule: UpdateRule, batch_size: int | None, samples: int) -> bool:
    """Tell whether every step takes all samples.

    Args:
        rule: the update rule.
        batch_size: as asked for.
        samples: in the data.

    Returns:
        Whether it does.
    """
    return rule.name == "gd" or batch_size is None or batch_size >= samples


def _preconditioner(rule: Adam, roots: Weights) -> Weights:
    """P at theta_0, which chooses the basis alone: the steps are Adam's own."""
    # Without a floor, coordinates whose gradient happens to vanish at theta_0 would be the basis.
    count = sum(tensor.numel() for tensor in roots.values())
    least = rule.eps + FLOOR * norm(roots) / math.sqrt(count)
    return {name: 1 / (tensor + least) if least else torch.ones_like(tensor) for name, tensor in roots.items()}


def _first_direction(objective: Objective, rule: UpdateRule, gradient: Weights, roots: Weights | None) -> Weights:
    """Where the first step goes, decay included: the basis must have it, or the model is blind on that way."""
    start = to_float64(objective.initial, objective.home)
    direction = combination((1.0, gradient), (rule.coupled_decay, start))
    if roots is not None:
        assert isinstance(rule, Adam)
        direction = {
            name: torch.nan_to_num(tensor / (roots[name] + rule.eps), 0, 0, 0) for name, tensor in direction.items()
        }
    if rule.decoupled_decay:
        add_scaled(direction, start, rule.decoupled_decay)
    return direction


def _krylov(
    objective: Objective, direction: Weights, preconditioner: Weights | None
) -> tuple[tuple[Weights, ...], tuple[Weights, ...]]:
    basis: list[Weights] = []
    products: list[Weights] = []
    ahead = direction
    for _ in range(PRODUCTS):
        before = _length(ahead, preconditioner)
        for one in (*basis, *basis):  # twice is enough, and once is not
            add_scaled(ahead, one, -_inner(one, ahead, preconditioner))
        left = _length(ahead, preconditioner)
        if not left > DEPENDENT * before:
            break
        basis.append(combination((1 / left, ahead)))
        products.append(to_float64(objective.hvp(basis[-1]), objective.home))
        ahead = _times(preconditioner, products[-1])
    return tuple(basis), tuple(products)


def _batch_gradients(objective: Objective, batch_size: int | None) -> tuple[float, Weights, Weights]:
    """Loss, gradient, and the variance of a mini-batch gradient; zero where there is one batch."""
    samples = len(objective.samples)
    size = samples if batch_size is None else min(batch_size, samples)
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(ORDER_SEED))
    parts = [torch.arange(samples)] if size == samples else list(order.split(size))
    total, squares, divisor, loss = None, None, 0.0, 0.0
    whole = 0
    for part in parts:
        one = objective.subset(part)
        weight = objective.batch_loss.weight(one.samples.batch(0, len(part)))
        if not weight:
            continue
        value, found = one.value_and_gradient()
        gradient = to_float64(found, objective.home)
        if total is None or squares is None:
            total, squares = zeros_like(gradient), zeros_like(gradient)
        add_scaled(total, gradient, weight)
        divisor, loss = divisor + weight, loss + weight * value
        if len(part) == size:  # a short last batch has another spread
            whole += 1
            for name, tensor in gradient.items():
                squares[name].add_(tensor.square())
    assert total is not None  # an objective without weight is refused at construction
    assert squares is not None
    mean = combination((1 / divisor, total))
    if whole < 2:
        return loss / divisor, mean, zeros_like(mean)
    variance = {
        name: (squares[name] / whole - tensor.square()).clamp_(min=0.0) * (whole / (whole - 1))
        for name, tensor in mean.items()
    }
    return loss / divisor, mean, variance


def _times(diagonal: Weights | None, vector: Weights) -> Weights:
    if diagonal is None:
        return combination((1.0, vector))
    return {name: tensor * diagonal[name] for name, tensor in vector.items()}


def _inner(left: Weights, right: Weights, diagonal: Weights | None) -> float:
    parts = (
        torch.sum(tensor * right[name] if diagonal is None else tensor * right[name] / diagonal[name])
        for name, tensor in left.items()
    )
    return float(torch.stack([part.cpu() for part in parts]).sum())


def _length(vector: Weights, diagonal: Weights | None) -> float:
    return math.sqrt(_inner(vector, vector, diagonal))
