"""Certificates of programs: from both sides of what gradient descent does."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from tests.bounds.program.programs import LanguageModel, Transformer
from tvgrad.bounds import FeedForward, NoCertificate, Program
from tvgrad.bounds.program import progress
from tvgrad.update_rules import GD, Adam, Momentum


def true_error(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, lr: float, epochs: int) -> float:
    """||tau + lr k g_0|| in float64, on increments that are kept apart from the weights."""
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    names, start = list(trained), [one.detach().clone() for one in trained.values()]
    moved, first = [torch.zeros_like(one) for one in start], list[torch.Tensor]()
    for _ in range(epochs):
        weights = [(a + b).requires_grad_() for a, b in zip(start, moved, strict=True)]
        out = torch.func.functional_call(model, dict(zip(names, weights, strict=True)), (inputs,))
        gradient = torch.autograd.grad(nn.functional.cross_entropy(out, targets), weights)
        first = first or [one.detach() for one in gradient]
        moved = [a - lr * g for a, g in zip(moved, gradient, strict=True)]
    return float(torch.cat([(a + epochs * lr * g).flatten() for a, g in zip(moved, first, strict=True)]).norm())


def test_a_chains_certificate_is_the_one_of_the_chain() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    inputs, targets = torch.randn(20, 4, dtype=torch.float64), torch.arange(20) % 3
    program, chain = Program(model, "cross_entropy", inputs, targets), FeedForward(model, inputs, targets)
    for rule in (0.1, GD(0.1), Momentum(0.05, 0.9, weight_decay=0.01)):
        mine, other = program.certificate(rule, 4), chain.certificate(rule, 4)
        assert mine.lower_bound <= other.error_bound
        assert other.lower_bound <= mine.error_bound
        assert mine.error_bound / mine.lower_bound <= other.error_bound / other.lower_bound
    # the bound without rounding: no looser than what knows that it is a chain by more than its own size
    assert program.hessian_norm() <= 1.5 * chain.hessian_norm()


@pytest.mark.parametrize("kind", ["vision", "language"])
def test_a_transformers_error_lies_between_the_bounds(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "vision":
        model: nn.Module = Transformer(4, 2, 1).double()
        inputs, targets = torch.randn(6, 3, 4, dtype=torch.float64), torch.arange(6) % 3
    else:
        model = LanguageModel(6, 4, 4, 2).double()
        tokens = torch.randint(6, (4, 5))
        inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    certificate = Program(model, "cross_entropy", inputs, targets).certificate(0.01, 5)
    true = true_error(model, inputs, targets, 0.01, 5)
    assert certificate.error_bound <= 1.1 * certificate.lower_bound
    # the increments of float64 carry roundings of 1e-16 of a gradient step
    assert certificate.lower_bound * (1 - 1e-9) - 1e-16 <= true <= certificate.error_bound * (1 + 1e-9) + 1e-16
    assert certificate.method == "tube"
    assert certificate.radius > 0


def test_what_has_no_certificate_says_which_operation_ran_away() -> None:
    torch.manual_seed(0)
    model = Transformer(4, 2, 2).double()
    program = Program(model, "cross_entropy", torch.randn(4, 3, 4, dtype=torch.float64), torch.arange(4) % 3)
    with pytest.raises(NoCertificate, match=r"wider than the path.*grows most in \w+ \(.*line \d+"):
        program.certificate(1e6, 5)
    with pytest.raises(NoCertificate, match=r"from theta_0 alone .*grows most in \w+ \(.*line \d+"):
        program.certificate(1.0, 5, simulate=False)
    with pytest.raises(NoCertificate, match="past squares"):
        program.certificate(Adam(0.01, amsgrad=True), 5)


@pytest.mark.parametrize("rule", [GD(1e-5), Momentum(1e-5, 0.9, weight_decay=0.01)])
def test_theta_0_alone_gives_an_upper_bound_at_small_rates(rule: GD | Momentum) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)).double()
    inputs, targets = torch.randn(8, 4, dtype=torch.float64), torch.arange(8) % 3
    program = Program(model, "cross_entropy", inputs, targets)
    alone, followed = program.certificate(rule, 4, simulate=False), program.certificate(rule, 4)
    assert followed.error_bound <= alone.error_bound == alone.from_start <= 200 * followed.error_bound
    assert alone.lower_bound == 0 < alone.radius
    # the ball holds the iterates that the tube follows
    assert followed.radius <= alone.radius * 2


def test_long_work_is_told_before_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)).double()
    inputs, targets = torch.randn(8, 4, dtype=torch.float64), torch.arange(8) % 3
    program = Program(model, "cross_entropy", inputs, targets, chunk_size=3)
    seen: list[tuple[int, int]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        program.certificate(0.01, 2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 16), (6, 16), (8, 16), (11, 16), (14, 16), (16, 16)]
    monkeypatch.setattr(progress, "LONG", 0.0)
    with pytest.warns(
        UserWarning, match=r"takes about .* minutes, .* s for each of 8 samples at each of 2 points"
    ) as told:
        program.certificate(0.01, 2)
    assert len(told) == 1
