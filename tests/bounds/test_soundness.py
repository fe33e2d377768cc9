"""Soundness: no quantity that autograd finds anywhere in a ball exceeds its bound, and no constant can be smaller.

`TRIALS` counts comparisons of one derivative at one point of a ball with its bounds: the uniform, the worst-case and
the local one. A tenth runs with every change; the slow tests run all.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.bounds import oracles
from tests.bounds.oracles import Case, random_case
from tests.bounds.reference import reference_tasks
from tvgrad.bounds import Activation, FeedForward, NoCertificate, activation_of
from tvgrad.bounds.derivatives import worst_case
from tvgrad.bounds.derivatives.worst_case import LayerBounds
from tvgrad.bounds.losses.cross_entropy import CrossEntropy

TRIALS = 100_000
RADII = (0.0, 0.01, 0.3, 2.0)
POINTS = 24
EXPECTED = 0.3  # a rate that turns the gradient by at most so much in a training has a certificate


def problem_of(case: Case) -> FeedForward:
    return FeedForward(case.model, case.inputs, case.targets, case.bounded)


def overflows(case: Case) -> bool:
    """Whether PyTorch's third derivative may be NaN for large arguments: that of tanh-GELU overflows."""
    return any(isinstance(part, nn.GELU) and part.approximate == "tanh" for part in case.model.modules())


def check(case: Case, seed: int, radius: float, number: int = POINTS) -> int:
    """Compare gradient, Hessian and third derivative with every bound; return how many comparisons were made."""
    problem = problem_of(case)
    points = oracles.points_in_ball(case, radius, number, seed)
    if radius > 0:
        # of the points that are not the centre, half climb: on the gradient's, the Hessian's, the third norm
        share = number // 6
        for order in (1, 2, 3):
            where = slice(1 + (order - 1) * share, 1 + order * share)
            points[where] = oracles.climbed(case, order, points[where], radius, seed)
    third = oracles.third_norms(case, points, 5, seed)
    if overflows(case):  # those points say nothing
        third = third[torch.isfinite(third)]
    found = (
        oracles.gradient_norms(case, points),
        oracles.hessian_norms(case, points, 5, seed),
        third,
    )
    for bounds in (problem.closed_form(radius), problem.worst_case(radius), problem.local(radius)):
        limits = (bounds.gradient_norm, bounds.hessian_norm, bounds.hessian_lipschitz)
        for name, values, limit in zip(("gradient", "Hessian", "third"), found, limits, strict=True):
            # 1e-12: the oracle's own rounding, which for a bound that is attained is on the wrong side half the time.
            # NaN is not at most anything: it fails.
            assert bool((values <= limit * (1 + 1e-12) + 1e-13).all()), (name, radius, case.label)
    count = sum(len(values) for values in found)
    assert float(found[0].max()) <= problem.gradient_norm(radius) * (1 + 1e-12) + 1e-13
    return count


def sweep(trials: int, first_seed: int) -> None:
    done, seed = 0, first_seed
    while done < trials:
        # wide nets are rarer, since each costs as much as dozens of narrow ones
        case = random_case(seed, widest=64 if seed % 8 == 0 else 16)
        done += check(case, seed, RADII[seed % len(RADII)])
        seed += 1


@pytest.mark.parametrize("part", [0, 1, *(pytest.param(part, marks=pytest.mark.slow) for part in (2, 3))])
def test_no_violation_in_a_part_of_the_trials(part: int) -> None:
    sweep(TRIALS // 40, 10_000 * part)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_no_violation_in_all_trials(part: int) -> None:
    sweep(TRIALS // 10, 1_000_000 + 10_000 * part)


@pytest.mark.parametrize(
    ("task", "radius"),
    [(0, 0.0), (1, 0.05), *(pytest.param(t, r, marks=pytest.mark.slow) for t in range(3) for r in (1e-3, 0.3, 2.0))],
)
def test_no_violation_on_digits(task: int, radius: float) -> None:
    chosen = reference_tasks()[task]
    case = Case(chosen.model, chosen.inputs[:20], chosen.targets[:20], nn.CrossEntropyLoss(), "digits")
    check(case, 1, radius, number=6)


def training_error(case: Case, rate: float, epochs: int) -> float:
    slope = torch.func.grad(case.value)
    start, first = case.start, slope(case.start)
    moved, error = torch.zeros_like(start), torch.zeros_like(start)
    for epoch in range(epochs):
        error -= rate * (slope(start + moved) - first)
        moved = -(epoch + 1) * rate * first + error
    return float(error.norm())


def check_training(case: Case, rate: float, epochs: int = 4) -> None:
    """The error of real training lies between the bounds of every form."""
    error = training_error(case, rate, epochs)
    problem = problem_of(case)
    try:
        certificate = problem.certificate(rate, epochs)
    except NoCertificate:
        # the gradient turns by this much, relatively, over a ball twice as large as what the first gradient reaches
        assert rate * epochs * problem.hessian_norm(2 * rate * epochs * problem.gradient_norm()) > EXPECTED, case.label
        return
    slack = 1e-12 * rate + 1e-9 * error  # rounding of the measured error
    # the tube alone measures less, and more roughly
    for form in (*certificate.forms, *problem_of(case).certificate(rate, epochs, forms=["tube"]).forms):
        assert form.lower - slack <= error <= form.upper + slack, (form, case.label)


@pytest.mark.parametrize("seed", [*range(60), *(pytest.param(s, marks=pytest.mark.slow) for s in range(60, 600))])
def test_training_errors_lie_between_their_bounds(seed: int) -> None:
    check_training(random_case(seed, deepest=4, widest=12), 10.0 ** -(seed % 7))


# Cases in which a bound is attained, so that any constant that is one per cent too small shows.


def scalar_net(activation: str, pre_activation: float) -> FeedForward:
    """x = 1, one frozen unit weight before the activation: the only trainable number is the first bias."""
    first, last = nn.Linear(1, 1), nn.Linear(1, 1, bias=False)
    model = nn.Sequential(first, {"tanh": nn.Tanh(), "sigmoid": nn.Sigmoid(), "gelu": nn.GELU()}[activation], last)
    model = model.double()
    with torch.no_grad():
        first.weight.zero_()
        first.bias.fill_(pre_activation)
        last.weight.fill_(1.0)
    first.weight.requires_grad_(False)
    last.weight.requires_grad_(False)
    return FeedForward(model, torch.ones(1, 1).double(), torch.zeros(1, 1).double(), "mse_half")


def shrunk(activation: Activation, constant: str) -> Activation:
    return dataclasses.replace(activation, **{constant: 0.99 * getattr(activation, constant)})


@pytest.mark.parametrize(
    ("constant", "point", "order"), [("b1", 0.0, 1), ("b2", -0.6584789484624084, 2), ("b3", 0.0, 3)]
)
def test_an_activation_constant_that_is_one_per_cent_smaller_is_violated(
    constant: str, point: float, order: int
) -> None:
    """The derivatives of the one hidden unit attain the constants, which the recursion carries to the logits."""
    problem = scalar_net("tanh", point)
    kind = activation_of("tanh")
    derivative = (kind.d1, kind.d2, kind.d3)[order - 1]
    attained = float(derivative(torch.tensor(point, dtype=torch.float64)).abs())

    def carried(at: FeedForward) -> float:
        norms = torch.zeros(1, dtype=torch.float64)
        c, m, t = worst_case._recursion(at.network, norms, 0.0, True)
        assert t is not None
        return (float(c[0, 0]), float(m[0, 0, 0]), float(t[0, 0, 0, 0]))[order - 1] * (1 + 1e-9)

    assert carried(problem) >= attained
    hidden = problem.network.layers[0]
    smaller = dataclasses.replace(hidden, activation=shrunk(hidden.activation, constant))
    problem.network = dataclasses.replace(problem.network, layers=(smaller, problem.network.layers[1]))
    assert carried(problem) < attained


def attained_pairs() -> list[tuple[str, Callable[[], tuple[FeedForward, Case, float]]]]:
    def two_classes() -> tuple[FeedForward, Case, float]:
        """Equal logits: K = 1/2, G = 1/sqrt 2, with one linear layer and one sample."""
        model = nn.Linear(2, 2).double()
        with torch.no_grad():
            model.weight.zero_()
            model.bias.zero_()
        case = Case(
            nn.Sequential(model), torch.tensor([[3.0, 4.0]]).double(), torch.tensor([0]), nn.CrossEntropyLoss(), "two"
        )
        return problem_of(case), case, 1.0

    def least_squares() -> tuple[FeedForward, Case, float]:
        model = nn.Linear(3, 1).double()
        inputs = torch.tensor([[1.0, -2.0, 0.5]]).double()
        case = Case(nn.Sequential(model), inputs, torch.tensor([[5.0]]).double(), nn.MSELoss(), "squares")
        return problem_of(case), case, 1.0

    return [("two classes", two_classes), ("least squares", least_squares)]


@pytest.mark.parametrize(("name", "build"), attained_pairs())
def test_bounds_that_are_attained_are_within_a_tenth_of_a_per_cent(
    name: str, build: Callable[[], tuple[FeedForward, Case, float]]
) -> None:
    problem, case, _ = build()
    point = case.start[None]
    gradient, hessian = oracles.gradient_norms(case, point), oracles.hessian_norms(case, point, 30)
    local = problem.local()
    assert float(gradient) <= local.gradient_norm <= 1.001 * float(gradient)
    for bounds in (local, problem.worst_case()):
        assert float(hessian) <= bounds.hessian_norm <= 1.001 * float(hessian)


@pytest.mark.parametrize("shrunk_name", ["gradient_norm", "hessian_norm", "hessian_lipschitz"])
def test_the_check_finds_a_bound_that_is_one_per_cent_smaller(
    shrunk_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, case, _ = attained_pairs()[0][1]()
    with torch.no_grad():  # not equal logits: the third derivative does not vanish
        case.model[0].bias.copy_(torch.tensor([0.5 + 12**-0.5, 0.5 - 12**-0.5]).double().log())
    check(case, 0, 0.0, number=2)
    bound = getattr(LayerBounds, shrunk_name).fget
    monkeypatch.setattr(LayerBounds, shrunk_name, property(lambda self: 0.99 * bound(self)))
    with pytest.raises(AssertionError):
        check(case, 0, 0.0, number=2)


def test_the_check_fails_on_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    _, case, _ = attained_pairs()[0][1]()
    monkeypatch.setattr(oracles, "third_norms", lambda *_: torch.tensor([0.0, math.nan]))
    with pytest.raises(AssertionError):
        check(case, 0, 0.0, number=2)


def test_a_missing_certificate_fails_where_one_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise NoCertificate("none")

    _, case, _ = attained_pairs()[0][1]()
    monkeypatch.setattr(FeedForward, "certificate", refused)
    with pytest.raises(AssertionError):
        check_training(case, 1e-6)
    check_training(case, 10.0)


@pytest.mark.parametrize("factor", ["spectral norm", "gradient", "hessian", "third", "margin"])
def test_a_layer_or_loss_constant_that_is_one_per_cent_smaller_is_violated(
    factor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if factor == "spectral norm":
        # a frozen identity after a trainable layer: the Jacobian is attained
        first, last = nn.Linear(2, 2), nn.Linear(2, 2, bias=False)
        last.requires_grad_(False)
        with torch.no_grad():
            first.weight.zero_()
            first.bias.zero_()
            last.weight.copy_(torch.diag(torch.tensor([3.0, 3.0])))
        case = Case(
            nn.Sequential(first, last).double(), torch.tensor([[1.0, 2.0]]).double(), torch.tensor([0]),
            nn.CrossEntropyLoss(), "linear",
        )  # fmt: skip
        attained = float(oracles.hessian_norms(case, case.start[None], 30))
        problem = problem_of(case)
        assert problem.worst_case().hessian_norm >= attained
        problem = problem_of(case)
        problem.network.layers[1].__dict__["spectral_norm"] = 0.99 * 3.0
        assert problem.worst_case().hessian_norm < attained
        return
    _, case, _ = attained_pairs()[0][1]()
    if factor == "third":
        # p = (1/2 +- 1/sqrt 12) attains sqrt 6 / 9
        with torch.no_grad():
            case.model[0].bias.copy_(torch.tensor([0.5 + 12**-0.5, 0.5 - 12**-0.5]).double().log())
    problem = problem_of(case)
    point = case.start[None]
    measure = {
        "gradient": oracles.gradient_norms,
        "hessian": lambda c, p: oracles.hessian_norms(c, p, 40),
        "third": lambda c, p: oracles.third_norms(c, p, 40),
        "margin": lambda c, p: oracles.hessian_norms(c, p, 40),
    }[factor]
    attained = float(measure(case, point))

    def bound(of: LayerBounds) -> float:
        names = {"gradient": of.gradient_norm, "third": of.hessian_lipschitz}
        return names.get(factor, of.hessian_norm)

    assert bound(problem.local()) >= attained
    if factor == "margin":
        assert bound(dataclasses.replace(problem.local(), margin=-0.01)) < attained
        return
    local = CrossEntropy.local

    def smaller(self: CrossEntropy, *arguments: torch.Tensor) -> object:
        found = local(self, *arguments)
        if factor == "gradient":
            return dataclasses.replace(found, gradient=0.99 * found.gradient, residual=0.99 * found.residual)
        return dataclasses.replace(found, **{factor: 0.99 * getattr(found, factor)})

    monkeypatch.setattr(CrossEntropy, "local", smaller)
    assert bound(problem_of(case).local()) < attained
