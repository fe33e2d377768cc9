"""The second derivative of attention over a ball: against exact second derivatives, on paths that climb."""

from __future__ import annotations

import pytest
import torch

from tvgrad.bounds.program import attention_bends
from tvgrad.bounds.program.attention import Attention
from tvgrad.bounds.program.balls import Ball
from tvgrad.bounds.program.operation import Enclosure

SHAPES = ((1, 3, 2), (1, 3, 2), (1, 3, 2))


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.softmax(0.6 * q @ k.mT, -1) @ v


def block(args: list[torch.Tensor], p: torch.Tensor, i: int, j: int) -> torch.Tensor:
    """<p, D^2 f> in the arguments i and j, an exact matrix."""

    def tested(first: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        moved = list(args)
        moved[i] = first
        if i != j:
            moved[j] = other
        return (p * attention(*moved)).sum()

    found = torch.func.jacfwd(torch.func.grad(tested), argnums=0 if i == j else 1)(args[i], args[j])
    return found.reshape(args[i].numel(), args[j].numel())


def bounds(args: list[torch.Tensor], p: torch.Tensor, radius: float) -> dict[tuple[int, int], float]:
    reach = torch.tensor([radius], dtype=torch.float64)
    given = [Enclosure.of(Ball.exact(one[None], precise=False), reach) for one in [*args, p]]
    out = Enclosure.of(Ball.exact(attention(*args)[None], precise=False), torch.zeros(1, dtype=torch.float64))
    found = Attention(0.6, None).second(given[:3], out, given[3])
    return {pair: float(weight) for pair, weight in found.items()}


def drawn(seed: int, size: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [size * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in [*SHAPES, SHAPES[0]]]


@pytest.mark.parametrize("radius", [0.0, 1e-4, 0.03])
def test_no_climb_in_a_ball_leaves_the_bounds(radius: float) -> None:
    """Arguments and p climb the norm of each block within their balls."""
    for seed in range(4):
        *args, p = drawn(seed, (0.5, 1.5)[seed % 2])
        limits = bounds(args, p, radius)
        for (i, j), limit in limits.items():
            points = [one.clone() for one in [*args, p]]
            for _ in range(1 if not radius else 4):
                tracked = [one.requires_grad_() for one in points]
                value = torch.linalg.matrix_norm(block(tracked[:3], tracked[3], i, j), 2)
                assert float(value) <= limit + 1e-12, (i, j)
                slopes = torch.autograd.grad(value, tracked, allow_unused=True, materialize_grads=True)
                points = [
                    (centre + radius * slope / (slope.norm() + 1e-300)).detach()
                    for centre, slope in zip([*args, p], slopes, strict=True)
                ]


def test_without_a_ball_the_bounds_are_the_norms() -> None:
    """A Gram matrix bounds the norm of a matrix of rank r by at most the fourth root of r times itself."""
    *args, p = drawn(1, 1.0)
    for (i, j), limit in bounds(args, p, 0.0).items():
        true = float(torch.linalg.matrix_norm(block(args, p, i, j), 2))
        assert true <= limit <= true * 6**0.25 * 1.01, (i, j)


def cumulant(weights: torch.Tensor, along: torch.Tensor) -> torch.Tensor:
    """The fourth derivative of logsumexp along a direction."""
    centred = along - (weights * along).sum(-1, keepdim=True)
    return (weights * centred**4).sum(-1) - 3 * (weights * centred**2).sum(-1) ** 2


def test_the_fourth_cumulant_reaches_its_constant_and_stays_below() -> None:
    """Two values with equal weights attain it; every row climbs from a start of its own."""
    two = torch.tensor([0.5, 0.5], dtype=torch.float64)
    attained = float(cumulant(two, torch.tensor([1.0, -1.0], dtype=torch.float64) / 2**0.5).abs())
    assert 0.99 * attention_bends.QUARTIC < attained <= attention_bends.QUARTIC * (1 + 1e-14)
    generator = torch.Generator().manual_seed(0)
    for size in (2, 3, 5):
        logits, along = (torch.randn(2000, size, generator=generator, dtype=torch.float64) for _ in range(2))
        for _ in range(30):
            logits.requires_grad_()
            along.requires_grad_()
            unit = along / along.norm(dim=1, keepdim=True)
            found = cumulant(torch.softmax(3 * logits, -1), unit).abs()
            assert float(found.max()) <= attention_bends.QUARTIC * (1 + 1e-14)
            slopes = torch.autograd.grad(found.sum(), [logits, along])
            logits, along = (
                (a + 0.3 * b / (b.norm(dim=1, keepdim=True) + 1e-300)).detach()
                for a, b in zip((logits, unit), slopes, strict=True)
            )
