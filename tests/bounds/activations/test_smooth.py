"""Constants of activations: proved on a grid, attained, and refused where there are none.

The oracle computes derivatives by Taylor series (recurrences for exp and tanh), and shares no formula with the library.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import mpmath
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tvgrad.bounds.activations import registry as activations
from tvgrad.bounds.activations.registry import activation_of, register_activation
from tvgrad.bounds.activations.smooth import Activation, UnboundedActivation

SMOOTH = [
    "tanh", "sigmoid", "softplus", "logsigmoid", "tanhshrink", "gelu", "gelu_tanh", "silu", "sin", "identity",
]  # fmt: skip
MODULES: list[tuple[str, nn.Module]] = [
    ("tanh", nn.Tanh()),
    ("sigmoid", nn.Sigmoid()),
    ("softplus", nn.Softplus(threshold=40)),
    ("softplus with beta 3", nn.Softplus(beta=3, threshold=40)),
    ("softplus with beta 0.3", nn.Softplus(beta=0.3, threshold=40)),
    ("logsigmoid", nn.LogSigmoid()),
    ("tanhshrink", nn.Tanhshrink()),
    ("gelu", nn.GELU()),
    ("gelu_tanh", nn.GELU(approximate="tanh")),
    ("silu", nn.SiLU()),
    ("identity", nn.Identity()),
]
REACH, STEP = 12.0, 5e-5
ORDER = 8

Series = np.ndarray  # (ORDER + 1, points): Taylor coefficients


def product(a: Series, b: Series) -> Series:
    return np.stack([sum(a[i] * b[k - i] for i in range(k + 1)) for k in range(len(a))])


def integral(derivative: Series, start: np.ndarray) -> Series:
    """The series with a given derivative and start."""
    order = np.arange(1, len(derivative))[:, None]
    return np.concatenate([start[None], derivative[:-1] / order])


def variable(x: np.ndarray) -> Series:
    series = np.zeros((ORDER + 1, len(x)))
    series[0], series[1] = x, 1
    return series


def tanh_series(u: Series) -> Series:
    """t' = (1 - t^2) u', coefficient by coefficient; the first factor starts as sech^2, free of cancellation."""
    count = len(u)
    t, w = np.zeros_like(u), np.zeros_like(u)
    t[0], w[0] = np.tanh(u[0]), np.cosh(np.clip(u[0], -350, 350)) ** -2.0
    for k in range(1, count):
        t[k] = sum((j * u[j]) * w[k - j] for j in range(1, k + 1)) / k
        w[k] = -sum(t[i] * t[k - i] for i in range(k + 1))
    return t


def density_series(x: np.ndarray) -> Series:
    """phi' = -x phi."""
    p = np.zeros((ORDER + 1, len(x)))
    p[0] = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    for k in range(1, ORDER + 1):
        p[k] = -(x * p[k - 1] + (p[k - 2] if k > 1 else 0)) / k
    return p


def series_of(name: str, x: np.ndarray) -> Series:
    v = variable(x)
    one = np.zeros_like(v)
    one[0] = 1
    sigmoid = (one + tanh_series(v / 2)) / 2
    if name == "sin":
        return np.stack([np.sin(x + k * math.pi / 2) / math.factorial(k) for k in range(ORDER + 1)])
    if name == "gelu":
        start = np.array([math.erfc(-y / math.sqrt(2)) / 2 for y in x])
        return product(v, integral(density_series(x), start))
    table: dict[str, Callable[[], Series]] = {
        "identity": lambda: v,
        "tanh": lambda: tanh_series(v),
        "tanhshrink": lambda: v - tanh_series(v),
        "sigmoid": lambda: sigmoid,
        "softplus": lambda: integral(sigmoid, np.logaddexp(x, 0)),
        "logsigmoid": lambda: integral(one - sigmoid, -np.logaddexp(-x, 0)),
        "silu": lambda: product(v, sigmoid),
        "gelu_tanh": lambda: product(
            v / 2, one + tanh_series(math.sqrt(2 / math.pi) * (v + 0.044715 * product(v, product(v, v))))
        ),
    }
    return table[name]()


def derivatives(name: str, x: np.ndarray) -> np.ndarray:
    """s, s', ..., s^(8) at the points, (9, points)."""
    return series_of(name, x) * np.array([math.factorial(k) for k in range(ORDER + 1)])[:, None]


def crude(name: str, n: int) -> float:
    """A bound on |s^(n)| over the whole line for 2 <= n <= 8, from complex analysis or termwise absolute values.

    tanh: |tanh z| <= tan 1 where |Im z| <= 1, so Cauchy's estimate is n! tan 1; sigmoid(x) = (1 + tanh(x/2)) / 2.
    x sigma^(n): on the circle of radius 2 round x, |sigma or 1 - sigma| <= e^(2 - |x|) / sin 2, and |x| e^-|x| <= 1/e.
    GELU: s^(n) = n Phi^(n-1) + x Phi^(n), and Cramer's |He_k phi| <= 1.09 sqrt(k!) phi(0) e^(-x^2/4), x e^(-x^2/4) < 1.
    """
    if name in {"identity", "sin"}:
        return 1.0
    sigmoid = [math.factorial(k) * math.tan(1) / 2 ** (k + 1) for k in range(n + 1)]
    if name == "sigmoid":
        return sigmoid[n]
    if name in {"softplus", "logsigmoid"}:
        return sigmoid[n - 1]
    if name == "silu":
        return n * sigmoid[n - 1] + math.factorial(n) / 2**n * math.exp(2) / math.sin(2) / math.e
    if name == "gelu":
        return 0.4 * 1.09 * (n * math.sqrt(math.factorial(n - 2)) + math.sqrt(math.factorial(n - 1)))
    if name == "gelu_tanh":
        return gelu_tanh_crude(n)
    return math.factorial(n) * math.tan(1)


def gelu_tanh_crude(n: int) -> float:
    """Bound |s^(n)| termwise.

    |d^k tanh| = (1 - t^2) |P_k(t)| <= sech^2 u times the sum of P_k's coefficients in absolute value. So Faa di Bruno's
    formula with absolute values bounds the k-th derivative of tanh(u(x)) for |x| in [a, b] by sech^2(u(a)) times a
    polynomial at b. Past 6 the factor falls faster than any of these powers rises.
    """
    slope, cubic = math.sqrt(2 / math.pi), 0.044715
    growth, polynomial = [], np.polynomial.Polynomial([1.0])
    for _ in range(n):
        growth.append(np.abs(polynomial.coef).sum())
        polynomial = (polynomial * np.polynomial.Polynomial([1.0, 0.0, -1.0])).deriv()
    largest = 0.0
    for a in np.arange(0, 8, 1 / 64):
        b = a + 1 / 64
        inner = np.zeros(n + 1)
        inner[1:4] = slope * (1 + 3 * cubic * b * b), slope * 3 * cubic * b, slope * cubic
        decay = math.cosh(slope * (a + cubic * a**3)) ** -2.0
        power, bounds = np.eye(n + 1)[0], np.zeros(n + 1)
        for k in range(1, n + 1):
            power = np.convolve(power, inner)[: n + 1]
            bounds += decay * growth[k - 1] / math.factorial(k) * power
        largest = max(largest, math.factorial(n) * (bounds[n - 1] + b * bounds[n]) / 2)
    return largest


def proved_maximum(values: np.ndarray, step: float, n: int, beyond: float) -> float:
    """Bound |s^(n)| between grid points by Taylor from the nearer one, |s^(n+2)| being at most `beyond`."""
    return float((values[n] + step / 2 * values[n + 1]).max() + step**2 / 8 * beyond)


def constants(activation: Activation) -> list[float]:
    return [activation.b1, activation.b2, activation.b3, activation.b4]


@pytest.mark.parametrize("name", SMOOTH)
def test_constants_hold_between_grid_points_and_are_attained(name: str) -> None:
    """Every constant is proved: crude bound of s^(8), then a grid for s^(5) and s^(6), then a fine grid for the rest.

    Where a constant is an exact maximum (1/8, 1/4, 1/2, 1, 2: proved in the docstrings) the grid cannot; it gets 1e-7.
    """
    activation = activation_of(name)
    coarse = np.abs(derivatives(name, np.arange(-REACH, REACH + 1e-9, 1e-3)))
    sixth = proved_maximum(coarse, 1e-3, 6, crude(name, 8))
    fifth = proved_maximum(coarse, 1e-3, 5, crude(name, 7))
    above = [0.0, activation.b1, activation.b2, activation.b3, activation.b4, fifth, sixth]
    points = round(REACH / STEP)
    grid = np.arange(-points, points + 1) * STEP
    values = np.abs(derivatives(name, grid))
    # from the top down, so that each constant rests on what is proved already
    for k in (4, 3, 2, 1):
        bound = above[k]
        exact = round(bound, 12) in {0.0, 0.125, 0.25, 0.5, 1.0, 2.0}
        assert proved_maximum(values, STEP, k, above[k + 2]) <= bound * (1 + exact * 1e-7) + exact * 1e-13
        highest = values[k].max()
        assert highest <= bound * (1 + 1e-13)
        assert bound == 0 or highest > 0.99998 * bound
        # the tail: polynomials times falling exponentials, past their last maximum; only s' may tend to 1
        if name not in {"sin", "identity"}:
            assert values[k][np.abs(grid) > 11].max() <= (1 + 2e-4 if k == 1 else 2e-4)
    if math.isfinite(activation.supremum):
        assert 0.9999 * activation.supremum <= values[0].max() <= activation.supremum
    assert values[0][points] <= activation.at_zero <= values[0][points] * (1 + 2e-6)


@pytest.mark.parametrize("name", [n for n in SMOOTH if n not in {"identity", "sin"}])
def test_constants_are_their_maxima_rounded_up(name: str) -> None:
    """Maxima at 30 digits: the constant is above, by less than a unit of its last digit (the sixth)."""
    activation = activation_of(name)
    functions: dict[str, Callable[[mpmath.mpf], mpmath.mpf]] = {
        "tanh": mpmath.tanh,
        "tanhshrink": lambda x: x - mpmath.tanh(x),
        "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
        "softplus": lambda x: mpmath.log(1 + mpmath.exp(x)),
        "logsigmoid": lambda x: -mpmath.log(1 + mpmath.exp(-x)),
        "silu": lambda x: x / (1 + mpmath.exp(-x)),
        "gelu": lambda x: x * mpmath.ncdf(x),
        "gelu_tanh": lambda x: (
            x / 2 * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf("0.044715") * x**3)))
        ),
    }
    grid = np.linspace(-6, 6, 2401)
    values = np.abs(derivatives(name, grid))
    with mpmath.workdps(30):
        for k, bound in enumerate(constants(activation), start=1):
            at = mpmath.mpf(float(grid[values[k].argmax()]))
            if abs(at) < 5.9:  # otherwise the supremum is the limit 1
                # Newton on the next derivative, whose own derivative is known too
                for _ in range(6):
                    series = mpmath.taylor(functions[name], at, k + 2)
                    at -= series[k + 1] / ((k + 2) * series[k + 2])
                highest = abs(mpmath.taylor(functions[name], at, k)[k] * mpmath.factorial(k))
            else:
                highest = mpmath.mpf(1)
            assert highest <= bound * (1 + mpmath.mpf("1e-15"))
            assert bound - highest < 1e-6


@pytest.mark.parametrize(("name", "module"), MODULES)
def test_functions_are_those_of_the_module(name: str, module: nn.Module) -> None:
    activation = activation_of(module)
    assert activation.name == name
    x = torch.linspace(-12, 12, 4001, dtype=torch.float64).requires_grad_()
    expected = module(x)
    torch.testing.assert_close(activation.value(x.detach()), expected.detach(), rtol=1e-12, atol=1e-13)
    for function in (activation.d1, activation.d2, activation.d3):
        if expected.grad_fn is None and not expected.requires_grad:
            expected = torch.zeros_like(x)
        else:
            (expected,) = torch.autograd.grad(expected.sum(), x, create_graph=True, materialize_grads=True)
        torch.testing.assert_close(function(x.detach()), expected.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", SMOOTH)
def test_functions_match_the_series_and_stay_finite_far_out(name: str) -> None:
    activation = activation_of(name)
    grid = np.linspace(-30, 30, 1201)
    expected = derivatives(name, grid)
    far = torch.tensor([-1e200, -1e5, -800.0, 800.0, 1e5, 1e200], dtype=torch.float64)
    for k, function in enumerate((activation.value, activation.d1, activation.d2, activation.d3)):
        np.testing.assert_allclose(function(torch.from_numpy(grid)).numpy(), expected[k], rtol=1e-9, atol=2e-13)
        if name != "sin":
            assert bool(torch.isfinite(function(far)).all())


def mutations() -> Iterator[tuple[str, str]]:
    for name in [*SMOOTH, "elu", "softsign"]:
        activation = activation_of(name, order=2)
        for field in ("b1", "b2", "b3", "b4", "supremum", "at_zero"):
            if 0 < getattr(activation, field) < math.inf:
                yield name, field


@pytest.mark.parametrize(("name", "field"), list(mutations()))
def test_registration_refuses_constants_one_per_cent_too_small(
    name: str, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "_registered", {})
    activation = activation_of(name, order=2)
    register_activation("mine", dataclasses.replace(activation, name="mine"))
    assert activation_of("mine", order=2).name == "mine"
    wrong = dataclasses.replace(activation, name="mine", **{field: 0.99 * getattr(activation, field)})
    with pytest.raises(UnboundedActivation, match=r"mine: .*x = .*more than|mine: .* would have to be"):
        register_activation("mine", wrong)


def test_registration_by_type_and_of_kinks_and_wrong_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "_registered", {})

    class Sine(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sin(x)

    with pytest.raises(UnboundedActivation, match="register_activation"):
        activation_of(Sine())
    sine = activation_of("sin")
    register_activation(Sine, sine)
    assert activation_of(Sine()) is sine
    step = Activation(
        "step", 1.0, 1.0, 1.0, 1.0, math.inf, 0.0,
        torch.relu, lambda x: (x > 0).double(), torch.zeros_like, torch.zeros_like,
    )  # fmt: skip
    with pytest.raises(UnboundedActivation, match="kink"):
        register_activation("step", step)
    with pytest.raises(UnboundedActivation, match="correct"):
        register_activation("off", dataclasses.replace(sine, d2=torch.sin))
    with pytest.raises(UnboundedActivation, match="at least zero"):
        dataclasses.replace(sine, b2=math.nan)


KINKED: list[str | nn.Module] = [
    "relu", nn.ReLU(), nn.LeakyReLU(), nn.ReLU6(), nn.Hardtanh(), nn.Hardswish(), nn.Hardsigmoid(), nn.PReLU(),
    nn.Softshrink(), nn.Hardshrink(), nn.RReLU(), nn.SELU(), nn.Threshold(0.0, 0.0), "leaky_relu",
]  # fmt: skip


@pytest.mark.parametrize("activation", KINKED, ids=str)
def test_kinks_are_refused_with_the_reason_and_the_alternatives(activation: str | nn.Module) -> None:
    with pytest.raises(UnboundedActivation, match=r"no bounded second derivative.*softplus.*gelu.*estimates"):
        activation_of(activation)


def test_softplus_threshold_is_a_jump() -> None:
    with pytest.raises(UnboundedActivation, match=r"jump of 2\.1e-09 at x = 20 .*threshold=40"):
        activation_of(nn.Softplus())
    # what the message promises: the same float32 values, and the smooth function in float64
    x = torch.linspace(-30, 60, 9001)
    assert torch.equal(F.softplus(x), F.softplus(x, threshold=40))
    wide = torch.linspace(36, 45, 9001, dtype=torch.float64)
    torch.testing.assert_close(F.softplus(wide, threshold=40), torch.logaddexp(wide, 0 * wide), rtol=3e-16, atol=0)
    with pytest.raises(UnboundedActivation, match="positive, finite beta"):
        activation_of(nn.Softplus(beta=-1.0, threshold=40))


def test_softplus_constants_scale_with_beta() -> None:
    base = activation_of("softplus")
    for beta in (0.25, 3.0, 40.0):
        scaled = activation_of(nn.Softplus(beta=beta, threshold=40))
        assert scaled.b1 == 1
        for power, (ours, unit) in enumerate(zip(constants(scaled)[1:], constants(base)[1:], strict=True), start=1):
            assert 1 - 4e-16 <= ours / (beta**power * unit) <= 1 + 1e-14
        x = torch.linspace(-30, 30, 60_001, dtype=torch.float64) / beta
        for function, bound in ((scaled.d1, scaled.b1), (scaled.d2, scaled.b2), (scaled.d3, scaled.b3)):
            assert 0.999 * bound <= float(function(x).abs().max()) <= bound


def test_elu_is_smooth_enough_for_two_derivatives_only() -> None:
    for module in (nn.ELU(), nn.CELU(0.5), nn.Softsign(), "elu"):
        with pytest.raises(UnboundedActivation, match=r"jumps.*order=2"):
            activation_of(module)
        activation = activation_of(module, order=2)
        assert math.isinf(activation.b3)
        register_activation("copy", dataclasses.replace(activation))
        if isinstance(module, nn.Module):
            x = torch.linspace(-9, 9, 1001, dtype=torch.float64)
            torch.testing.assert_close(activation.value(x), module(x))
    with pytest.raises(UnboundedActivation, match="slope jumps from 2 to 1"):
        activation_of(nn.ELU(2.0), order=2)


def test_unknown_activations_are_named() -> None:
    with pytest.raises(UnboundedActivation, match=r"Mish.*register_activation"):
        activation_of(nn.Mish())
    with pytest.raises(UnboundedActivation, match="name or a module, not int"):
        activation_of(3)  # type: ignore[arg-type]
