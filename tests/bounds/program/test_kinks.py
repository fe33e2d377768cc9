"""What is said where an argument may be at a kink, and bounds that hold, and are attained, next to kinks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from tests.bounds.program.test_norms import climb, loss_of
from tests.bounds.program.test_pieces import exactly
from tvgrad.bounds import NoCertificate, Program
from tvgrad.bounds.program.frozen_norm import FrozenNorm
from tvgrad.bounds.program.pieces import Kink, Pieces
from tvgrad.update_rules.rules import Adam

AT_KINK = r"an argument of ReLU \(.*line \d+.*\) may be at a kink"


def kinked(*, frozen: bool = False) -> Program:
    """The last of four samples is 0, and the layer before the ReLU has no bias."""
    torch.manual_seed(0)
    inputs = torch.randn(4, 3).double()
    inputs[3] = 0
    first = nn.Linear(3, 5, bias=False).requires_grad_(not frozen)
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return Program(model, "cross_entropy", inputs, torch.arange(4) % 3)


def test_where_an_argument_is_at_a_kink_bounds_are_infinite() -> None:
    program = kinked()
    for radius in (0.0, 0.1):
        assert program.gradient_norm(radius) == program.hessian_norm(radius) == math.inf
    assert program.gradient.error == math.inf


def test_a_first_step_has_a_certificate_at_a_kink_too() -> None:
    """It is the prediction itself, whatever the gradient."""
    assert kinked().certificate(0.1, 1).error_bound < 1e-15
    with pytest.raises(NoCertificate, match=AT_KINK):
        kinked().certificate(0.1, 2)


def test_a_frozen_function_at_a_kink_is_not_to_blame() -> None:
    program = kinked(frozen=True)
    assert math.isfinite(program.hessian_norm())
    for simulate in (True, False):
        with pytest.raises(NoCertificate, match=r"grows most in") as told:
            program.certificate(1e3, 20, simulate=simulate)
        assert "kink" not in str(told.value)


@pytest.mark.parametrize("rule", [0.1, Adam(lr=1e-3)])
def test_the_function_at_its_kink_is_named_for_every_rule(rule: Any) -> None:
    with pytest.raises(NoCertificate, match=AT_KINK):
        kinked().certificate(rule, 2)


def test_a_kink_at_a_sample_that_is_in_no_batch_is_named() -> None:
    """The prediction uses the gradient of all samples."""
    with pytest.raises(NoCertificate, match=AT_KINK):
        kinked().certificate(0.1, 1, batches=[[torch.tensor([0, 1]), torch.tensor([2, 0])]])


@pytest.mark.parametrize("slope", [0.0, 0.25, -3.0, 40.0])
def test_the_slope_of_a_line_is_attained(slope: float) -> None:
    operation = Pieces("LeakyReLU", ((slope, 0), (1, 0)), (Kink(0),))
    x = exactly(torch.tensor([-1.0, 1.0]).double())
    (bound,) = operation.first([x], x)
    largest = max(abs(slope), 1.0)
    assert 0.99 * float(bound) < largest <= float(bound)


@pytest.mark.parametrize("seed", range(4))
def test_what_the_rounding_of_a_frozen_norm_changes_is_attained(seed: int) -> None:
    """The derivative by x is `p r w`: r off by d in the worst channel moves it by `|w| ||p|| d` there."""
    torch.manual_seed(seed)
    x, p, w = torch.randn(1, 3, 2, 2).double(), torch.randn(1, 3, 2, 2).double(), torch.randn(3).double()
    given = [exactly(one) for one in (x, torch.randn(3).double(), torch.rand(3).double(), w, torch.zeros(3).double())]
    bound = float(FrozenNorm(2).second(given, exactly(x), exactly(p))[0, 2])
    true = float((w.abs() * p[0].flatten(1).norm(dim=1)).max())
    assert 0.99 * bound < true <= bound


class Clamped(nn.Module):
    """Layers with kinks of several kinds between them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.norm, self.slope = nn.LayerNorm(4), (-1.5, 0.2, 3.0)[seed % 3]
        self.first, self.second, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.leaky_relu(self.first(x), self.slope)
        x = x + self.second(self.norm(x)).clamp(-0.5, 0.75)
        return self.head(x)  # type: ignore[no-any-return]


def climbed(seed: int) -> int:
    """Balls up to where no bound is found any more; returns how many have one."""
    model = Clamped(seed).double()
    inputs, targets = torch.randn(4, 3).double(), torch.arange(4) % 3
    program = Program(model, "cross_entropy", inputs, targets)
    loss, flat = loss_of(model, inputs, targets)
    gradient = torch.func.grad(loss)
    vector = torch.randn(flat.shape, dtype=torch.float64)
    for _ in range(10):
        vector = torch.func.jvp(gradient, (flat,), (vector / vector.norm(),))[1]
    vector = vector / vector.norm()
    bounded = 0
    low, high = 0.0, 1.0
    for _ in range(12):  # the largest ball with a bound: there the nearest kink is next to its surface
        radius = (low + high) / 2
        low, high = (radius, high) if math.isfinite(program.hessian_norm(radius)) else (low, radius)
    for radius in (low, low / 2, low / 30):
        if not math.isfinite(limit := program.hessian_norm(radius)):
            continue
        bounded += 1
        assert float(climb(lambda theta: gradient(theta).norm(), flat, radius, seed)) <= program.gradient_norm(radius)
        bent = climb(lambda theta: torch.func.jvp(gradient, (theta,), (vector,))[1].norm(), flat, radius, seed + 1)
        assert float(bent) <= limit
    return bounded


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 12))])
def test_no_ascent_leaves_the_bounds_next_to_kinks(seed: int) -> None:
    """60 paths of 14 steps, for gradient and Hessian, at three radii: 60,480 comparisons of 12 networks."""
    assert climbed(seed) == 3
