"""Residual blocks: bounds with skips hold, are attained where they can be, and are those of a chain without skips."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.func import jacfwd, jacrev

from tests.bounds import residual_cases
from tests.bounds.certificates.test_certificate import RULES, rule_error, true_gap
from tests.bounds.oracles import Case
from tests.bounds.reference import Task
from tests.bounds.residual_cases import Block, Functional, random_residual_case
from tests.bounds.test_soundness import check, check_training, problem_of
from tvgrad.bounds import FeedForward, loss_of, multitask_gap_bound
from tvgrad.bounds.certificates.tubes import certify_steps
from tvgrad.bounds.derivatives.ball_norms import ball_norms
from tvgrad.bounds.derivatives.worst_case import LayerBounds
from tvgrad.bounds.network.skips import Skips

RADII = (0.0, 0.01, 0.3, 2.0)


@pytest.mark.parametrize("seed", [*range(16), *(pytest.param(s, marks=pytest.mark.slow) for s in range(16, 400))])
def test_no_violation_with_random_blocks(seed: int) -> None:
    check(random_residual_case(seed), seed, RADII[seed % 4], number=12 if seed < 16 else 24)


@pytest.mark.parametrize("seed", [*range(20), *(pytest.param(s, marks=pytest.mark.slow) for s in range(20, 400))])
def test_training_errors_lie_between_their_bounds(seed: int) -> None:
    check_training(random_residual_case(1000 + seed, blocks=2), 10.0 ** -(seed % 7))


def image_case(name: str, seed: int = 0) -> Case:
    torch.manual_seed(seed)
    model = residual_cases.images()[name]().double()
    inputs = torch.randn(4, 2, 5, 5, dtype=torch.float64)
    return Case(model, inputs, torch.arange(4) % 3, nn.CrossEntropyLoss(), name)


@pytest.mark.parametrize("seed", [1, *(pytest.param(s, marks=pytest.mark.slow) for s in (0, 2, 3, 4, 5, 6, 7))])
@pytest.mark.parametrize("name", residual_cases.images())
def test_no_violation_with_convolutions(name: str, seed: int) -> None:
    case = image_case(name, seed)
    check(case, seed, RADII[seed % 4], number=12)
    check_training(case, 1e-3)


def small_task() -> Task:
    torch.manual_seed(4)
    body = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4))
    model = nn.Sequential(nn.Linear(4, 4), Block(body, after=nn.Tanh()), Functional(4, 3)).double()
    inputs = torch.randn(20, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return Task("residual", model, inputs, torch.arange(20) % 3)


@pytest.mark.parametrize("name", RULES)
def test_every_form_exists_and_holds_for_every_rule(name: str) -> None:
    task, rate = small_task(), 1e-3
    rule = RULES[name](rate)
    error, weights = rule_error(task, rule, 5)
    certificate = FeedForward(task.model, task.inputs, task.targets).certificate(rule, 5)
    assert all(form.exists for form in certificate.forms)
    for form in certificate.forms:
        assert form.lower - 1e-12 * rate <= error <= form.upper + 1e-12 * rate, form
        if form.name != "tube":
            assert max(float((w - weights[0]).norm()) for w in weights) <= form.radius
    forms = {form.name: form.upper for form in certificate.forms}
    assert forms["cubic"] <= forms["quadratic"] <= 2 * error
    assert certificate.error_bound <= 1.001 * error


def test_a_recorded_run_and_a_gap_have_their_bounds() -> None:
    task = small_task()
    problem = FeedForward(task.model, task.inputs, task.targets)
    error, _ = rule_error(task, RULES["gd"](0.02), 5)
    _, weights = rule_error(task, RULES["gd"](0.02), 6)
    steps, _ = certify_steps(problem, 0.02, weights)
    assert error <= steps[4].error <= 1.001 * error
    other = Task("turned", task.model, -task.inputs, task.targets)
    gap = true_gap([task, other], 1e-3, 5, 0.4)
    bounds = multitask_gap_bound([problem, FeedForward(task.model, other.inputs, other.targets)], 1e-3, 5, alpha=0.4)
    assert [form.name for form in bounds.forms if form.exists] == ["closed", "quadratic", "cubic", "tube"]
    for form in bounds.forms:
        assert form.lower * (1 - 1e-9) <= gap <= form.upper * (1 + 1e-9)


def numbers(problem: FeedForward, radius: float) -> torch.Tensor:
    return torch.tensor([
        value
        for bounds in (problem.local(radius), problem.worst_case(radius), problem.closed_form(radius))
        for value in (bounds.gradient_norm, bounds.hessian_norm, bounds.hessian_lipschitz)
    ])  # fmt: skip


@pytest.mark.parametrize("radius", [0.0, 0.2])
def test_a_skip_of_zeros_leaves_the_bounds_of_the_chain(radius: float) -> None:
    torch.manual_seed(1)
    body = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4))
    nothing = nn.Linear(4, 4)
    with torch.no_grad():
        nothing.weight.zero_()
        nothing.bias.zero_()
    nothing.requires_grad_(False)
    head, last = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid()), nn.Linear(4, 3)
    inputs, targets = torch.randn(9, 4, dtype=torch.float64), torch.arange(9) % 3
    chain = nn.Sequential(head, body, nn.Tanh(), last).double()
    blocks = nn.Sequential(head, Block(body, nothing, nn.Tanh()), last).double()
    one, other = (FeedForward(model, inputs, targets) for model in (chain, blocks))
    torch.testing.assert_close(numbers(one, radius), numbers(other, radius), rtol=1e-9, atol=0.0)
    assert other.certificate(1e-3, 3).error_bound == pytest.approx(one.certificate(1e-3, 3).error_bound, rel=1e-6)


def test_a_chain_in_a_module_of_its_own_has_the_bounds_of_the_sequential() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second, self.first = nn.Linear(4, 3), nn.Linear(5, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(torch.tanh(self.first(x)))

    torch.manual_seed(2)
    module = Chain().double()
    inputs, targets = torch.randn(9, 5, dtype=torch.float64), torch.arange(9) % 3
    read = FeedForward(module, inputs, targets)
    plain = FeedForward(nn.Sequential(module.first, nn.Tanh(), module.second), inputs, targets)
    assert read.network.names == ("second.weight", "second.bias", "first.weight", "first.bias")
    assert read.network.skips == plain.network.skips == Skips((0, 1), ((), ()))
    assert torch.equal(numbers(read, 0.1), numbers(plain, 0.1))
    second, first = read.network.flat.split([15, 24])
    assert torch.equal(torch.cat([first, second]), plain.network.flat)


def test_chunks_change_nothing() -> None:
    task = small_task()
    whole, parts = (FeedForward(task.model, task.inputs, task.targets, chunk_size=size) for size in (None, 3))
    torch.testing.assert_close(numbers(whole, 0.1), numbers(parts, 0.1), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(whole.gradient.value, parts.gradient.value, rtol=1e-12, atol=1e-15)


def test_frozen_skips_and_bodies_do_not_move() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(Block(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 4)), nn.Linear(4, 3)).double()
    inputs, targets = torch.randn(9, 4, dtype=torch.float64), torch.arange(9) % 3
    free = FeedForward(model, inputs, targets)
    model[0].skip.requires_grad_(False)
    held = FeedForward(model, inputs, targets)
    assert held.network.parameters == free.network.parameters - 20
    for quantity in ("gradient_norm", "hessian_norm", "hessian_lipschitz"):
        assert getattr(held, quantity)(0.5) < getattr(free, quantity)(0.5)
    assert held.worst_case(0.5).hessian[0].sum() == 0  # the skip runs first


def test_matrices_with_skips_are_the_module_with_blocks() -> None:
    torch.manual_seed(6)
    body = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model = nn.Sequential(Block(body, after=nn.Tanh()), nn.Linear(4, 3)).double()
    linears = [part for part in model.modules() if isinstance(part, nn.Linear)]
    inputs = torch.randn(9, 4, dtype=torch.float64)
    known = FeedForward(model, inputs, torch.arange(9) % 3)
    bare = FeedForward.from_matrices(
        [one.weight for one in linears], [one.bias for one in linears], "tanh", inputs.norm(dim=1), skips=[(1, 2)]
    )
    assert bare.network.skips == known.network.skips == Skips((0, 1, 2), ((), (0,), ()))
    for name in ("gradient_norm", "hessian_norm", "hessian_lipschitz"):
        assert getattr(bare.closed_form(0.1), name) == pytest.approx(getattr(known.closed_form(0.1), name), rel=1e-9)


# Networks of single units in which each layer has one trainable number and every derivative is positive: the blocks of
# the bounds are then the derivatives themselves, and any term that is one per cent too small shows.


def unit(weight: float, bias: float, moving: str | None) -> nn.Linear:
    """`weight x + bias` with one of the two trainable, or none."""
    layer = nn.Linear(1, 1).double().requires_grad_(False)
    with torch.no_grad():
        layer.weight.fill_(weight)
        layer.bias.fill_(bias)
    if moving is not None:
        getattr(layer, moving).requires_grad_(True)
    return layer


def identity_skip() -> nn.Sequential:
    """The sum is activated, so that first to third derivatives of a sum enter the next activation."""
    body = nn.Sequential(unit(0.4, -2.3, "weight"), nn.Sigmoid(), unit(0.9, 0.0, "weight"))
    return nn.Sequential(
        unit(0.0, -3.0, "bias"), nn.Sigmoid(), Block(body), unit(1.0, -3.5, "weight"), nn.Sigmoid(),
        unit(1.3, 0.0, "weight"),
    )  # fmt: skip


def projected_skip() -> nn.Sequential:
    body = nn.Sequential(unit(0.5, -3.0, "weight"), nn.Sigmoid(), unit(0.7, -3.0, "bias"))
    skip = unit(0.6, -0.2, "weight")
    return nn.Sequential(
        unit(0.2, -2.5, "weight"), nn.Sigmoid(), Block(body, skip, nn.Sigmoid()), unit(2.0, 0.0, "weight")
    )


def two_skips() -> nn.Sequential:
    """One block in another, and an activation that opens a body."""
    inner = Block(nn.Sequential(nn.Sigmoid(), unit(0.8, 0.1, "weight")))
    outer = Block(nn.Sequential(inner, unit(0.5, -2.5, "bias"), nn.Sigmoid()))
    return nn.Sequential(unit(0.0, -3.0, "bias"), outer, outer_twice(), unit(1.5, 0.0, None))


def outer_twice() -> Block:
    return Block(nn.Sequential(nn.Sigmoid()), after=nn.Sigmoid())


UNITS: dict[str, Callable[[], nn.Sequential]] = {
    "identity": identity_skip, "projected": projected_skip, "nested": two_skips
}  # fmt: skip
ONE = torch.ones(1, 1, dtype=torch.float64)


def unit_case(name: str, target: float) -> tuple[Case, FeedForward]:
    model = UNITS[name]().double()
    goal = torch.full((1, 1), target, dtype=torch.float64)
    case = Case(model, ONE, goal, lambda f, y: (f - y).square().sum() / 2, name, loss_of("mse_half"))
    return case, problem_of(case)


def derivatives(case: Case, moved: float = 0.0) -> list[torch.Tensor]:
    """The derivatives of the loss, by nested automatic differentiation, all parameters moved by so much."""
    first = jacrev(case.value)
    second = jacfwd(first)
    return [one(case.start + moved) for one in (first, second, jacfwd(second))]


def blocks(problem: FeedForward, bounds: LayerBounds) -> list[torch.Tensor]:
    """The blocks of the layers that move, in the order of the flat vector."""
    chosen = [index for index, _, _ in problem.network.parts]
    assert bounds.third is not None
    second, third = bounds.hessian, bounds.third
    return [bounds.gradient[chosen], second[chosen][:, chosen], third[chosen][:, chosen][:, :, chosen]]


@pytest.mark.parametrize("target", [-1.0, -30.0])
@pytest.mark.parametrize("name", UNITS)
def test_every_block_of_the_local_bounds_is_attained(name: str, target: float) -> None:
    case, problem = unit_case(name, target)
    truth = derivatives(case)
    assert all(bool((one >= 0).all()) for one in truth)
    for bound, exact in zip(blocks(problem, problem.local()), truth, strict=True):
        assert bool((bound >= exact * (1 - 1e-12)).all())
        torch.testing.assert_close(bound, exact, rtol=1e-9, atol=1e-12)


def with_constants_at(problem: FeedForward, reach: float) -> FeedForward:
    """The same problem with each activation's constants those of its own unit: the largest within `reach` of its z."""
    zs, made = [], [ONE[0]]
    skips = problem.network.skips
    for index, layer in enumerate(problem.network.layers):
        z = layer.matrix @ made[skips.reads[index]] + layer.offset
        zs.append(z + sum((made[k] for k in skips.adds[index]), torch.zeros(1, dtype=torch.float64)))
        made.append(layer.activation.value(zs[-1]))
    layers = []
    for z, layer in zip(zs, problem.network.layers, strict=True):
        if layer.activation.name == "identity":
            layers.append(layer)
            continue
        grid = (z + torch.linspace(-reach, reach, 201, dtype=torch.float64)).requires_grad_()
        values = [torch.sigmoid(grid)]
        for _ in range(4):
            values.append(torch.autograd.grad(values[-1].sum(), grid, create_graph=True)[0])
        size, *limits = (float(value.detach().abs().max()) for value in values)
        names = ("b1", "b2", "b3", "b4")
        own = dataclasses.replace(
            layer.activation, **dict(zip(names, limits, strict=True)), supremum=size, at_zero=1.0
        )  # fmt: skip
        layers.append(dataclasses.replace(layer, activation=own))
    problem.network = dataclasses.replace(problem.network, layers=tuple(layers))
    return problem


@pytest.mark.parametrize("name", UNITS)
def test_every_block_of_the_worst_case_is_attained(name: str) -> None:
    case, problem = unit_case(name, -1.0)
    truth = derivatives(case)
    for bound, exact in zip(blocks(problem, with_constants_at(problem, 0.0).worst_case()), truth, strict=True):
        assert bool((bound >= exact * (1 - 1e-12)).all())
        torch.testing.assert_close(bound, exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["identity", "nested"])
@pytest.mark.parametrize("kind", ["local", "worst_case"])
def test_what_a_ball_adds_is_attained(name: str, kind: str) -> None:
    """One bias moves by the radius: each derivative grows by what was added for the ball, to first order in it."""
    radius = 1e-4
    case, problem = unit_case(name, -1.0)
    case.model.requires_grad_(False)
    case.model[0].bias.requires_grad_(True)
    problem = with_constants_at(problem_of(case), 4 * radius)
    here, there = ([float(one) for one in derivatives(case, moved)] for moved in (0.0, radius))
    wide = [float(one) for one in blocks(problem, getattr(problem, kind)(radius))]
    centre = [float(one) for one in blocks(problem, problem_of(case).local())]
    for order in range(3):
        grown = there[order] - here[order]
        assert grown > 0
        assert there[order] <= wide[order] * (1 + 1e-12), order
        if kind == "local":
            assert wide[order] - centre[order] <= 1.003 * grown, order


@pytest.mark.parametrize("name", ["z_columns_second", "h_columns_second"])
def test_what_a_ball_adds_to_what_an_activation_bends_is_attained(name: str) -> None:
    """`z_3 = v s(z_2)`, `z_2 = (w + 1) s(b)`: what s''(b) does to z_3 and to s(z_3) goes through the skip."""
    w, v, radius = 0.4, 0.9, 1e-4
    model = nn.Sequential(
        unit(0.0, -3.0, "bias"), nn.Sigmoid(), Block(unit(w, -3.0, None), after=nn.Sigmoid()),
        unit(v, -3.0, None), nn.Sigmoid(), unit(1.0, 0.0, None),
    )  # fmt: skip
    case = Case(model, ONE, ONE, nn.MSELoss(), name)
    problem = with_constants_at(problem_of(case), 4 * radius)

    def exact(bias: float) -> float:
        def bend(z: torch.Tensor) -> list[torch.Tensor]:
            s = torch.sigmoid(z)
            return [s, s * (1 - s), s * (1 - s) * (1 - 2 * s)]

        first = bend(torch.tensor(bias, dtype=torch.float64))
        second = bend((w + 1) * first[0] - 3)
        third = bend(v * second[0] - 3)
        found = v * second[1] * (w + 1) * first[2]
        return float(found * third[1] if name == "h_columns_second" else found)

    values = [
        float(getattr(ball_norms(problem.network, problem.loss, problem._measured[0], at).norms, name)[1, 2])
        for at in (0.0, radius)
    ]
    grown = exact(-3.0 + radius) - exact(-3.0)
    assert values[0] == pytest.approx(exact(-3.0), rel=1e-9)
    assert exact(-3.0 + radius) <= values[1]
    assert 0 < grown <= values[1] - values[0] <= 1.003 * grown
