"""Certificates of Adam against 50 digits; its constants are attained."""

from __future__ import annotations

import contextlib
import itertools

import pytest
import torch
from mpmath import mp, mpf
from torch import nn

from tests.bounds.digits_50 import (
    DIGITS,
    SAMPLES,
    batches_of,
    constant,
    distance,
    drawn,
    followed,
    gradient_of,
    start_of,
    true_errors,
)
from tvgrad.bounds import NoCertificate, Program
from tvgrad.bounds.certificates.first_order import first_order_norms
from tvgrad.bounds.program.adam_tube import AdamTube
from tvgrad.bounds.program.point import PointBounds
from tvgrad.numerics.double_double import DoubleDouble
from tvgrad.update_rules.rules import SGD, Adam, AdamW

MANY = range(100, 145)
RATES = (1e-5, 1e-3, 1e-2)


def rules(rate: float) -> list[Adam]:
    return [
        Adam(rate),
        AdamW(rate, betas=(0.8, 0.95), weight_decay=0.1),
        Adam(rate, betas=(0.0, 0.9), eps=1e-3),
        Adam(rate, weight_decay=0.1),
    ]


def compared(seed: int) -> int:
    """Compare both bounds after every step with the truth, with full batches and mini-batches; how often."""
    model, inputs, targets = drawn(seed)
    program, found = Program(model, "cross_entropy", inputs, targets), 0
    batches = batches_of(seed, 1)
    with mp.workdps(DIGITS):
        gradient, start = gradient_of(inputs, targets), start_of(model)
        for rule in rules(RATES[seed % len(RATES)]):
            for epochs, given in ((3, None), (1, batches)):
                tube = program.tube(rule, epochs, batches=given)
                used = [list(range(SAMPLES))] * epochs if given is None else [one.tolist() for one in given[0]]
                errors, _ = true_errors(gradient, start, rule, used)
                for step, true in enumerate(errors, start=1):
                    form = tube.form(step)
                    assert form.lower <= true <= form.upper <= 1.001 * form.lower + 1e-20, (seed, rule, step)
                    found += 2
    return found


def test_the_error_of_adam_lies_between_its_bounds() -> None:
    assert compared(3) == 40


@pytest.mark.slow
def test_no_error_of_hundreds_of_trainings_leaves_its_bounds() -> None:
    assert sum(compared(seed) for seed in MANY) >= 2000


def test_the_first_full_batch_step_is_the_prediction() -> None:
    model, inputs, targets = drawn(1)
    assert Program(model, "cross_entropy", inputs, targets).certificate(Adam(0.1), 1).error_bound < 1e-100


def test_rows_of_an_embedding_that_nobody_takes_stay() -> None:
    """Their gradients are zero, which nothing can be divided by, and they are in nobody's way."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 3), nn.Flatten(), nn.Tanh(), nn.Linear(6, 3)).double()
    program = Program(model, "cross_entropy", torch.randint(5, (4, 2)), torch.arange(4) % 3)
    certificate = program.certificate(Adam(1e-3), 2)
    assert 0 < certificate.lower_bound <= certificate.error_bound <= 1.001 * certificate.lower_bound


def test_what_stands_in_the_way_is_named() -> None:
    """Two outputs that are trained alike: each second-layer gradient is the other's negative, the head's sum stays."""
    torch.manual_seed(0)
    model, (inputs, targets) = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double(), drawn(1)[1:]
    inputs = torch.cat([inputs, 1e-14 * inputs[:, :1]], 1)
    program = Program(model, "cross_entropy", inputs, targets)
    with pytest.raises(NoCertificate, match=r"past squares.*in 0.weight \d+ of 32 coordinates have gradients too near"):
        program.certificate(Adam(0.5), 12)
    with pytest.raises(NoCertificate, match="past squares, and with amsgrad"):
        program.certificate(Adam(0.1, amsgrad=True), 2)
    with pytest.raises(NoCertificate, match="eps below"):
        program.certificate(Adam(0.1, eps=0.0), 2)


class Told:
    """Gradients as they are told, and errors of which the exact ones make full use."""

    def __init__(self, gradients: list[list[float]], error: float) -> None:
        self.flat = torch.zeros(len(gradients[0]), dtype=torch.float64)
        self._rest, self._error = iter(gradients), error

    def measure(self, theta: DoubleDouble, radius: float, *, positions: torch.Tensor | None = None) -> PointBounds:
        """Bound gradient and Hessian."""
        value = torch.tensor(next(self._rest), dtype=torch.float64)
        return PointBounds(0.0, DoubleDouble(value, torch.zeros_like(value)), self._error, 0.0, "")


def direction(rule: Adam, gradients: list[float]) -> float:
    state = None
    for step, gradient in enumerate(gradients):
        found, state = rule.direction(torch.tensor([gradient], dtype=torch.float64), state, step)
    return float(found)


def attained(gradients: list[float], shift: float, error: float, beta: float = 0.9) -> tuple[float, float]:
    """How far a direction moves with the gradients, over its bound and over that of the numerator's part alone."""
    rule = Adam(1e-3, eps=1e-12, betas=(beta, 0.999))
    told = Told([[one] for one in gradients], error)
    tube = AdamTube(told, rule, len(gradients), moving=torch.ones(1, dtype=torch.bool), parts=[("w", 1)])
    with contextlib.suppress(NoCertificate):  # wider than long: the directions up to there are what is wanted
        tube.follow()
    moved = abs(direction(rule, gradients) - direction(rule, [one + shift for one in gradients]))
    shares = [0.999**age for age in range(len(gradients) - 1, -1, -1)]
    root = (sum(u * g**2 for u, g in zip(shares, gradients, strict=True)) / sum(shares)) ** 0.5
    return moved / tube.directions[-1].error, moved * root / error


def test_the_constants_of_adam_are_attained() -> None:
    """Where m is zero the denominator alone counts; where the gradient is within its error, the jump."""
    assert 0.99 < attained([1.0, -0.9], 1e-4, 1e-4)[0] <= 1
    assert 0.99 < attained([1e-6], -2e-6, 2e-6)[0] <= 1
    # the denominator turns as well: without its part the bound would be exceeded
    both, alone = attained([-3.0, 1.0], 1e-4, 1e-4, beta=0.1)
    assert 0.8 < both <= 1 < 1.02 < alone


@pytest.mark.slow
def test_both_constants_of_adam_are_attained_together() -> None:
    """Old gradients make the denominator, the last one, of other sign, the numerator: both turn the direction alike.

    Each part is half of the bound, so that with either constant one per cent smaller it would be exceeded.
    """
    both, alone = attained([1.0] * 300 + [-1.0], 1e-4, 1e-4, beta=0.0)
    assert 0.995 < both <= 1
    assert 1.99 < alone <= 2


def test_the_length_of_the_prediction() -> None:
    model, inputs, targets = drawn(1)
    program = Program(model, "cross_entropy", inputs, targets)
    with mp.workdps(DIGITS):
        start = start_of(model)
        gradient, nowhere = gradient_of(inputs, targets)(start, range(SAMPLES)), [mp.zero] * len(start)
        for kind, decay in itertools.product((Adam, AdamW, SGD), (0.0, 2.0)):
            rule = kind(0.1, weight_decay=decay)
            size, least = first_order_norms(program.gradient, program.flat, rule, 4)
            own = [g + mpf(rule.coupled_decay) * t for g, t in zip(gradient, start, strict=True)]
            true = distance(followed(rule, nowhere, [[0]] * 4, constant(own))[-1], nowhere)
            assert least <= true
            assert size == pytest.approx(float(true), rel=1e-12)
            assert least == pytest.approx(float(true), rel=1e-6)
