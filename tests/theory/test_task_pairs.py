"""Predictions about pairs of tasks, against quadratic losses whose task vectors numpy knows in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import tvgrad
from tvgrad.errors import TvgradError
from tvgrad.theory.secant_model import SecantModel
from tvgrad.theory.task_pairs import kind_of, measure_pair, relate_tasks, widest_interval
from tvgrad.update_rules import GD, Adam, Momentum, Nesterov
from tvgrad.update_rules.rules import SGD

Array = NDArray[np.float64]
DIMENSION = 6


class Quadratic:
    """`mean_i (x_i' theta - y_i)^2`: Hessian, gradient and loss by hand, and the same as an objective."""

    def __init__(self, rows: Array, targets: Array, start: Array) -> None:
        self.rows, self.targets, self.start = rows, targets, start
        self.hessian = 2 / len(rows) * rows.T @ rows
        self.gradient = 2 / len(rows) * rows.T @ (rows @ start - targets)
        model = torch.nn.Linear(len(start), 1, bias=False).double()
        with torch.no_grad():
            model.weight.copy_(torch.from_numpy(start)[None])
        data = torch.from_numpy(rows), torch.from_numpy(targets)[:, None]
        self.objective = tvgrad.Objective(model, torch.nn.MSELoss(), data, chunk_size=100)

    def loss(self, moved: Array) -> float:
        return float(((self.rows @ (self.start + moved) - self.targets) ** 2).mean())

    def descended(self, rate: float, epochs: int) -> Array:
        """Gradient descent in closed form, by the eigenvalues of the Hessian."""
        values, vectors = np.linalg.eigh(self.hessian)
        factors = rate * np.array([sum((1 - rate * value) ** step for step in range(epochs)) for value in values])
        return -vectors @ (factors * (vectors.T @ self.gradient))


def drawn(seed: int, rows: int = 12) -> tuple[Quadratic, Quadratic]:
    draw = np.random.default_rng(seed)
    start = draw.standard_normal(DIMENSION)
    first, second = (
        Quadratic(draw.standard_normal((rows, DIMENSION)), draw.standard_normal(rows), start) for _ in range(2)
    )
    return first, second


def cos(left: Array, right: Array) -> float:
    return float(left @ right / np.linalg.norm(left) / np.linalg.norm(right))


def tasks_of(*tasks: Quadratic) -> dict[str, tvgrad.Objective]:
    return {name: task.objective for name, task in zip("abc", tasks, strict=False)}


def test_errors_fall_with_the_second_power_of_the_rate() -> None:
    first, second = drawn(0)
    errors: dict[str, list[float]] = {"cosine": [], "gradients": [], "change": []}
    for rate in (0.01, 0.005):
        row = relate_tasks(tasks_of(first, second), GD(rate), 6, cross=True).rows[0]
        left, right = (task.descended(rate, 6) for task in (first, second))
        errors["cosine"].append(abs(row.cos_task_vectors - cos(left, right)))
        errors["gradients"].append(abs(row.cos_gradients - cos(left, right)))
        errors["change"].append(abs(row.change_of_a - (first.loss(left + right) - first.loss(left))))
    falls = {name: high / low for name, (high, low) in errors.items()}
    assert falls["cosine"] == pytest.approx(4, rel=0.15)
    assert falls["gradients"] == pytest.approx(2, rel=0.15)  # the baseline is of first order
    assert falls["change"] > 7  # right to second order in the rate, for a loss
    assert errors["cosine"][0] < errors["gradients"][0]


@pytest.mark.parametrize("cross", [False, True])
def test_one_curvature_a_task_is_followed_exactly(cross: bool) -> None:
    """Where each gradient is an eigenvector of its Hessian, one product says all about the own task."""
    draw = np.random.default_rng(1)
    turned = np.linalg.qr(draw.standard_normal((DIMENSION, DIMENSION)))[0]
    mixed = turned[0] + 0.3 * turned[1]
    start = np.zeros(DIMENSION)
    first = Quadratic(3 * turned[:1], np.array([2.0]), start)
    second = Quadratic(0.5 * mixed[None], np.array([-1.0]), start)
    row = relate_tasks(tasks_of(first, second), GD(0.05), 40, cross=cross).rows[0]
    left, right = (task.descended(0.05, 40) for task in (first, second))
    assert row.cos_task_vectors == pytest.approx(cos(left, right), abs=1e-12)
    assert row.kind == "contradictory"
    # here even the other task's curvature is known: each Hessian has one direction only
    assert row.change_of_a == pytest.approx(first.loss(left + right) - first.loss(left), rel=1e-9)
    assert row.change_of_b == pytest.approx(second.loss(left + right) - second.loss(right), rel=1e-9)


@pytest.mark.parametrize(
    "rule",
    [GD(0.03), Momentum(0.03, 0.5), Nesterov(0.03, 0.5), SGD(0.03, weight_decay=0.2)],
    ids=lambda rule: type(rule).__name__,
)
def test_two_epochs_are_exact(rule: tvgrad.update_rules.GD) -> None:
    """After two steps a task vector on a quadratic holds one product with the gradient, decay's share included."""
    first, second = drawn(2)
    row = relate_tasks(tasks_of(first, second), rule, 2).rows[0]
    ends = []
    for task in (first, second):
        parameter = torch.nn.Parameter(torch.from_numpy(task.start.copy()))
        optimizer = rule.make_optimizer([parameter])
        for _ in range(2):
            at = parameter.detach().numpy()
            parameter.grad = torch.from_numpy(task.gradient + task.hessian @ (at - task.start))
            optimizer.step()
        ends.append(parameter.detach().numpy() - task.start)
    decays = getattr(rule, "weight_decay", 0)
    # with decay the product that is missing is the one with theta_0
    assert row.cos_task_vectors == pytest.approx(cos(*ends), abs=2e-2 if decays else 1e-12)


def test_the_other_curvature_needs_the_second_product() -> None:
    """Two steep valleys at right angles: what a valley does to the other task vector, its own product cannot see."""
    start = np.zeros(3)
    first = Quadratic(np.array([[1.0, 0, 0], [0, 4.0, 0]]), np.array([1.0, 0.0]), start)
    second = Quadratic(np.array([[0, 0, 1.0], [0, 1.0, 0]]), np.array([1.0, 1.0]), start)
    truth = first.loss(first.descended(0.1, 3) + second.descended(0.1, 3)) - first.loss(first.descended(0.1, 3))
    blind, seeing = (relate_tasks(tasks_of(first, second), GD(0.1), 3, cross=cross).rows[0] for cross in (False, True))
    assert truth > 0.1
    assert blind.change_of_a == pytest.approx(0, abs=1e-12)
    assert seeing.change_of_a == pytest.approx(truth, rel=1e-9)
    # theta_0 + tau_a + lambda tau_b: its loss on a is `tau_a's gain + 8 (lambda y)^2 / ...`, whose zero is known
    gain = first.loss(first.descended(0.1, 3)) - first.loss(start)
    along = second.descended(0.1, 3)[1]
    assert seeing.lambda_high == pytest.approx(min(3, math.sqrt(-gain / 8) / along), abs=0.02)


def test_counts_and_pairs() -> None:
    first, second = drawn(3)
    third = drawn(4)[0]
    third = Quadratic(third.rows, third.targets, first.start)
    for cross, products in ((False, 3), (True, 9)):
        found = relate_tasks(tasks_of(first, second, third), GD(0.01), [1, 5], cross=cross)
        assert (found.counts.gradients, found.counts.hvps) == (3, products)
        assert [(row.epochs, row.task_a, row.task_b) for row in found.rows] == [
            (k, *pair) for k in (1, 5) for pair in (("a", "b"), ("a", "c"), ("b", "c"))
        ]
    row = found.rows[0]
    assert row.cos_task_vectors == pytest.approx(cos(first.gradient, second.gradient))
    assert row.cos_gradients == pytest.approx(row.cos_task_vectors)
    assert row.first_order_change == pytest.approx(-0.01 * first.gradient @ second.gradient)
    left, right = (-0.01 * task.gradient for task in (first, second))
    assert row.change_of_a == pytest.approx(first.loss(left + right) - first.loss(left))
    assert found.to_frame().shape == (6, 11)


def test_measurements() -> None:
    first, second = drawn(5)
    left, right = (task.descended(0.1, 10) for task in (first, second))
    vectors = [{"weight": torch.from_numpy(vector)[None]} for vector in (left, right)]
    found = measure_pair(("a", "b"), (first.objective, second.objective), (vectors[0], vectors[1]))
    assert found.cos_task_vectors == pytest.approx(cos(left, right))
    assert found.change_of_a == pytest.approx(first.loss(left + right) - first.loss(left))
    assert found.change_of_b == pytest.approx(second.loss(left + right) - second.loss(right))
    zero = np.zeros(DIMENSION)
    grid = [
        x
        for x in np.linspace(-3, 3, 1201)
        if first.loss(left + x * right) < first.loss(zero) and second.loss(left + x * right) < second.loss(zero)
    ]
    assert found.lambda_low == pytest.approx(min(grid), abs=0.006)
    assert found.lambda_high == pytest.approx(max(grid), abs=0.006)
    with pytest.raises(
        TvgradError, match="the task vector of b is of another model than the tasks: 'weight' is in one"
    ):
        measure_pair(("a", "b"), (first.objective, second.objective), (vectors[0], {"other": torch.ones(1)}))


def test_negative_curvature_gives_the_smallest_symmetric_hessian() -> None:
    gram = np.diag([1.0, 1.0, 4.0])
    # H p is -2 p plus something at right angles to it
    model = SecantModel.fitted(gram, np.eye(3)[0], [np.eye(3)[0]], [np.array([-2.0, 1.0, 0.0])])
    assert not model.positive
    wanted = np.array([[-2.0, 1, 0], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(model.hessian, wanted, atol=1e-12)


def test_widest_interval() -> None:
    found: Callable[[Callable[[float], bool]], tuple[float, float]] = lambda holds: widest_interval(holds, 0.1)  # noqa: E731
    assert found(lambda x: 0.3 < x < 1.234) == pytest.approx((0.3, 1.234), abs=1e-3)
    assert found(lambda x: x < -2 or 0.5 < x < 1.2) == pytest.approx((-3, -2), abs=1e-3)
    assert found(lambda x: True) == pytest.approx((-3, 3))
    assert all(math.isnan(end) for end in found(lambda x: False))


def test_kinds() -> None:
    assert [kind_of(value) for value in (0.1, 0.11, -0.2, math.nan)] == [
        "irrelevant", "aligned", "contradictory", "undefined",
    ]  # fmt: skip


def test_refusals() -> None:
    first, second = drawn(6)
    other = Quadratic(second.rows, second.targets, second.start + 1)
    smaller = Quadratic(second.rows[:, :3], second.targets, second.start[:3])
    with pytest.raises(TvgradError, match=r"tasks 1 and 2 do not start at the same pretrained weights: their values"):
        relate_tasks(tasks_of(first, other), GD(0.1), 1)
    with pytest.raises(TvgradError, match="has shape"):
        relate_tasks(tasks_of(first, smaller), GD(0.1), 1)
    with pytest.raises(TvgradError, match="one task has nothing to relate to"):
        relate_tasks(tasks_of(first), GD(0.1), 1)
    with pytest.raises(TvgradError, match="adam is not a linear update rule"):
        relate_tasks(tasks_of(first, second), Adam(0.1), 1)
    with pytest.raises(TvgradError, match="epochs must be a whole number"):
        relate_tasks(tasks_of(first, second), GD(0.1), 0)
    over = relate_tasks(tasks_of(first, second), GD(5.0), 3)
    assert all("is over the stability limit" in sentence for sentence in over.sentences)
    assert len(over.sentences) == 2
    lost = relate_tasks(tasks_of(first, second), GD(1e3), 400)
    assert lost.rows[0].kind == "undefined"
    assert math.isnan(lost.rows[0].cos_task_vectors)
    flat = Quadratic(np.zeros((2, DIMENSION)), np.ones(2), first.start)
    still = relate_tasks(tasks_of(first, flat), GD(0.1), 3)
    assert still.rows[0].kind == "undefined"
    assert "little or negative curvature" in still.sentences[0]
