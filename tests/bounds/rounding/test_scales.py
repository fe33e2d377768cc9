"""Rounding against 50 digits: folded BatchNorm with statistics over ten decades, and scales from 1e-300 to 1e300."""

from __future__ import annotations

import dataclasses

import mpmath
import pytest
import torch
from mpmath import mpf
from torch import nn

from tests.bounds.rounding.fifty_digits import DIGITS, drawn, exact_gradient, size
from tvgrad.bounds import FeedForward
from tvgrad.bounds.certificates.coefficients import coefficients_of
from tvgrad.errors import TvgradError
from tvgrad.update_rules import Momentum

NETWORKS = 2000


def assert_within(seed: int) -> None:
    with mpmath.workdps(DIGITS):
        model, inputs, targets = drawn(seed)
        problem = FeedForward(model, inputs, targets, "mse_half")
        exact = exact_gradient(model, inputs, targets)
        found = problem.gradient
        apart = size([mpf(x) - y for x, y in zip(found.value.tolist(), exact, strict=True)])
        assert apart <= found.error, seed
        assert found.lower <= size(exact) <= found.upper, seed
        for bounds in (problem.local(), problem.worst_case()):
            assert size(exact) <= bounds.gradient_norm, seed


@pytest.mark.parametrize("part", range(2))
def test_folded_norms_round_within_their_bounds(part: int) -> None:
    for seed in range(20 * part, 20 * part + 20):
        assert_within(seed)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_folded_norms_round_within_their_bounds_in_all_networks(part: int) -> None:
    for seed in range(NETWORKS // 10 * part, NETWORKS // 10 * (part + 1)):
        assert_within(seed)


def rounding_apart(problem: FeedForward, seed: int) -> tuple[mpf, float]:
    """How far the computed gradient is from that of 50 digits, and how far it says that it is at most."""
    with mpmath.workdps(DIGITS):
        exact = exact_gradient(*drawn(seed))
        found = problem.gradient
        return size([mpf(x) - y for x, y in zip(found.value.tolist(), exact, strict=True)]), found.error


@pytest.mark.parametrize("seed", [77, 150, 332, 382])
def test_the_terms_of_a_shift_are_needed(seed: int) -> None:
    """In these of the first 400 networks the true error is larger than a bound that forgets what cancels."""
    model, inputs, targets = drawn(seed)
    problem = FeedForward(model, inputs, targets, "mse_half")
    apart, error = rounding_apart(problem, seed)
    assert apart <= error
    layer = problem.network.layers[0]
    assert layer.activation.added > 0
    bare = dataclasses.replace(layer, activation=dataclasses.replace(layer.activation, added=0.0))
    forgetful = FeedForward(model, inputs, targets, "mse_half")
    forgetful.network = dataclasses.replace(problem.network, layers=(bare, *problem.network.layers[1:]))
    apart, error = rounding_apart(forgetful, seed)
    assert apart > error


LINE = torch.linspace(-1, 1, 3, dtype=torch.float64)[:, None]
EXPONENTS = [-300, -200, -160, -155, -120, -79, -60, -10, 0, 10, 60, 100, 155, 200, 300]


@pytest.mark.parametrize("rate", EXPONENTS)
@pytest.mark.parametrize("data", EXPONENTS)
def test_scales_of_data_and_rates_have_a_true_bound_or_none(data: int, rate: int) -> None:
    """One weight w without a bias, squared error: the error is known in closed form."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False)).double()
    nn.init.constant_(model[0].weight, 0.5)
    inputs, targets = LINE[[0, 2]] * 10.0**data, LINE[[0, 2]] * 10.0**data
    try:
        certificate = FeedForward(model, inputs, targets, "mse_half").certificate(10.0**rate, 3)
    except TvgradError:
        return
    with mpmath.workdps(1000):
        square = sum(mpf(x) ** 2 for x in inputs[:, 0].tolist()) / 2
        slope = (mpf(0.5) - 1) * square
        moved = mpf(0)
        for _ in range(3):
            moved -= mpf(10.0**rate) * (slope + square * moved)
        error = abs(moved + 3 * mpf(10.0**rate) * slope)
        assert certificate.lower_bound <= error <= certificate.error_bound
        assert error <= certificate.from_start


@pytest.mark.parametrize("lost", [1e-300, 1e-16, 1e-12, 0.3, 1 - 1e-9, 1 - 2.0**-52])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_coefficients_with_decay_are_exact(lost: float, momentum: float) -> None:
    rate, steps = 0.125, 4
    rule = Momentum(rate, momentum, weight_decay=lost / rate, decoupled=True)
    found = coefficients_of(rule, steps)
    with mpmath.workdps(400):
        kept = 1 - mpf(rate) * mpf(lost / rate)
        for step in range(steps + 1):
            shares = [mpf(found.shrunk[step]), *(mpf(x) for x in found.matrix[step, :step])]
            mixed = [
                sum(kept ** (step - 1 - s) * mpf(rate) * mpf(momentum) ** (s - e) for s in range(e, step))
                for e in range(step)
            ]
            for share, exact in zip(shares, [1 - kept**step, *mixed], strict=True):
                assert abs(share - exact) <= found.rounding * exact


def test_rates_that_underflow_have_no_certificate() -> None:
    model = nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 2)).double()
    problem = FeedForward(model, LINE, torch.arange(3) % 2)
    with pytest.raises(TvgradError, match="underflows"):
        problem.certificate(1e-79, 3)
