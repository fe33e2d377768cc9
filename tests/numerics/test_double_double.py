"""Double-double arithmetic against mpmath with 90 digits."""

from __future__ import annotations

from collections.abc import Callable

import mpmath as mp
import pytest
import torch

from tvgrad.numerics import double_double as wide
from tvgrad.numerics import double_functions as functions
from tvgrad.numerics.double_double import ROUNDING, DoubleDouble, two_sum
from tvgrad.numerics.double_functions import FUNCTION_ROUNDING


@pytest.fixture(autouse=True)
def digits() -> object:
    with mp.workprec(300):
        yield


def drawn(count: int, scale: float, seed: int) -> DoubleDouble:
    generator = torch.Generator().manual_seed(seed)
    high, low = torch.randn(2, count, generator=generator, dtype=torch.float64)
    return two_sum(scale * high, scale * high * low * 2.0**-54)


def exact(x: DoubleDouble) -> list[mp.mpf]:
    return [mp.mpf(float(hi)) + mp.mpf(float(lo)) for hi, lo in zip(x.hi.flatten(), x.lo.flatten(), strict=True)]


def positive(x: DoubleDouble) -> DoubleDouble:
    return DoubleDouble(x.hi.abs(), x.lo * x.hi.sign())


@pytest.mark.parametrize("scale", [1.0, 1e-100, 1e100])
@pytest.mark.parametrize(
    ("mine", "true"),
    [
        (wide.add, lambda a, b: a + b),
        (wide.multiply, lambda a, b: a * b),
        (wide.divide, lambda a, b: a / b),
        (lambda x, _: wide.square_root(positive(x)), lambda a, _: mp.sqrt(abs(a))),
    ],
)
def test_operations_round_as_little_as_they_say(
    mine: Callable[..., DoubleDouble], true: Callable[..., mp.mpf], scale: float
) -> None:
    x, y = drawn(2000, scale, 0), drawn(2000, scale, 1)
    errors = [abs(a / b - 1) for a, b in zip(exact(mine(x, y)), map(true, exact(x), exact(y)), strict=True) if b]
    assert max(errors) <= ROUNDING
    assert max(errors) > ROUNDING / 64  # a bound, not an abyss


@pytest.mark.parametrize("scale", [1e-3, 1.0, 20.0, 200.0])
def test_functions_round_as_little_as_they_say(scale: float) -> None:
    x = drawn(300, scale, 2)
    for mine, true in zip(exact(functions.exponential(x)), map(mp.exp, exact(x)), strict=True):
        assert abs(mine - true) <= FUNCTION_ROUNDING * true + 2.0**-900
    for mine, true in zip(exact(functions.normal_cdf(x)), map(mp.ncdf, exact(x)), strict=True):
        assert abs(mine - true) <= FUNCTION_ROUNDING
    for mine, argument in zip(exact(functions.logarithm(positive(x))), exact(positive(x)), strict=True):
        assert abs(mine - mp.log(argument)) <= FUNCTION_ROUNDING * (1 + abs(mp.log(argument)))
    for mine, argument in zip(exact(functions.normal_density(x)), exact(x), strict=True):
        assert (
            abs(mine - mp.npdf(argument)) <= 4 * FUNCTION_ROUNDING * (1 + argument**2) * mp.npdf(argument) + 2.0**-900
        )


@pytest.mark.parametrize("inner", [1, 7, 300])
def test_matrix_products_lie_within_their_bounds(inner: int) -> None:
    x, y = drawn(6 * inner, 1.0, 3), drawn(inner * 5, 1e-20, 4)
    a = DoubleDouble(*(part.reshape(6, inner) for part in x))
    b = DoubleDouble(*(part.reshape(inner, 5) for part in y))
    product, bounds = wide.matrix_product(a, b)
    left, right = exact(a), exact(b)
    found, allowed = exact(product), bounds.expand(6, 5).flatten().tolist()
    for row in range(6):
        for column in range(5):
            true = sum(left[row * inner + k] * right[k * 5 + column] for k in range(inner))
            assert abs(found[row * 5 + column] - true) <= allowed[row * 5 + column] <= 1e-26 * inner * 1e-20


def test_sums_in_a_tree_lose_no_summand() -> None:
    for count in (1, 2, 3, 17):
        x = drawn(count, 1.0, count)
        found, levels = wide.total(DoubleDouble(x.hi, x.lo))
        true = sum(exact(x))
        assert abs(exact(DoubleDouble(found.hi[None], found.lo[None]))[0] - true) <= (levels + 1) * ROUNDING * count * 4


def test_powers_of_two_are_exact() -> None:
    assert wide.power_of_two(torch.tensor([-1000, 0, 1000])).tolist() == [2.0**-1000, 1.0, 2.0**1000]
