"""The spectrum's ends and the growth of linear rules, against dense matrices and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.theory.expansion_models import linear_regression, objective
from tvgrad import Objective
from tvgrad.theory.curvature import estimate_curvature
from tvgrad.update_rules.linear import LinearRule
from tvgrad.update_rules.rules import GD, SGD, Momentum, Nesterov
from tvgrad.update_rules.stability import growth_factor, stability_limit, step_growth


def _dense(one: Objective) -> torch.Tensor:
    names = list(one.initial)
    sizes = [one.initial[name].numel() for name in names]
    columns = []
    for row in torch.eye(sum(sizes), dtype=torch.float64):
        parts = zip(names, row.split(sizes), strict=True)
        product = one.hvp({name: part.reshape(one.initial[name].shape) for name, part in parts})
        columns.append(torch.cat([product[name].flatten() for name in names]))
    return torch.stack(columns)


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_both_ends_against_a_dense_eigenvalue_problem(kind: str) -> None:
    one = linear_regression() if kind == "linear" else objective()
    values = torch.linalg.eigvalsh(_dense(one))
    before = one.evaluations.hvps
    found = estimate_curvature(one, smallest=True, tolerance=1e-8)
    assert found.largest == pytest.approx(float(values[-1]), rel=1e-6)
    assert found.smallest == pytest.approx(float(values[0]), abs=1e-6 * float(values[-1]))
    assert found.converged
    assert found.kind == "estimate"
    assert found.residual <= 1e-4 * found.largest
    assert found.hvps == one.evaluations.hvps - before


def test_an_estimate_that_did_not_converge_says_so_and_stays_below() -> None:
    x, y = torch.randn(300, 200, dtype=torch.float64), torch.randn(300, 1, dtype=torch.float64)
    one = Objective(nn.Linear(200, 1).double(), nn.MSELoss(), (x, y), chunk_size=300)  # eigenvalues close together
    rough = estimate_curvature(one, tolerance=1e-14, most_hvps=1)
    fine = estimate_curvature(one, tolerance=1e-6)
    assert not rough.converged
    assert 0.9 * fine.largest < rough.largest <= fine.largest * (1 + 1e-9)
    assert rough.residual > 0


def test_fewer_parameters_than_lanczos_needs() -> None:
    x = torch.randn(9, 1, dtype=torch.float64)
    one = Objective(nn.Linear(1, 1).double(), nn.MSELoss(), (x, 2 * x), chunk_size=4)
    found = estimate_curvature(one, smallest=True)
    values = torch.linalg.eigvalsh(_dense(one))
    assert (found.largest, found.smallest) == pytest.approx((float(values[1]), float(values[0])), rel=1e-10)
    assert found.hvps == 2


RULES: list[tuple[LinearRule, float]] = [
    (GD(1.0), 2.0),
    (Momentum(1.0, 0.9), 2 * 1.9),
    (Momentum(1.0, 0.9, dampening=0.5), 2 * 1.9 / 0.5),
    (Nesterov(1.0, 0.9), 2 * 1.9 / 2.8),
]


@pytest.mark.parametrize(("rule", "limit"), RULES)
def test_stability_limits(rule: LinearRule, limit: float) -> None:
    assert stability_limit(rule, 4.0) == pytest.approx(limit / 4)
    assert step_growth(rule, 4.0, 0.999 * limit / 4) < 1 < step_growth(rule, 4.0, 1.001 * limit / 4)
    assert stability_limit(rule, -1.0) == math.inf


@pytest.mark.parametrize(
    "rule", [SGD(1.0, 0.3), Nesterov(1.0, 0.9, 0.3), Momentum(1.0, 0.5, weight_decay=0.3, decoupled=True)]
)
def test_decay_moves_the_limit(rule: LinearRule) -> None:
    limit = stability_limit(rule, 4.0)
    assert step_growth(rule, 4.0, 0.999 * limit) < 1 < step_growth(rule, 4.0, 1.001 * limit)


@pytest.mark.parametrize("rule", [GD(0.7), Momentum(1.3, 0.9), Nesterov(0.6, 0.9), SGD(0.7, 0.2)])
def test_growth_is_what_a_plain_loop_does_on_a_parabola(rule: LinearRule) -> None:
    x = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = rule.make_optimizer([x])
    sizes = []
    for _ in range(400):
        x.grad = 4.0 * x.detach()
        optimizer.step()
        sizes.append(abs(float(x.detach())))
    per_step = float(np.exp(np.polyfit(np.arange(300, 400), np.log(sizes[300:]), 1)[0]))
    assert step_growth(rule, 4.0, rule.rate(0)) == pytest.approx(per_step, rel=0.02)


def test_growth_factor_is_the_worst_over_eigenvalues_and_never_overflows() -> None:
    assert growth_factor(GD(0.1), (4.0, -2.0), 10) == pytest.approx(1.2**10)
    assert growth_factor(GD([0.1, 0.5]), (4.0,), 2) == pytest.approx(0.6 * 1.0)
    assert growth_factor(GD(1.0), (1e6,), 10_000) == math.inf
