"""Rows with one radius each: against exact fractions of float64 numbers, by double-double arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tvgrad.bounds.program.balls import Ball, add, divide, matmul, multiply, negated, total
from tvgrad.bounds.program.rows import Rows

GENERATOR = torch.Generator().manual_seed(0)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=GENERATOR, dtype=torch.float64)


FACTOR, MATRICES, BELOW = drawn(1, 3, 4), drawn(1, 3, 4, 2), drawn(1, 3, 1).abs() + 0.1
CASES: dict[str, tuple[Callable[[Ball, Callable[[torch.Tensor], Ball]], Ball], tuple[int, ...]]] = {
    "sum": (lambda p, b: add(p, negated(multiply(p, b(FACTOR)))), (5, 3, 4)),
    "product": (lambda p, b: multiply(b(FACTOR), p), (5, 3, 4)),
    "copies": (lambda p, b: multiply(b(FACTOR), p), (5, 3, 1)),
    "quotient": (lambda p, b: divide(p, b(BELOW)), (5, 3, 4)),
    "total": (lambda p, b: total(p, [-1], keep=True), (5, 3, 4)),
    "right": (lambda p, b: matmul(p, b(MATRICES)), (5, 3, 2, 4)),
    "left": (lambda p, b: matmul(b(MATRICES), p), (5, 3, 2, 4)),
    "moved": (lambda p, b: p.map(lambda part: part.mT.expand(5, 3, 4, 2)), (5, 1, 2, 4)),
}


@pytest.mark.parametrize("name", CASES)
def test_rows_hold_the_exact_results(name: str) -> None:
    """Drawn rows with a radius, moved to its rim, and factors moved to theirs; the centre is what float64 computes."""
    function, shape = CASES[name]
    spread = 1e-7
    for _ in range(20):
        centre, direction = drawn(*shape), drawn(*shape)
        radius = 1e-6 * torch.ones(len(centre), dtype=torch.float64)
        lined = direction.flatten(1)
        rim = centre + (1e-6 * (1 - 1e-9) * lined / lined.norm(dim=1, keepdim=True)).reshape(shape)
        found = function(Rows(centre, None, radius), lambda part: Ball(part, None, torch.full_like(part, spread)))
        exact = function(
            Ball.exact(rim, precise=True),
            lambda part: Ball.exact(part + spread * torch.sign(drawn(*part.shape)), precise=True),
        )
        assert isinstance(found, Rows)
        apart = (found.hi - exact.hi).flatten(1).norm(dim=1)
        assert bool((apart <= found.err).all()), (apart / found.err).max()
        assert bool((found.hi.flatten(1).norm(dim=1) <= found.size).all())


def test_roundings_alone_are_held_and_are_small() -> None:
    for name, (function, shape) in CASES.items():
        centre = drawn(*shape)
        found = function(Rows.of(centre), lambda part: Ball.exact(part, precise=False))
        exact = function(Ball.exact(centre, precise=True), lambda part: Ball.exact(part, precise=True))
        apart = (found.hi - exact.hi).flatten(1).norm(dim=1)
        assert bool((apart <= found.err).all()), name
        assert bool((found.err <= 1e-13 * (1 + found.size)).all()), name


def test_rows_are_never_mixed() -> None:
    with pytest.raises(ValueError, match="keep their first axis"):
        Rows.of(drawn(2, 3)).reshape(3, 2)
    with pytest.raises(TypeError, match="only rows"):
        Rows.of(drawn(2, 3)).add(Ball.exact(drawn(2, 3), precise=False))
