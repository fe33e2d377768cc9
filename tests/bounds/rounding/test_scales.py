"""Rounding against 50 digits: folded BatchNorm with statistics over ten decades, and scales from 1e-300 to 1e300."""

from __future__ import annotations

import dataclasses

import mpmath
import pytest
import torch
from mpmath import mp, mpf
from torch import nn

from tvgrad.bounds import FeedForward
from tvgrad.bounds.certificates.coefficients import coefficients_of
from tvgrad.errors import TvgradError
from tvgrad.update_rules import Momentum

NETWORKS = 2000
DIGITS = 50


def norm(width: int, generator: torch.Generator, cancelling: bool) -> nn.BatchNorm1d:
    """A frozen BatchNorm with numbers over ten decades, whose shift may nearly cancel."""

    def numbers() -> torch.Tensor:
        size = 10 ** (10 * torch.rand(width, generator=generator, dtype=torch.float64) - 5)
        return size * torch.randn(width, generator=generator, dtype=torch.float64).sign()

    made = nn.BatchNorm1d(width).double().eval().requires_grad_(False)
    for tensor in (made.running_mean, made.weight, made.bias):
        tensor.data.copy_(numbers())
    made.running_var.copy_(numbers().abs())
    if cancelling:
        near = made.weight.data * made.running_mean / (made.running_var + made.eps).sqrt()
        made.bias.data.copy_(near * (1 + 1e-3 * torch.randn(width, generator=generator, dtype=torch.float64)))
    return made


def drawn(seed: int) -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, last = nn.Linear(2, 3), nn.Linear(3, 2)
    norms = [norm(3, generator, bool(seed >> bit & 1)) for bit in (1, 2)]
    activation = nn.Tanh() if seed % 2 else nn.Sigmoid()
    model = nn.Sequential(first, norms[0], activation, norms[1], last).double().eval()
    for parameter in (*first.parameters(), *last.parameters()):
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    inputs, targets = torch.randn(2, 2, 2, generator=generator, dtype=torch.float64)
    return model, inputs, targets


def exact_gradient(model: nn.Sequential, inputs: torch.Tensor, targets: torch.Tensor) -> list[mpf]:
    """That of the mean of half the squared distance, written out in numbers of 50 digits."""
    first, before, activation, after, last = model

    def rows(tensor: torch.Tensor) -> list[list[mpf]]:
        return [[mpf(x) for x in row] for row in tensor.tolist()]

    def folded(of: nn.BatchNorm1d) -> tuple[list[mpf], list[mpf]]:
        numbers = zip(
            of.running_var.tolist(), of.running_mean.tolist(), of.weight.tolist(), of.bias.tolist(), strict=True
        )
        pairs = [(mpf(w) / mp.sqrt(mpf(v) + mpf(of.eps)), mpf(m), mpf(b)) for v, m, w, b in numbers]
        return [g for g, _, _ in pairs], [b - g * m for g, m, b in pairs]

    def bend(z: mpf) -> tuple[mpf, mpf]:
        if isinstance(activation, nn.Tanh):
            return mp.tanh(z), mp.sech(z) ** 2
        small = mp.exp(-abs(z))
        return 1 / (1 + mp.exp(-z)), small / (1 + small) ** 2

    w1, w2 = rows(first.weight), rows(last.weight)
    b1, b2 = ([mpf(x) for x in layer.bias.tolist()] for layer in (first, last))
    (g1, t1), (g2, t2) = folded(before), folded(after)
    units, outputs, n = range(3), range(2), len(inputs)
    parts = [[mpf(0)] * 6, [mpf(0)] * 3, [mpf(0)] * 6, [mpf(0)] * 2]
    for x, y in zip(rows(inputs), rows(targets), strict=True):
        bent = [bend(g1[j] * (sum(w * v for w, v in zip(w1[j], x, strict=True)) + b1[j]) + t1[j]) for j in units]
        h = [g2[j] * bent[j][0] + t2[j] for j in units]
        r = [sum(w * v for w, v in zip(w2[o], h, strict=True)) + b2[o] - y[o] for o in outputs]
        p = [sum(w2[o][j] * r[o] for o in outputs) * g2[j] * bent[j][1] * g1[j] for j in units]
        for part, one in zip(parts, ([a * b for a in p for b in x], p, [a * b for a in r for b in h], r), strict=True):
            part[:] = [old + new / n for old, new in zip(part, one, strict=True)]
    return [number for part in parts for number in part]


def size(numbers: list[mpf]) -> mpf:
    return mp.sqrt(sum(number**2 for number in numbers))


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
