"""What export does not see of a model is found by comparing: right or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tvgrad.bounds import Program, UnsupportedProgram

Forward = Callable[[Any, torch.Tensor], torch.Tensor]
INPUTS, LABELS = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).double(), torch.arange(20) % 3


class Odd(nn.Module):
    """Two layers, the second of zeros, which hides the gradient of the first."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.first, self.second, self.own = nn.Linear(4, 4), nn.Linear(4, 3), forward
        self.calls = 0
        nn.init.zeros_(self.second.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.own(self, x))


class Reversed(torch.autograd.Function):
    """A gradient that is not the derivative."""

    @staticmethod
    def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, slope: torch.Tensor) -> torch.Tensor:
        return -3 * slope


def hooked(self: Odd, x: torch.Tensor) -> torch.Tensor:
    h = torch.tanh(self.first(x))
    h.register_hook(lambda slope: 5 * slope)
    return h


def counting(self: Odd, x: torch.Tensor) -> torch.Tensor:
    self.calls += 1
    return torch.tanh(self.first(x)) * (2.0 if self.calls > 100 else 1.0)


def crowded(self: Odd, x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(self.first(x)) + (1.0 if len(x) > 16 else 0.0)


ODD: dict[str, tuple[Forward, str, bool]] = {
    "hook": (hooked, "a hook or a function of its own", True),
    "reversed": (lambda s, x: Reversed.apply(torch.tanh(s.first(x))), "a hook or a function of its own", True),
    "counting": (counting, "changes its attribute .*calls", True),
    "many samples": (crowded, "looks at the number of samples", False),
}


@pytest.mark.parametrize("name", ODD)
def test_what_a_zero_layer_or_a_few_samples_hide_is_found(name: str) -> None:
    forward, told, zero = ODD[name]
    torch.manual_seed(0)
    model = Odd(forward).double()
    if not zero:
        nn.init.normal_(model.second.weight)
    with pytest.raises(UnsupportedProgram, match=told):
        Program(model, "cross_entropy", INPUTS, LABELS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_looks_at_its_format_is_refused_in_another(dtype: torch.dtype) -> None:
    def rooted(self: Odd, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + torch.finfo(x.dtype).eps)

    torch.manual_seed(0)
    model = Odd(rooted).to(dtype)
    with pytest.raises(UnsupportedProgram, match=r"in (float32|bfloat16) the model computes .*add.* in float64"):
        Program(model, "cross_entropy", INPUTS.to(dtype), LABELS)
    # in float64 there is no other format, and what does not look has bounds in all
    assert Program(model.double(), "cross_entropy", INPUTS, LABELS).gradient_norm() > 0
    assert Program(Odd(lambda s, x: torch.tanh(s.first(x))).to(dtype), "cross_entropy", INPUTS.to(dtype), LABELS).names


def test_a_loss_that_is_trained_itself_is_refused() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return self.weight * nn.functional.cross_entropy(output, targets)

    with pytest.raises(UnsupportedProgram, match=r"the loss trains loss\.weight"):
        Program(nn.Linear(4, 3).double(), Weighted(), INPUTS, LABELS)


def test_a_loss_that_is_not_finite_is_refused_as_such() -> None:
    torch.manual_seed(0)
    model = Odd(lambda s, x: torch.rsqrt(s.first(x))).double()
    with pytest.raises(UnsupportedProgram, match=r"is nan .* bounds need finite numbers"):
        Program(model, "cross_entropy", INPUTS, LABELS)


def test_a_program_of_too_many_pairs_is_refused_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvgrad.bounds.program.program.MOST_PAIRS", 5)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    with pytest.raises(
        UnsupportedProgram, match=r"4 operations and 4 trainable tensors, .* of these 16 pairs; at most 5"
    ):
        Program(model, "cross_entropy", torch.eye(2, dtype=torch.float64), torch.tensor([0, 1]))
