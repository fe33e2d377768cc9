"""Third derivatives at the start, exact up to their rounding, and how much they can change over a ball."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import grad, vmap

from tests.bounds import oracles
from tests.bounds.oracles import Case, random_case
from tests.bounds.reading.test_convolutions import case_of
from tests.bounds.reading.test_residual_blocks import ONE, derivatives, unit, unit_case, with_constants_at
from tests.bounds.residual_cases import random_residual_case
from tests.bounds.test_soundness import problem_of
from tvgrad.bounds import FeedForward, loss_of
from tvgrad.bounds.certificates.coefficients import coefficients_of
from tvgrad.bounds.certificates.expansion_point import ExpansionPoint
from tvgrad.bounds.certificates.taylor_models import TaylorPath
from tvgrad.bounds.derivatives.ball_norms import _uncapped, ball_norms
from tvgrad.bounds.derivatives.sample_norms import SampleNorms
from tvgrad.bounds.derivatives.worst_case import LayerBounds
from tvgrad.bounds.rounding.parameter_sum import BoundedVector


def twice_along(case: Case, point: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """`D3[., d, d]` by differentiating the loss three times."""
    return grad(lambda at: direction @ grad(lambda inner: direction @ grad(case.value)(inner))(at))(point)


def drawn(seed: int) -> Case:
    return random_case(seed, deepest=4, widest=10) if seed % 2 else random_residual_case(seed, blocks=2, widest=8)


def direction_of(case: Case, seed: int) -> torch.Tensor:
    direction = torch.randn(len(case.start), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return direction / direction.norm()


@pytest.mark.parametrize("seed", range(40))
def test_the_third_derivative_lies_within_its_error(seed: int) -> None:
    case, problem = drawn(seed), problem_of(drawn(seed))
    direction = direction_of(case, seed)
    truth = twice_along(case, case.start, direction)
    if not bool(torch.isfinite(truth).all()):
        pytest.skip("PyTorch's third derivative of tanh-GELU overflows for large arguments")
    found = problem.twice_along(direction)
    apart = float((found.value - truth).norm())
    assert apart <= found.error * (1 + 1e-9) + 1e-14 * float(truth.norm())
    assert apart <= 1e-11 * (1 + float(truth.norm()))


@pytest.mark.parametrize("name", ["strided", "grouped", "normalised"])
def test_the_third_derivative_of_a_convolution(name: str) -> None:
    case = case_of(name)
    direction = direction_of(case, 1)
    found = problem_of(case).twice_along(direction)
    assert float((found.value - twice_along(case, case.start, direction)).norm()) <= min(found.error, 1e-10)


def test_chunks_add_up_to_the_whole() -> None:
    case = drawn(4)
    direction = direction_of(case, 4)
    whole, parts = (
        FeedForward(case.model, case.inputs, case.targets, case.bounded, chunk_size=size) for size in (None, 1)
    )
    one, other = whole.twice_along(direction).value, parts.twice_along(direction).value
    torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(
        whole.third_changes(0.1).thirds, parts.third_changes(0.1).thirds, rtol=1e-8, atol=1e-13
    )  # fmt: skip


def worst_change(case: Case, radius: float, seed: int) -> list[tuple[float, torch.Tensor]]:
    """Changes of `D3[., d, d]` from the centre, with d: random ones, and after climbing in point and direction."""
    points = oracles.points_in_ball(case, radius, 6, seed)
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(points.shape, generator=generator, dtype=torch.float64)
    directions = directions / directions.norm(dim=1, keepdim=True)

    def size(point: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        change = twice_along(case, point, direction) - twice_along(case, case.start, direction)
        return change.square().sum().clamp(min=1e-300).sqrt()

    for _ in range(2):
        up, turn = vmap(grad(size, argnums=(0, 1)))(points, directions)
        up, turn = (torch.nan_to_num(one, nan=0.0) for one in (up, turn))
        up = radius * up / up.norm(dim=1, keepdim=True).clamp(min=1e-300)
        points = oracles.into_ball(points + up, case.start, radius)
        turned = directions + turn / turn.norm(dim=1, keepdim=True).clamp(min=1e-300)
        directions = turned / turned.norm(dim=1, keepdim=True).clamp(min=1e-300)
    found = torch.nan_to_num(vmap(size)(points, directions), nan=0.0)
    return list(zip(map(float, found), directions, strict=True))


@pytest.mark.parametrize("seed", [*range(24), *(pytest.param(s, marks=pytest.mark.slow) for s in range(24, 600))])
def test_no_third_derivative_changes_by_more_than_its_bound(seed: int) -> None:
    case = drawn(seed)
    radius = (0.01, 0.1, 0.5, 2.0)[(seed // 2) % 4]
    problem = problem_of(case)
    bounds, rounding = problem.third_changes(radius), problem.third_changes(0.0)
    for change, direction in worst_change(case, radius, seed):
        norms = problem.network.layer_norms(direction)
        limit = bounds.along(norms)[0] + rounding.along(norms)[0]
        assert change <= limit * (1 + 1e-9) + 1e-11, (radius, case.label)


@pytest.mark.parametrize("seed", range(16))
def test_the_change_is_convex_in_the_radius(seed: int) -> None:
    problem = problem_of(drawn(seed))
    radius = (0.01, 0.1, 0.5, 2.0)[(seed // 2) % 4]
    end, start = problem.third_changes(radius).thirds, problem.third_changes(0.0).thirds
    for share in (0.1, 0.5, 0.9):
        between = problem.third_changes(share * radius).thirds
        assert bool((between <= ((1 - share) * start + share * end) * (1 + 1e-6) + 1e-13).all())


def of_mover(bounds: LayerBounds, problem: FeedForward) -> float:
    """The one block of the one layer that moves."""
    (index,) = {layer for layer, _, _ in problem.network.parts}
    return float(bounds.thirds[index, index, index])


@pytest.mark.parametrize("target", [-1.0, -50.0])
@pytest.mark.parametrize("name", ["identity", "nested"])
def test_the_change_of_a_third_derivative_is_attained(name: str, target: float) -> None:
    """One bias moves by the radius: to first order in it, D3 changes by what the bound says."""
    radius = 1e-4
    case, _ = unit_case(name, target)
    case.model.requires_grad_(False)
    case.model[0].bias.requires_grad_(True)
    problem = with_constants_at(problem_of(case), 4 * radius)
    grown = float(derivatives(case, radius)[2]) - float(derivatives(case)[2])
    bound = of_mover(problem.third_changes(radius), problem)
    assert 0 < grown <= bound <= 1.006 * grown


def test_what_the_cubic_form_leaves_is_attained() -> None:
    """Two steps on one bias: the error differs from the model's by `eta D4 q^3 / 6`, which is what is left."""
    model = nn.Sequential(unit(0.0, -3.0, "bias"), nn.Sigmoid(), unit(1.0, 0.0, None))
    case = Case(model, ONE, -50 * ONE, lambda f, y: (f - y).square().sum() / 2, "cubic", loss_of("mse_half"))
    slope, rate = grad(case.value), 4e-4
    first = slope(case.start)
    way = rate * float(first.norm())
    problem = with_constants_at(problem_of(case), 1.1 * way)
    path = TaylorPath(ExpansionPoint(problem, coefficients_of(rate, 2)), cubic=True)
    rest, _ = path.deviation()
    error = -rate * (slope(case.start - rate * first) - first)
    truth = float((error - path.error(2).value).norm())
    assert truth <= rest <= 1.005 * truth


def test_what_a_stray_adds_to_the_cubic_form_is_attained() -> None:
    """The first point may be off by so much: the gradient there differs from the model's by what is left for it."""
    model = nn.Sequential(unit(0.0, -3.0, "bias"), nn.Sigmoid(), unit(1.0, 0.0, None))
    case = Case(model, ONE, 5000 * ONE, lambda f, y: (f - y).square().sum() / 2, "stray", loss_of("mse_half"))
    slope, rate, stray = grad(case.value), 4e-5, 1e-3
    first = slope(case.start)
    point = case.start - rate * first
    problem = with_constants_at(problem_of(case), 1.1 * float((point - case.start).norm() + stray))
    path = TaylorPath(ExpansionPoint(problem, coefficients_of(rate, 2)), cubic=True)
    path.points[1] = BoundedVector(path.points[1].value, stray)
    rest, _ = path.deviation()
    model_gradient = first + path.changes[1].value
    truth = rate * float((slope(point + stray) - model_gradient).norm())
    assert truth <= rest <= 1.002 * truth
    # without the part of D3 along the known and the unknown step the bound would be below
    along = rate * abs(float(twice_along(case, case.start, ONE[0]))) * rate * float(first.norm()) * stray
    assert 0.01 * along > rest - truth


def test_what_a_distance_adds_to_a_loss_is_attained() -> None:
    """A bit's curvature grows by L3 and its third derivative by L4 where these are largest."""
    loss, moved = loss_of("bce"), 1e-4 * ONE[0]
    for logit, name, order in [(-math.log(2 + math.sqrt(3)), "hessian", 1), (0.0, "third", 2)]:
        at = SampleNorms(logit * ONE, 0 * ONE, curvatures=loss.curvature(logit * ONE, 0 * ONE))
        radius = float(moved)
        ends = [getattr(_uncapped(loss, at, by, radius), name) for by in (moved, 0 * moved)]
        added = float(ends[0] - ends[1])
        slope = torch.sigmoid
        for _ in range(order):
            slope = grad(slope)
        ends = [float(slope(torch.tensor(logit, dtype=torch.float64) + step)) for step in (0.0, float(moved))]
        grown = abs(ends[1] - ends[0])
        assert grown * (1 - 1e-9) <= added <= 1.003 * grown, name


def test_what_a_ball_adds_to_a_step_of_the_weights_is_attained() -> None:
    """A step of the second weight moves z_2 by s(b), which the ball of b widens."""
    radius = 1e-4
    model = nn.Sequential(unit(0.0, -3.0, "bias"), nn.Sigmoid(), unit(1.0, 0.0, "weight"))
    case = Case(model, ONE, ONE, nn.MSELoss(), "steps")
    problem = with_constants_at(problem_of(case), 4 * radius)
    values = [
        float(ball_norms(problem.network, problem.loss, problem._measured[0], at, capped=False).steps[1])
        for at in (0.0, radius)
    ]
    ends = [1 / (1 + math.exp(3.0 - step)) for step in (0.0, radius)]
    grown = ends[1] - ends[0]
    assert grown <= values[1] - values[0] <= 1.003 * grown


@pytest.mark.parametrize("rate", [1e-4, 1e-2])
def test_the_cubic_model_is_closer_than_the_quadratic(rate: float) -> None:
    case = random_case(11, deepest=3, widest=6)
    problem = problem_of(case)
    forms = {form.name: form for form in problem.certificate(rate, 4, simulate=False).forms}
    assert forms["quadratic"].exists
    assert forms["cubic"].upper - forms["cubic"].lower < 0.2 * (forms["quadratic"].upper - forms["quadratic"].lower)
    assert math.isfinite(forms["cubic"].radius)
