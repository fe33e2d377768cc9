"""Hessian and Lipschitz bounds of networks with folded BatchNorm against 50 digits, statistics over ten decades."""

from __future__ import annotations

import mpmath
import pytest
import torch
from mpmath import mpf

from tests.bounds.rounding.fifty_digits import DIGITS, drawn, exact_gradient, of, size
from tvgrad.bounds import FeedForward
from tvgrad.bounds.derivatives.worst_case import LayerBounds
from tvgrad.bounds.rounding.parameter_sum import BoundedVector

NETWORKS, QUICK = 1000, 120
TURNS = 4  # products that turn a random direction towards the one in which the Hessian is largest


def directions(problem: FeedForward, seed: int) -> list[torch.Tensor]:
    """A random direction, that of the gradient, and that in which the Hessian is largest."""
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(problem.network.parameters, generator=generator, dtype=torch.float64)
    found = [random, problem.gradient.value]
    for _ in range(TURNS):
        random = random / random.norm()
        (product,) = problem.products([random])
        random = product.value
    return [one / one.norm() for one in (*found, random) if 0 < float(one.norm()) < float("inf")]


def apart(found: BoundedVector, exact: list[mpf]) -> mpf:
    return size([mpf(x) - y for x, y in zip(found.value.tolist(), exact, strict=True)])


def compare(seed: int) -> None:
    """Check every bound along the directions."""
    model, inputs, targets = drawn(seed)
    problem = FeedForward(model, inputs, targets, "mse_half")
    bounds = [problem.local(), problem.worst_case(), problem.closed_form()]
    for direction in directions(problem, seed):
        with mpmath.workdps(DIGITS):
            jets = [of(one) for one in exact_gradient(model, inputs, targets, direction.tolist())]
            once, twice = [b for _, b, _ in jets], [2 * c for _, _, c in jets]
            length = size([mpf(x) for x in direction.tolist()])
            (product,) = problem.products([direction])
            third = problem.twice_along(direction)
            assert apart(product, once) <= product.error, seed
            assert apart(third, twice) <= third.error, seed
            for bound in bounds:
                assert size(once) <= bound.hessian_norm * length, seed
                assert size(twice) <= bound.hessian_lipschitz * length**2, seed


def check(first: int, last: int) -> None:
    for seed in range(first, last):
        compare(seed)


@pytest.mark.parametrize("part", range(4))
def test_hessian_and_lipschitz_bounds_hold_in_fifty_digits(part: int) -> None:
    check(QUICK // 4 * part, QUICK // 4 * (part + 1))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_hessian_and_lipschitz_bounds_hold_in_all_networks(part: int) -> None:
    check(NETWORKS // 10 * part, NETWORKS // 10 * (part + 1))


@pytest.mark.parametrize("name", ["hessian_norm", "hessian_lipschitz"])
def test_a_bound_of_half_the_size_is_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = getattr(LayerBounds, name)
    monkeypatch.setattr(LayerBounds, name, property(lambda self: 0.5 * whole.fget(self)))
    with pytest.raises(AssertionError):
        check(0, QUICK // 4)
