"""Certificates of mini-batch SGD against 50 digits, for networks and for programs."""

from __future__ import annotations

import math

import pytest
import torch
from mpmath import mp, mpf
from torch import nn

from tests.bounds.digits_50 import DIGITS, SAMPLES, batches_of, distance, drawn, gradient_of, start_of, true_errors
from tvgrad.bounds import FeedForward, NoCertificate, Program
from tvgrad.bounds.certificates.coefficients import coefficients_of
from tvgrad.bounds.certificates.tubes import Tube, certify_steps
from tvgrad.bounds.program.point import PointBounds
from tvgrad.bounds.program.tube import ProgramTube
from tvgrad.errors import TvgradError
from tvgrad.numerics.double_double import DoubleDouble
from tvgrad.update_rules.linear import LinearRule
from tvgrad.update_rules.rules import SGD, Momentum, Nesterov

EPOCHS = 2
RATES = (1e-6, 1e-3, 0.05, 0.3)
MANY = range(100, 130)


def rules(rate: float) -> list[LinearRule]:
    return [
        SGD(rate),
        Momentum(rate, 0.9, dampening=0.1, weight_decay=0.1),
        Nesterov(rate, 0.5),
        SGD(rate, weight_decay=0.2, decoupled=True),
    ]


def compared(seed: int, *, programs: bool = False) -> int:
    """Compare both bounds after every step, and the distance to the exact weights, with the truth; how often."""
    model, inputs, targets = drawn(seed)
    batches, found = batches_of(seed, EPOCHS), 0
    steps = [one for epoch in batches for one in epoch]
    program = Program(model, "cross_entropy", inputs, targets) if programs else None
    chain = FeedForward(model, inputs, targets)
    with mp.workdps(DIGITS):
        gradient, start = gradient_of(inputs, targets), start_of(model)
        for rule in rules(RATES[seed % len(RATES)]):
            errors, weights = true_errors(gradient, start, rule, [one.tolist() for one in steps])
            if program is not None:
                tube = program.tube(rule, EPOCHS, batches=batches)
                for step, true in enumerate(errors, start=1):
                    form = tube.form(step)
                    assert form.lower <= true <= form.upper <= 1.001 * form.lower + 1e-20, (seed, rule, step)
                    found += 2
                continue
            mine = Tube([chain], coefficients_of(rule, len(steps)), batches=steps).follow()
            for step, (true, theta) in enumerate(zip(errors, weights, strict=True), start=1):
                error, width = mine.error(step)
                centre, deviation = mine.reached(step)
                assert error.lower - width <= true <= error.upper + width, (seed, rule, step)
                assert distance(theta, [mpf(one) for one in centre.tolist()]) <= deviation, (seed, rule, step)
                found += 3
    return found


@pytest.mark.parametrize("programs", [False, True])
def test_the_error_of_mini_batches_lies_between_its_bounds(programs: bool) -> None:
    assert compared(3, programs=programs) == (32 if programs else 48)


@pytest.mark.slow
def test_no_error_of_a_hundred_trainings_leaves_its_bounds() -> None:
    assert sum(compared(seed, programs=seed % 5 == 0) for seed in MANY) >= 2000


def test_all_samples_in_one_batch_are_gradient_descent() -> None:
    model, inputs, targets = drawn(1)
    problem = FeedForward(model, inputs, targets)
    whole = problem.certificate(0.05, 3)
    one = problem.certificate(0.05, 3, batches=[[torch.arange(SAMPLES)]] * 3)
    assert one.error_bound == pytest.approx(whole.error_bound, rel=1e-6)
    assert one.method == whole.method == "tube"
    assert math.isinf(one.closed_form_bound)


def test_recorded_weights_of_epochs_are_certified() -> None:
    model, inputs, targets = drawn(2)
    problem, batches, rule = FeedForward(model, inputs, targets), batches_of(2, 3), Momentum(0.05, 0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    weights = [problem.network.flat.clone()]
    for epoch in batches:
        for batch in epoch:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[batch]), targets[batch]).backward()
            optimizer.step()
        weights.append(torch.cat([one.detach().flatten() for one in model.parameters()]))
    found, reason = certify_steps(problem, rule, weights, batches=batches)
    assert not reason
    start = drawn(2)[0]
    with mp.workdps(DIGITS):
        for number, one in enumerate(found, start=1):
            steps = [batch.tolist() for epoch in batches[:number] for batch in epoch]
            true = true_errors(gradient_of(inputs, targets), start_of(start), rule, steps)[0][-1]
            assert true <= one.error <= true * (1 + 1e-6)
            assert 0 < one.deviation < 1e-12
    moved = [weights[0], *(one + 1e-3 for one in weights[1:])]
    assert certify_steps(problem, rule, moved, batches=batches)[0][0].deviation >= 1e-3


class Parabola:
    """h/2 theta^2, another h for each batch; the gradient that is told is off by as much as is admitted."""

    def __init__(self, curvatures: list[float], error: float, share: float = 1.0, told: float = 1.0) -> None:
        self.flat = torch.ones(1, dtype=torch.float64)
        self._curvatures, self._error, self._share, self._told = curvatures, error, share, told

    def measure(self, theta: DoubleDouble, radius: float, *, positions: torch.Tensor | None = None) -> PointBounds:
        """Bound gradient and Hessian."""
        curvature = self._curvatures[0 if positions is None else int(positions[0])]
        value = DoubleDouble(curvature * theta.hi - self._error, torch.zeros(1, dtype=torch.float64))
        return PointBounds(0.0, value, self._told * self._error, self._share * abs(curvature), "")


@pytest.mark.parametrize(("share", "told"), [(1.0, 1.0), (0.99, 1.0), (1.0, 0.99)])
def test_the_width_of_a_tube_is_attained(share: float, told: float) -> None:
    """Errors of gradients that all point one way: bounds of Hessian or gradient 1 % smaller are violated."""
    curvatures, error, rate = [1.0, -30.0, -50.0], 1e-7, 0.1
    batches = [torch.tensor([number]) for number in (1, 2, 1, 2)]
    parabola = Parabola(curvatures, error, share, told)
    tube = ProgramTube(parabola, coefficients_of(rate, 4), exact=True, batches=batches).follow()
    # curvatures below zero: the exact weights run away from the centres as fast as they can
    exact, centre, widths = 1.0, 1.0, list[float]()
    for batch in batches:
        widths.append(abs(exact - centre))
        h = curvatures[int(batch[0])]
        exact, centre = exact - rate * h * exact, centre - rate * (h * centre - error)
    held = all(width <= bound * (1 + 1e-6) for width, bound in zip(widths, tube.deviations, strict=True))
    assert held == (share == told == 1.0)


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([[torch.arange(3)]], "of 1 epochs, and 2 are bounded"),
        ([[torch.arange(3)], []], "epoch 2 has no batches"),
        ([[torch.arange(3)], [torch.tensor([6])]], "from 0 to 5"),
        ([[torch.arange(3)], [torch.tensor([-1])]], "from 0 to 5"),
        ([[torch.arange(3)], [torch.tensor([0.5])]], "whole number"),
        ([[torch.arange(3)], [torch.zeros(0, dtype=torch.long)]], "at least one"),
    ],
)
def test_batches_that_do_not_fit_are_refused(batches: list[list[torch.Tensor]], words: str) -> None:
    model, inputs, targets = drawn(1)
    with pytest.raises(TvgradError, match=words):
        FeedForward(model, inputs, targets).certificate(0.1, 2, batches=batches)


def test_mini_batches_have_no_form_from_the_start_alone() -> None:
    model, inputs, targets = drawn(1)
    for problem in (FeedForward(model, inputs, targets), Program(model, "cross_entropy", inputs, targets)):
        with pytest.raises(NoCertificate, match="mini-batches have the tube alone"):
            problem.certificate(0.1, 2, simulate=False, batches=batches_of(1, 2))
