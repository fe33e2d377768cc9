"""Plans against closed forms and against training by torch.optim: coefficients, losses, orders, refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import tvgrad
from tests.theory.expansion_models import data, distance, linear_regression, objective, order, trained
from tvgrad import Objective, TvgradError
from tvgrad.problem.evaluations import Evaluations
from tvgrad.theory.forecast import forecast
from tvgrad.theory.merge_line import DOUBLINGS, SEARCHES, MergeLine, best_coefficient
from tvgrad.theory.merge_plan import coefficient_along
from tvgrad.theory.quadratic_model import quadratic_model
from tvgrad.update_rules import GD, SGD, Adam, AdamW, Momentum, Nesterov
from tvgrad.update_rules.base import UpdateRule
from tvgrad.vectors.algebra import flatten, unflatten
from tvgrad.vectors.parameters import Weights, norm

TASKS = 3


class Regressions:
    """Linear regressions from one start, with gradients and Hessians by numpy from the data alone."""

    def __init__(self) -> None:
        self.objectives = [linear_regression(seed) for seed in range(TASKS)]
        self.start = flatten(self.objectives[0].initial)
        self.hessians, self.gradients, self.losses = [], [], []
        for one in self.objectives:
            x, y = (part.numpy() for part in one.samples.batch(0, len(one.samples)))
            inputs = np.hstack([x, np.ones((len(x), 1))])
            weights = {name: tensor.numpy() for name, tensor in one.initial.items()}
            matrix = np.hstack([weights["weight"], weights["bias"][:, None]])
            residual = inputs @ matrix.T - y
            scale = 2 / residual.size
            slope = scale * residual.T @ inputs
            self.gradients.append(np.concatenate([slope[:, :-1].ravel(), slope[:, -1]]))
            second = scale * np.kron(np.eye(2), inputs.T @ inputs)
            place = [6 * row + column for row in range(2) for column in range(5)] + [5, 11]
            self.hessians.append(second[np.ix_(place, place)])
            self.losses.append((residual**2).mean())

    def descent(self, task: int, lr: float, epochs: int) -> np.ndarray:
        moved = np.zeros_like(self.start)
        for _ in range(epochs):
            moved = moved - lr * (self.gradients[task] + self.hessians[task] @ moved)
        return moved

    def loss(self, task: int, moved: np.ndarray) -> float:
        second = moved @ self.hessians[task] @ moved / 2
        return float(self.losses[task] + self.gradients[task] @ moved + second)


@pytest.fixture(scope="module")
def regressions() -> Regressions:
    return Regressions()


def test_two_epochs_of_quadratic_losses_are_told_exactly(regressions: Regressions) -> None:
    found = tvgrad.plan(regressions.objectives, GD(0.2), 2, pairs=True)
    vectors = [regressions.descent(task, 0.2, 2) for task in range(TASKS)]
    merged = sum(vectors)
    slope = sum(gradient @ merged for gradient in regressions.gradients)
    curvature = sum(merged @ hessian @ merged for hessian in regressions.hessians)
    a = -slope / curvature
    assert found.coefficient == pytest.approx(a, rel=1e-10)
    assert found.predicted_losses == pytest.approx([regressions.loss(t, a * merged) for t in range(TASKS)], rel=1e-10)
    for task, row in enumerate(found.rows):
        hessian, vector = regressions.hessians[task], vectors[task]
        assert row.loss == pytest.approx(regressions.losses[task], rel=1e-12)
        assert row.slope == pytest.approx(a * regressions.gradients[task] @ merged, rel=1e-9)
        assert row.own_curvature == pytest.approx(a * a / 2 * vector @ hessian @ vector, rel=1e-9)
        rest = a * a / 2 * (merged @ hessian @ merged - vector @ hessian @ vector)
        assert row.interference == pytest.approx(rest, rel=1e-9)
        assert abs(row.higher_order) < 1e-10
    assert found.pairs is not None
    expected = [[[t @ hessian @ u for u in vectors] for t in vectors] for hessian in regressions.hessians]
    np.testing.assert_allclose(found.pairs, expected, rtol=1e-9, atol=1e-12)
    # one coefficient a task: the minimum of the quadratic by a linear system, where it is above 0
    linear = np.array([sum(gradient @ vector for gradient in regressions.gradients) for vector in vectors])
    best = np.linalg.solve(np.sum(expected, axis=0), -linear)
    assert (best > 0).all()
    assert found.coefficients == pytest.approx(best, rel=1e-4)


def test_without_pairs_the_common_coefficient_is_the_same_and_the_cost_smaller(regressions: Regressions) -> None:
    all_pairs = tvgrad.plan(regressions.objectives, GD(0.2), 2, pairs=True)
    found = tvgrad.plan(regressions.objectives, GD(0.2), 2)
    assert found.pairs is None
    assert found.coefficient == pytest.approx(all_pairs.coefficient, rel=1e-10)
    assert found.counts.hvps == 3 * TASKS
    assert found.counts.gradients == 2 * TASKS
    assert found.counts.values <= 5 * TASKS
    assert all_pairs.counts.hvps == (2 + TASKS) * TASKS
    losses = [
        sum(
            regressions.loss(task, sum(a * regressions.descent(t, 0.2, 2) for t, a in enumerate(coefficients)))
            for task in range(TASKS)
        )
        for coefficients in (found.coefficients, (found.coefficient,) * TASKS)
    ]
    assert losses[0] <= losses[1]


def test_given_vectors_are_planned_with(regressions: Regressions) -> None:
    generator = np.random.default_rng(0)
    vectors = [
        regressions.descent(task, 0.1, 9) + 0.01 * generator.normal(size=regressions.start.size)
        for task in range(TASKS)
    ]
    like = regressions.objectives[0].initial
    found = tvgrad.plan(regressions.objectives, task_vectors=[unflatten(vector, like) for vector in vectors])
    merged = sum(vectors)
    slope = sum(gradient @ merged for gradient in regressions.gradients)
    a = -slope / sum(merged @ hessian @ merged for hessian in regressions.hessians)
    assert found.coefficient == pytest.approx(a, rel=1e-10)
    assert np.isnan(found.relative_second_order_error)
    assert found.counts == Evaluations(values=found.counts.values, gradients=TASKS, hvps=2 * TASKS)
    mean = unflatten(merged / TASKS, like)
    along, sentences = coefficient_along(regressions.objectives, mean)
    assert along == pytest.approx(TASKS * a, rel=1e-10)
    assert sentences == ()


@pytest.mark.parametrize(
    "rule",
    [
        GD(1.0),
        Momentum(1.0, 0.5),
        Nesterov(1.0, 0.5),
        SGD(1.0, weight_decay=0.1),
        SGD(1.0, 0.2, True),
        Adam(1.0, eps=1e-3),
        Adam(1.0, eps=1e-3, weight_decay=0.1),
        AdamW(1.0, eps=1e-3, weight_decay=0.1),
    ],
)
def test_forecasts_are_wrong_in_the_third_order_of_the_rate_or_a_higher_one(rule: UpdateRule) -> None:
    one, rates, errors = objective("mlp"), [0.02 * 2.0**-power for power in range(4)], []
    if isinstance(rule, Adam):
        rates = [rate / 20 for rate in rates]
    for rate in rates:
        told = forecast(one, rule.with_lr(rate), 4)
        by_hand = isinstance(rule, SGD) and rule.decoupled  # which torch.optim.SGD has not
        true = (trained if by_hand else _by_torch)(one, rule.with_lr(rate), 4)
        errors.append(distance(told.task_vector, true))
    assert order(rates, errors) > 2.9


def _by_torch(one: Objective, rule: UpdateRule, epochs: int) -> Weights:
    theta = {name: tensor.clone().requires_grad_() for name, tensor in one.initial.items()}
    optimizer = rule.make_optimizer(list(theta.values()))
    for _ in range(epochs):
        for name, gradient in one.gradient(theta).items():
            theta[name].grad = gradient
        optimizer.step()
    return {name: (tensor - one.initial[name]).detach() for name, tensor in theta.items()}


@pytest.mark.parametrize(("amsgrad", "decay"), [(False, 0.0), (True, 0.05)])
def test_adam_on_one_curvature_is_the_optimizer_itself(amsgrad: bool, decay: float) -> None:
    # a single weight has one direction only, which is in the span: the model is exact then
    torch.manual_seed(1)
    one = Objective(
        nn.Linear(1, 1, bias=False).double(),
        nn.MSELoss(),
        (torch.ones(4, 1).double(), torch.full((4, 1), 3.0).double()),
    )
    for rule in (Adam(0.05, weight_decay=decay, amsgrad=amsgrad), AdamW(0.05, weight_decay=decay, amsgrad=amsgrad)):
        told = forecast(one, rule, 30)
        assert distance(told.task_vector, _by_torch(one, rule, 30)) < 1e-12


def test_the_variance_of_mini_batches_is_that_of_the_batch_gradients() -> None:
    one = objective("mlp")
    model = quadratic_model(one, Adam(1e-3), 10)
    order_of = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    gradients = np.stack([flatten(one.subset(part).gradient()) for part in order_of.split(10)])
    np.testing.assert_allclose(flatten(model.gradient), gradients.mean(0), rtol=1e-12, atol=1e-15)
    assert model.variance is not None
    np.testing.assert_allclose(flatten(model.variance), gradients.var(0, ddof=1), rtol=1e-9, atol=1e-18)
    # the basis is orthonormal in P's inner product, and the products are the Hessian's
    assert model.preconditioner is not None
    p = flatten(model.preconditioner)
    basis = np.stack([flatten(direction) for direction in model.basis])
    np.testing.assert_allclose(basis / p @ basis.T, np.eye(2), atol=1e-10)
    for direction, product in zip(model.basis, model.products, strict=True):
        assert distance(product, one.hvp(direction)) == 0


def test_the_noise_of_mini_batches_shortens_adams_steps() -> None:
    one, rule, ends = objective("mlp"), Adam(2e-3), []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        theta = {name: tensor.clone().requires_grad_() for name, tensor in one.initial.items()}
        optimizer = rule.make_optimizer(list(theta.values()))
        for _ in range(3):
            for part in torch.randperm(30, generator=generator).split(10):
                for name, gradient in one.subset(part).gradient(theta).items():
                    theta[name].grad = gradient
                optimizer.step()
        ends.append(flatten({name: (tensor - one.initial[name]).detach() for name, tensor in theta.items()}))
    mean = np.mean(ends, axis=0)
    noisy = flatten(forecast(one, rule, 3, 10).task_vector)
    smooth = flatten(forecast(one, rule, 9).task_vector)
    # the noise in v is what a forecast of full-batch steps lacks
    assert np.linalg.norm(noisy - mean) < np.linalg.norm(smooth - mean) / 2


def test_cubic_terms_bring_the_coefficient_to_the_measured_minimum() -> None:
    tasks = [objective("mlp", seed) for seed in range(TASKS)]
    found = tvgrad.plan(tasks, GD(0.05), 3)
    start = tasks[0].initial

    def total(a: float) -> float:
        weights = {
            name: tensor + a * sum(vector[name] for vector in found.task_vectors) for name, tensor in start.items()
        }
        return sum(one.value(weights) for one in tasks)

    best = min(np.linspace(0.2, 3, 281) * found.coefficient, key=total)
    drop = total(0.0) - total(best)
    assert total(0.0) - total(found.coefficient) > 0.99 * drop
    assert abs(sum(found.predicted_losses) - total(found.coefficient)) < 0.02 * drop
    quadratic = -found.slopes.sum() / sum(
        float(sum((one.hvp(v)[n] * v[n]).sum() for n in v))
        for one in tasks
        for v in [{name: sum(vector[name] for vector in found.task_vectors) for name in start}]
    )
    assert total(quadratic) > total(found.coefficient)  # the parabola alone is worse here


class Saddle(nn.Module):
    """A loss `cos(w)` at its top's slope, which is curved downwards."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5], dtype=torch.float64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.cos(self.w) * inputs


def _identity(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return output.mean()


def test_without_a_minimum_the_coefficient_is_searched_and_said() -> None:
    def saddle() -> Objective:
        ones = torch.ones(4, dtype=torch.float64)
        return Objective(Saddle(), _identity, (ones, ones))

    vector = {"w": torch.tensor([5.0], dtype=torch.float64)}
    found = tvgrad.plan([saddle(), saddle()], task_vectors=[vector, vector])
    assert "no minimum to second order" in found.sentences[0]
    assert found.coefficient == pytest.approx((np.pi - 0.5) / 10, abs=0.06)  # where cos is -1, on the way of 10
    backwards = {"w": torch.tensor([-0.1], dtype=torch.float64)}
    found = tvgrad.plan([saddle()], task_vectors=[backwards])
    assert found.coefficient == 0
    assert "does not fall" in found.sentences[0]
    assert "0 is the plan" in found.sentences[1]


def test_a_plan_that_is_far_out_does_not_hold_and_says_so() -> None:
    tasks = [objective("mlp", seed) for seed in range(2)]
    near, far = (tvgrad.plan(tasks, GD(lr), 4) for lr in (1e-3, 30.0))
    assert near.holds
    assert near.sentences == ()
    assert not far.holds
    assert far.relative_second_order_error > 1
    assert any("further from the quadratic model" in sentence for sentence in far.sentences)


def test_zero_gradients_are_planned_with() -> None:
    x, _ = data()
    model = nn.Linear(12, 2).double()
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    still = Objective(model, nn.MSELoss(), (x, torch.zeros(len(x), 2).double()))
    found = tvgrad.plan([still], GD(0.1), 3)
    assert found.coefficient == 0
    assert norm(found.task_vectors[0]) == 0


def test_scores_choose_the_coefficient_along_the_forecast(regressions: Regressions) -> None:
    """Scores with a known maximum: the nearest of the coefficients tried, by numpy along numpy's task vectors."""
    merged = sum(regressions.descent(task, 0.2, 2) for task in range(TASKS))
    plain = tvgrad.plan(regressions.objectives, GD(0.2), 2)
    peaks = (0.3, 0.5, 0.55)  # of scores that fall linearly on both sides: the mean is best at the median

    def score(peak: float, weights: Weights) -> float:
        moved = flatten(weights) - regressions.start
        assert np.linalg.norm(moved - (moved @ merged) / (merged @ merged) * merged) < 1e-9
        return -abs(float(moved @ merged / (merged @ merged)) / plain.coefficient - peak)

    found = tvgrad.plan(regressions.objectives, GD(0.2), 2, scores=[partial(score, peak) for peak in peaks])
    assert found.coefficient == pytest.approx(0.5 * plain.coefficient, rel=1e-9)
    assert found.coefficients == (found.coefficient,) * TASKS
    moved = found.coefficient * merged
    assert found.predicted_losses == pytest.approx([regressions.loss(t, moved) for t in range(TASKS)], rel=1e-9)
    assert found.held_out is not None
    assert found.held_out.coefficients == pytest.approx(np.linspace(0, 1.5, 16) * plain.coefficient)
    assert found.held_out.best == pytest.approx(-(0.2 + 0 + 0.05) / 3, abs=1e-9)
    assert plain.held_out is None
    assert found.counts == plain.counts
    constant = tvgrad.plan(regressions.objectives, GD(0.2), 2, scores=[lambda weights: 1.0] * TASKS)
    assert constant.coefficient == 0  # of equal scores the smallest
    broken = tvgrad.plan(
        regressions.objectives[:1],
        GD(0.2),
        2,
        scores=[lambda at: 0.0 if (flatten(at) == regressions.start).all() else np.nan],
    )
    assert broken.coefficient == 0
    with pytest.raises(TvgradError, match="1 scores are given for 3 tasks"):
        tvgrad.plan(regressions.objectives, GD(0.2), 2, scores=[lambda weights: 1.0])
    with pytest.raises(TvgradError, match="not finite at the pretrained weights"):
        tvgrad.plan(regressions.objectives[:1], GD(0.2), 2, scores=[lambda weights: np.nan])


def test_refusals() -> None:
    one, other = objective("mlp"), linear_regression()
    fits = dict(one.initial)
    with pytest.raises(TvgradError, match="do not start at the same"):
        tvgrad.plan([one, other], GD(0.1), 2)
    with pytest.raises(TvgradError, match="needs an update rule and a number of epochs"):
        tvgrad.plan([one])
    with pytest.raises(TvgradError, match="there is no task"):
        tvgrad.plan([], GD(0.1), 2)
    with pytest.raises(TvgradError, match="2 task vectors are given for 1 tasks"):
        tvgrad.plan([one], task_vectors=[fits, fits])
    with pytest.raises(TvgradError, match="task vector 0 does not fit"):
        tvgrad.plan([one], task_vectors=[dict(other.initial)])
    with pytest.raises(TvgradError, match="task vector 0 is not finite"):
        tvgrad.plan([one], task_vectors=[{name: tensor * float("nan") for name, tensor in fits.items()}])
    for scale, what in ((1e-200, "underflow"), (1e200, "overflow")):
        tiny = {name: torch.full_like(tensor, scale) for name, tensor in fits.items()}
        for run in (lambda v=tiny: tvgrad.plan([one], task_vectors=[v]), lambda v=tiny: coefficient_along([one], v)):
            with pytest.raises(TvgradError, match=f"task vector 0 has entries up to 1e.200, whose squares {what}"):
                run()
    with pytest.raises(TvgradError, match=r"task vector 0 has entries up to \S+e-20\d, whose squares underflow"):
        tvgrad.plan([one], GD(1e-200), 1)
    with pytest.raises(TvgradError, match="schedule"):
        tvgrad.plan([one], GD([0.1, 0.1]), 3)
    with pytest.raises(TvgradError, match="diverges"):
        tvgrad.plan([one], GD(1e200), 9)


def test_gradient_descent_of_one_epoch_is_minus_the_gradient() -> None:
    one = objective("vit")
    told = forecast(one, GD(0.01), 1)
    assert told.relative_second_order_error == 0
    assert distance(told.task_vector, trained(one, GD(0.01), 1)) < 1e-15


def test_adam_on_mini_batches_is_warned_of() -> None:
    tasks = [objective("mlp", seed) for seed in range(2)]
    warned = tvgrad.plan(tasks, Adam(1e-4), 1, batch_size=10)
    assert warned.holds
    assert any("which no forecast knows" in sentence for sentence in warned.sentences)
    for quiet in (tvgrad.plan(tasks, Adam(1e-4), 1), tvgrad.plan(tasks, SGD(1e-3), 1, batch_size=10)):
        assert quiet.sentences == ()


def test_where_amsgrad_holds_on_to_an_earlier_square() -> None:
    """With a short memory v falls as the gradient does, and AMSGrad divides by the largest one instead."""
    one = _one_weight(nn.MSELoss())
    rule = Adam(0.05, betas=(0.5, 0.3), amsgrad=True)
    assert distance(forecast(one, rule, 20).task_vector, _by_torch(one, rule, 20)) < 1e-12
    plain = replace(rule, amsgrad=False)
    assert distance(_by_torch(one, plain, 20), _by_torch(one, rule, 20)) > 1e-3


def _one_weight(loss: nn.Module) -> Objective:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh() if not isinstance(loss, nn.MSELoss) else nn.Identity())
    return Objective(model.double(), loss, (torch.ones(4, 1).double(), torch.full((4, 1), 3.0).double()))


@pytest.mark.parametrize("rule", [GD(1.0), Momentum(1.0, 0.5)])
def test_along_one_direction_the_gradient_at_the_end_takes_the_third_order_away(rule: UpdateRule) -> None:
    """The missed gradient grows with the square of the way, which is all of the third order where there is one way."""
    one, rates = _one_weight(nn.SmoothL1Loss()), [0.02 * 2.0**-power for power in range(4)]
    found = [(forecast(one, rule.with_lr(rate), 4), _by_torch(one, rule.with_lr(rate), 4)) for rate in rates]
    assert all(told.corrected for told, _ in found)
    assert order(rates, [distance(told.task_vector, true) for told, true in found]) > 3.9


def test_a_short_last_batch_is_a_step() -> None:
    one = objective("mlp")
    size = len(one.samples) - 1
    assert forecast(one, SGD(0.01), 3, batch_size=size).steps == 6


def test_the_minimum_of_a_cubic_is_its_minimum() -> None:
    generator = np.random.default_rng(0)
    seen = 0
    for _ in range(200):
        slope, curvature, cube = -generator.uniform(0.1, 2), *generator.normal(size=2)
        line = MergeLine(*(np.array([part]) for part in (1.0, slope, curvature, cube)))
        roots = np.roots([3 * cube, curvature, slope])
        minima = [
            float(root.real) for root in roots if not root.imag and root.real > 0 and curvature + 6 * cube * root > 0
        ]
        found = line.lowest()
        if found is None:
            assert minima == []
        else:
            seen += 1
            assert found == pytest.approx(min(minima), rel=1e-9)
    assert seen > 100


def test_the_coefficient_is_never_worse_than_the_best_that_was_measured() -> None:
    """Losses that no cubic follows: then the estimate at the last coefficient is not to be trusted."""
    generator = np.random.default_rng(1)
    kept = 0
    for _ in range(300):
        measured: dict[float, float] = {}

        def losses(a: float, measured: dict[float, float] = measured) -> np.ndarray:
            measured[a] = float(generator.uniform(0.5, 1.5))
            return np.array([measured[a]])

        line = MergeLine(np.array([1.0]), np.array([-0.5]), np.array([0.5]), np.array([0.0]))
        a, known, _ = best_coefficient(line, losses)
        tried = {0.0: 1.0, **measured}
        best = min(tried, key=lambda one: tried[one])
        assert a == best or float(known.at(a).sum()) <= tried[best]
        kept += a == best
    assert 0 < kept < 300


def test_losses_that_bend_sharply_are_searched_until_the_sum_is_low() -> None:
    """A steep fall and a steep rise, as where one task's loss is large at the start: no cubic follows it."""
    generator = np.random.default_rng(2)
    searched = 0
    for _ in range(200):
        height, fall, rise, power = generator.uniform([1, 1, 0.01, 2], [10, 30, 3, 8])

        def losses(a: float, h: float = height, f: float = fall, r: float = rise, p: float = power) -> np.ndarray:
            return np.array([h * np.exp(-f * a), 1 + r * a**p])

        slopes, curvatures = np.array([-height * fall, 0.0]), np.array([height * fall**2, 0.0])
        line = MergeLine(losses(0.0), slopes, curvatures, np.zeros(2))
        a, known, said = best_coefficient(line, losses)
        every = np.linspace(0, 5, 50_001)
        best = float((height * np.exp(-fall * every) + 1 + rise * every**power).min())
        start = float(losses(0.0).sum())
        share = (start - float(losses(a).sum())) / (start - best)
        if said:
            searched += 1
            assert "bends more than a cubic does" in said[0]
            terms = height * (1 + fall * a) ** 2  # whose rounding is in the sum
            np.testing.assert_allclose(known.at(a), losses(a), rtol=0, atol=1e-14 * terms)
        assert share > 0.95
    assert searched > 20


@pytest.mark.parametrize("curvature", [1e-9, 1e-3, 1e-2, 0.1])
def test_a_parabola_that_points_far_away_does_not_hide_a_minimum_nearby(curvature: float) -> None:
    """Next to an inflection the parabola's minimum is magnitudes too far: an even search stayed at its other end."""

    def losses(a: float) -> np.ndarray:
        return np.array([-a + curvature * a**2 / 2 + a**4])

    line = MergeLine(losses(0.0), np.array([-1.0]), np.array([curvature]), np.zeros(1))
    a, known, said = best_coefficient(line, losses)
    lowest = float(losses(np.linspace(0.5, 0.7, 20_001)).min())
    assert losses(a)[0] < 0.999 * lowest
    assert known.at(a) == pytest.approx(losses(a))
    assert "bends more than a cubic does" in said[0]


@pytest.mark.parametrize("length", [10.0, 1e3, 1e5])
@pytest.mark.parametrize("wall", [math.nan, math.inf, 1e300, 1.0])
def test_a_vector_that_is_far_too_long_is_searched_near_its_start(length: float, wall: float) -> None:
    """The loss falls up to 0.5 of a vector that is so many times as long, and is huge or no number further out."""
    for curvature in (-1.0, 1e-6):

        def losses(a: float, curvature: float = curvature) -> np.ndarray:
            x = a * length
            return np.array([-x + curvature * x**2 / 2 if x < 0.5 else wall * a])

        line = MergeLine(np.zeros(1), np.array([-length]), np.array([curvature * length**2]), np.zeros(1))
        a, _, said = best_coefficient(line, losses)
        assert losses(a)[0] < 0.6 * losses(0.4999 / length)[0]
        assert len(said) == 1


def test_a_search_that_ends_at_its_furthest_coefficient_says_so() -> None:
    line = MergeLine(np.zeros(1), np.array([-1.0]), np.array([-2.0]), np.zeros(1))
    a, _, said = best_coefficient(line, lambda a: np.array([-a - a**2]))
    assert a == 2**16
    assert "between 0 and 65536 by" in said[0]
    assert "a larger coefficient may be better" in said[0]
    _, _, said = best_coefficient(line, lambda a: np.array([-a - a**2 + 10 * a**4]))
    assert "larger" not in said[0]


@pytest.mark.parametrize("lowest", [0.5, 1.2, 7.3, 100.0, 4e4])
def test_a_minimum_beyond_one_is_found_where_there_is_none_to_second_order(lowest: float) -> None:
    """-a - a^2 + c a^4 with c by the place of its minimum; the search used to end at 1."""
    fourth = (1 + 2 * lowest) / (4 * lowest**3)
    measured: list[float] = []

    def losses(a: float) -> np.ndarray:
        measured.append(a)
        return np.array([-a - a**2 + fourth * a**4])

    a, known, said = best_coefficient(MergeLine(np.zeros(1), np.array([-1.0]), np.array([-2.0]), np.zeros(1)), losses)
    assert a == pytest.approx(lowest, rel=0.03)
    assert known.at(a) == pytest.approx(losses(a))
    assert len(said) == 1
    assert "larger" not in said[0]
    assert len(measured) - 1 <= 2 * SEARCHES + 1 + DOUBLINGS  # as --cost tells


def test_a_loss_without_a_curvature_is_measured() -> None:
    """The second derivative of |w|^1.5 at 0 is infinite: its predicted loss was a NaN."""
    vector = {"w": torch.ones(1, dtype=torch.float64)}
    ones = torch.ones(4, dtype=torch.float64)

    def loss(output: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return ((output - 0.5).abs() ** 1.5 - output + 0.5).mean()

    task = Objective(Saddle(), loss, (ones, ones), forward=lambda model, _: model.w)
    found = tvgrad.plan([task], task_vectors=[vector])
    assert found.coefficient == pytest.approx(4 / 9, abs=0.01)
    truth = found.coefficient**1.5 - found.coefficient
    assert found.predicted_losses == pytest.approx((truth,))
    assert "no finite curvature along the merge" in found.sentences[0]
    assert tvgrad.theory.merge_plan.coefficient_along([task], vector)[0] == found.coefficient
