"""Task arithmetic against multitask training: orders, the coefficient, exactness on quadratic losses, counts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import tvgrad
from tests.theory.expansion_models import distance, linear_regression, objective, order, trained
from tvgrad import TvgradError
from tvgrad.theory.multitask import gap_parts
from tvgrad.update_rules.rules import GD
from tvgrad.vectors.parameters import norm

RATES = [4e-3 * 2.0**-power for power in range(5)]
R = 3


def _tasks(kind: str = "mlp") -> list[tvgrad.Objective]:
    return [objective(kind, seed) for seed in range(R)]


@pytest.mark.parametrize(
    ("kind", "frozen", "alpha"),
    [("mlp", frozen, alpha) for frozen in (False, True) for alpha in (0.3, 1.0, -0.5)] + [("vit", False, 0.4)],
)
def test_residual_is_of_third_order_with_the_coefficient_and_of_second_with_half(
    kind: str, frozen: bool, alpha: float
) -> None:
    tasks = _tasks(kind)
    full, half, gaps = [], [], []
    for lr in RATES:
        found = tvgrad.multitask_gap(tasks, lr, 4, alpha, frozen=frozen)
        measured, predicted = found.measured[alpha], found.predicted[alpha]
        gaps.append(norm(measured))
        full.append(distance(measured, predicted))
        half.append(distance(measured, {name: tensor / 2 for name, tensor in predicted.items()}))
    assert order(RATES, gaps) == pytest.approx(2, abs=0.1)
    assert order(RATES, full) == pytest.approx(3, abs=0.1)
    assert order(RATES, half) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("alpha", [0.3, 1.0, -0.5])
@pytest.mark.parametrize("frozen", [False, True])
def test_two_epochs_on_quadratic_losses_are_exact(alpha: float, frozen: bool) -> None:
    tasks = [linear_regression(seed) for seed in range(R)]
    row = tvgrad.multitask_gap(tasks, 0.1, 2, alpha, frozen=frozen).rows[0]
    assert row.residual_norm <= 1e-12 * row.measured_norm


def test_measured_gap_against_torch_optim() -> None:
    tasks, lr, alpha, k = _tasks(), 0.05, 0.4, 3
    together = {name: tensor.clone().requires_grad_() for name, tensor in tasks[0].initial.items()}
    optimizer = torch.optim.SGD(together.values(), lr=alpha * lr)
    for _ in range(k):
        gradients = [task.gradient(together) for task in tasks]
        for name, tensor in together.items():
            tensor.grad = sum(gradient[name] for gradient in gradients)
        optimizer.step()
    vectors = [trained(task, GD(lr), k) for task in tasks]
    expected = {
        name: tasks[0].initial[name] + alpha * sum(vector[name] for vector in vectors) - tensor.detach()
        for name, tensor in together.items()
    }
    found = tvgrad.multitask_gap(tasks, lr, k, alpha)
    assert distance(found.measured[alpha], expected) <= 1e-13 * norm(vectors[0])


def test_coefficient_against_the_plain_double_sum() -> None:
    """C_k written out as in its definition, every gradient and product on its own."""
    tasks, lr, alpha, k = _tasks(), 0.05, 0.4, 4
    path = [tasks[0].initial]
    for _ in range(k - 1):
        gradients = [task.gradient(path[-1]) for task in tasks]
        path.append({n: t - alpha * lr * sum(g[n] for g in gradients) for n, t in path[-1].items()})
    total = {name: torch.zeros_like(tensor) for name, tensor in path[0].items()}
    for number, task in enumerate(tasks):
        for e in range(1, k):
            for m in range(e):
                bracket = {
                    n: alpha * sum(other.gradient(path[m])[n] for other in tasks if other is not task)
                    + (alpha - 1) * tasks[number].gradient(path[m])[n]
                    for n in total
                }
                for n, product in task.hvp(bracket, path[e]).items():
                    total[n] += product
    expected = {name: -alpha * lr**2 * tensor for name, tensor in total.items()}
    found = tvgrad.multitask_gap(tasks, lr, k, alpha, measure=False)
    assert distance(found.predicted[alpha], expected) <= 1e-12 * norm(expected)


def test_counts_along_the_path_and_frozen() -> None:
    k = 5
    for frozen, passes in ((False, R * (k - 1)), (True, R)):
        tasks = _tasks()
        found = tvgrad.multitask_gap(tasks, 0.01, k, 0.5, frozen=frozen, measure=False)
        assert (found.counts.gradients, found.counts.hvps) == (passes, passes)
        assert sum(task.evaluations.gradients for task in tasks) == passes
        assert sum(task.evaluations.hvps for task in tasks) == passes
    measured = tvgrad.multitask_gap(_tasks(), 0.01, k, 0.5, frozen=True)
    assert measured.counts.gradients == R + 2 * R * (k - 1)  # theta_0's gradients are shared by all


def test_measuring_alone() -> None:
    tasks = _tasks()
    found = tvgrad.multitask_gap(tasks, 0.01, 3, [0.4, 1.0], predict=False)
    assert (found.counts.gradients, found.counts.hvps) == (R + R * 2 + 2 * R * 2, 0)
    assert (found.predicted, found.parts) == ({}, None)
    whole = tvgrad.multitask_gap(tasks, 0.01, 3, [0.4, 1.0])
    for row, other in zip(found.rows, whole.rows, strict=True):
        assert row.measured_norm == other.measured_norm > 0
        assert math.isnan(row.predicted_norm)
        assert math.isnan(row.residual_norm)


def test_all_alphas_from_one_pass() -> None:
    tasks, alphas = _tasks(), [0.2, 0.5, 1.0, -0.3]
    found = tvgrad.multitask_gap(tasks, 0.01, 4, alphas, measure=False)
    assert (found.counts.gradients, found.counts.hvps) == (R, 2 * R)
    for alpha in alphas:
        alone = tvgrad.multitask_gap(tasks, 0.01, 4, alpha, frozen=True, measure=False)
        assert distance(found.predicted[alpha], alone.predicted[alpha]) <= 1e-12 * norm(alone.predicted[alpha])
        assert math.isnan(found.rows[0].measured_norm)
    assert found.parts is not None
    later = tvgrad.multitask_gap(tasks, 0.01, 4, 0.77, frozen=True, measure=False)
    assert distance(found.parts.gap(0.77), later.predicted[0.77]) <= 1e-12 * norm(later.predicted[0.77])
    assert list(found.to_frame()["alpha"]) == alphas


def test_parts_along_a_path() -> None:
    tasks = _tasks()
    parts = gap_parts(tasks, 0.01, 4, path_alpha=0.5)
    alone = tvgrad.multitask_gap(tasks, 0.01, 4, 0.5, measure=False)
    assert distance(parts.gap(0.5), alone.predicted[0.5]) <= 1e-12 * norm(alone.predicted[0.5])


def test_one_epoch_has_no_gap() -> None:
    row = tvgrad.multitask_gap(_tasks(), 0.1, 1, 0.4).rows[0]
    assert row.predicted_norm == 0
    assert row.measured_norm <= 1e-16


def test_nothing_is_changed() -> None:
    tasks = _tasks()
    before = {name: tensor.clone() for name, tensor in tasks[0].initial.items()}
    tvgrad.multitask_gap(tasks, 0.1, 3, [0.4, 1.0], frozen=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tasks[0].initial.items())


def test_bad_input() -> None:
    other = tvgrad.Objective(nn.Linear(12, 3).double(), nn.CrossEntropyLoss(), _tasks()[0].samples, chunk_size=9)
    with pytest.raises(TvgradError, match="do not start at the same pretrained weights"):
        tvgrad.multitask_gap([_tasks()[0], other], 0.1, 2, 1.0)
    for arguments in (([], 0.1, 2, 1.0), (_tasks(), -0.1, 2, 1.0), (_tasks(), 0.1, 0, 1.0), (_tasks(), 0.1, 2, [])):
        with pytest.raises(TvgradError):
            tvgrad.multitask_gap(*arguments)  # type: ignore[arg-type]
    with pytest.raises(TvgradError, match="finite"):
        tvgrad.multitask_gap(_tasks(), 0.1, 2, math.nan)
