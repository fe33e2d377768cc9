"""Smooth activations with bounds on their first four derivatives, each derived and rounded up in its last digit.

The bounds hold on the whole real line, for the function in exact arithmetic. `value` and `d1` to `d3` compute the
activation and its derivatives in float64; they are accurate to a few units of roundoff of the largest value, which the
calculators cover with margins of their own.

The constants stand in the docstring of the function that builds the activation, with what makes them maxima. Where a
maximum is known through an equation only, its value is certified by the tests: on a grid of spacing h,
`|s^(k)| <= max over the grid of (|s^(k)| + h/2 |s^(k+1)|) + h^2/8 sup |s^(k+2)|`, and a monotone tail beyond the grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from tvgrad.errors import TvgradError

Elementwise = Callable[[torch.Tensor], torch.Tensor]

SMOOTH = "tanh, softplus (the larger its beta, the closer to ReLU), gelu or silu"
WIDER = "pass threshold=40, which is smooth to the last bit of float64 and rounds to the same values in float32"
# 4 / (3 sqrt 3) = 0.76980035..., 1 / (6 sqrt 3) = 0.09622504..., log 2 = 0.69314718...
_TANH_SECOND, _SIGMOID_SECOND, _LOG_2 = 0.769801, 0.096226, 0.693148
_TANH_FOURTH, _SIGMOID_FOURTH = 4.085886, 0.127684
# log1p(exp(-37)) and 1 - sigmoid(37) lie below half a float64 spacing of 37 and of 1: beyond, nothing is cut off.
_EXACT_THRESHOLD = 37.0


class UnboundedActivation(TvgradError):
    """The activation has no bounded derivatives of the orders that the theorems need, or none are known."""


class OutsideValidity(UnboundedActivation):
    """A pre-activation may reach where the activation of the model is another function than the bounded one."""


@dataclass(frozen=True)
class Activation:
    """An elementwise activation s with bounds on its derivatives over the whole real line.

    A module may compute s up to a number alone, as `nn.Softplus` does with its threshold. What is bounded is s, which
    goes on smoothly; where a pre-activation may reach that number there are no bounds.

    Attributes:
        name: as messages print it.
        b1: upper bound on |s'|.
        b2: upper bound on |s''|; for a piecewise smooth s a Lipschitz constant of s'.
        b3: upper bound on |s'''|, or infinity.
        b4: upper bound on |s''''|, or infinity.
        supremum: upper bound on |s|, or infinity.
        at_zero: upper bound on |s(0)|.
        value: s on float64 tensors.
        d1: s' on float64 tensors.
        d2: s'' on float64 tensors.
        d3: s''' on float64 tensors.
        added: a bound of the numbers that a folded BatchNorm adds to s, which its value may cancel; 0 for others.
        below: what the model computes is s for arguments below this number; infinity where it is s everywhere.

    Example:
        >>> from tvgrad.bounds import activation_of
        >>> tanh = activation_of("tanh")
        >>> tanh.b1, tanh.b2, tanh.b3
        (1.0, 0.769801, 2.0)
    """

    name: str
    b1: float
    b2: float
    b3: float
    b4: float
    supremum: float
    at_zero: float
    value: Elementwise
    d1: Elementwise
    d2: Elementwise
    d3: Elementwise
    added: float = 0.0
    below: float = math.inf

    def __post_init__(self) -> None:
        for field in ("b1", "b2", "b3", "b4", "supremum", "at_zero", "added"):
            number = getattr(self, field)
            if not number >= 0:
                raise UnboundedActivation(f"{self.name}: {field} is {number}; give a bound that is at least zero.")
        if math.isnan(self.below):
            raise UnboundedActivation(f"{self.name}: below is NaN; give the number up to which the model computes it.")


def _up(number: float) -> float:
    """The next float above, for a product or quotient rounded once."""
    return math.nextafter(number, math.inf) if number else 0.0


def _sech2(x: torch.Tensor) -> torch.Tensor:
    """1 - tanh^2 without cancellation: 4 e^(-2|x|) / (1 + e^(-2|x|))^2."""
    small = torch.exp(-2 * x.abs())
    return 4 * small / (1 + small) ** 2


def _sigmoid_d1(x: torch.Tensor) -> torch.Tensor:
    return _sech2(x / 2) / 4


def _sigmoid_d2(x: torch.Tensor) -> torch.Tensor:
    return -_sigmoid_d1(x) * torch.tanh(x / 2)


def _sigmoid_d3(x: torch.Tensor) -> torch.Tensor:
    # sigma''' = sigma' (1 - 6 sigma'), for sigma' = sigma (1 - sigma)
    slope = _sigmoid_d1(x)
    return slope * (1 - 6 * slope)


def _tanh() -> Activation:
    """Tanh: with t = tanh x, derivatives are polynomials in t on (-1, 1).

    s' = 1 - t^2 <= 1. s'' = -2t (1 - t^2), largest at t^2 = 1/3: 4/(3 sqrt 3) = 0.7698004. s''' = (1 - t^2)(6t^2 - 2):
    a parabola in t^2 with the values -2 at 0, 2/3 at its vertex t^2 = 2/3 and 0 at 1: 2.
    s'''' = 8t (1 - t^2)(2 - 3t^2), stationary where 15t^4 - 15t^2 + 2 = 0; the root t^2 = (15 - sqrt 105)/30 gives
    4.0858856, the other 2.04.

    Returns:
        The activation.
    """
    return Activation(
        "tanh", 1.0, _TANH_SECOND, 2.0, _TANH_FOURTH, 1.0, 0.0,
        torch.tanh, _sech2, lambda x: -2 * torch.tanh(x) * _sech2(x),
        lambda x: _sech2(x) * (4 - 6 * _sech2(x)),
    )  # fmt: skip


def _sigmoid() -> Activation:
    """Sigmoid is (1 + tanh(x/2)) / 2, so its n-th derivative is tanh's at x/2, over 2^(n+1).

    1/4, 1/(6 sqrt 3) = 0.09622505, 1/8, 4.0858856/32 = 0.1276840; values in (0, 1), 1/2 at zero.

    Returns:
        The activation.
    """
    return Activation(
        "sigmoid", 0.25, _SIGMOID_SECOND, 0.125, _SIGMOID_FOURTH, 1.0, 0.5,
        torch.sigmoid, _sigmoid_d1, _sigmoid_d2, _sigmoid_d3,
    )  # fmt: skip


def _softplus(beta: float = 1.0) -> Activation:
    """Softplus log(1 + e^(beta x)) / beta has sigmoid(beta x) as derivative.

    So b1 = 1, b2 = beta/4, b3 = beta^2/(6 sqrt 3), b4 = beta^3/8, and log(2)/beta at zero.

    Returns:
        The activation.
    """
    name = "softplus" if beta == 1 else f"softplus with beta {beta:g}"
    return Activation(
        name,
        1.0,
        beta / 4,
        _up(_up(beta * beta) * _SIGMOID_SECOND),
        _up(_up(beta * beta) * beta) / 8,
        math.inf,
        _up(_LOG_2 / beta),
        # logaddexp has no threshold, unlike torch's softplus
        lambda x: torch.logaddexp(beta * x, torch.zeros_like(x)) / beta,
        lambda x: torch.sigmoid(beta * x),
        lambda x: beta * _sigmoid_d1(beta * x),
        lambda x: beta**2 * _sigmoid_d2(beta * x),
    )


def _softplus_of(module: nn.Module) -> Activation:
    """Softplus of a module, up to where its threshold cuts something off."""
    beta, threshold = float(getattr(module, "beta", 1.0)), float(getattr(module, "threshold", 20.0))
    if not 0 < beta < math.inf:
        raise UnboundedActivation(f"Softplus needs a positive, finite beta, not {beta}.")
    soft = _softplus(beta)
    if threshold >= _EXACT_THRESHOLD:
        return soft
    if math.isnan(threshold):
        raise UnboundedActivation("Softplus has the threshold NaN: give a number.")
    return replace(soft, below=math.nextafter(threshold / beta, -math.inf))


def _logsigmoid() -> Activation:
    """Log-sigmoid is -softplus(-x): the same constants, the sign of odd derivatives kept and of even ones turned."""
    soft = _softplus()
    return replace(
        soft,
        name="logsigmoid",
        value=lambda x: -soft.value(-x),
        d1=lambda x: soft.d1(-x),
        d2=lambda x: -soft.d2(-x),
        d3=lambda x: soft.d3(-x),
    )


def _tanhshrink() -> Activation:
    """Tanhshrink x - tanh x: s' = tanh^2 <= 1; higher derivatives are those of tanh with the sign turned."""
    base = _tanh()
    return replace(
        base,
        name="tanhshrink",
        supremum=math.inf,
        value=lambda x: x - torch.tanh(x),
        d1=lambda x: torch.tanh(x) ** 2,
        d2=lambda x: -base.d2(x),
        d3=lambda x: -base.d3(x),
    )


def _normal_density(x: torch.Tensor) -> torch.Tensor:
    return torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _clamped(reach: float, derivative: Elementwise) -> Elementwise:
    """Clamp to where the decaying factor of a derivative is not yet zero, so that zero times infinity cannot arise."""
    return lambda x: derivative(x.clamp(-reach, reach))


def _gelu() -> Activation:
    """GELU x Phi(x), with phi the normal density: each derivative is phi times a polynomial, from the second on.

    s' = Phi + x phi is stationary where s'' = phi (2 - x^2) = 0: 1.1289042 at sqrt 2, -0.129 at -sqrt 2, limits 0
    and 1. s'' is stationary where s''' = phi x (x^2 - 4) = 0: 2 phi(0) = 0.7978846 at 0, -0.108 at 2. s''' is
    stationary where s'''' = phi (-x^4 + 7x^2 - 4) = 0, x^2 = (7 -+ sqrt 33)/2: 0.7787697 at the smaller root, 0.12
    at the larger. s'''' is stationary where x (x^2 - 2)(x^2 - 9) = 0: 4 phi(0) = 1.5957691 at 0, 0.88, 0.10.

    Returns:
        The activation.
    """
    return Activation(
        "gelu", 1.128905, 0.797885, 0.778770, 1.595770, math.inf, 0.0,
        lambda x: x * torch.erfc(-x / math.sqrt(2)) / 2,
        _clamped(40, lambda x: torch.erfc(-x / math.sqrt(2)) / 2 + x * _normal_density(x)),
        _clamped(40, lambda x: _normal_density(x) * (2 - x * x)),
        _clamped(40, lambda x: _normal_density(x) * x * (x * x - 4)),
    )  # fmt: skip


def _gelu_tanh() -> Activation:
    """GELU's tanh form x (1 + t) / 2, t = tanh(u), u = sqrt(2/pi) (x + 0.044715 x^3).

    s' = (1 + t + x t')/2 and s^(n) = (n t^(n-1) + x t^(n))/2. |s''| is largest at 0: t'(0) = sqrt(2/pi) = 0.7978846.
    The other maxima are roots of transcendental equations: 1.1289931 at x = 1.4185, 0.7766915 at x = 0.7876, and
    |s''''(0)| = 2 |t'''(0)| = 2 |u''' - 2 u'^3| = 1.6036675.

    Returns:
        The activation.
    """
    slope, cubic = math.sqrt(2 / math.pi), 0.044715

    def parts(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """T and its first three derivatives."""
        u, u1, u2, u3 = slope * (x + cubic * x**3), slope * (1 + 3 * cubic * x * x), slope * 6 * cubic * x, 6 * cubic
        u3 *= slope
        t, t1 = torch.tanh(u), _sech2(u)
        t2, t3 = -2 * t * t1, t1 * (4 - 6 * t1)
        return t, t1 * u1, t2 * u1**2 + t1 * u2, t3 * u1**3 + 3 * t2 * u1 * u2 + t1 * u3

    def d1(x: torch.Tensor) -> torch.Tensor:
        t, t1, _, _ = parts(x)
        return (1 + t + x * t1) / 2

    def d2(x: torch.Tensor) -> torch.Tensor:
        _, t1, t2, _ = parts(x)
        return t1 + x * t2 / 2

    def d3(x: torch.Tensor) -> torch.Tensor:
        _, _, t2, t3 = parts(x)
        return (3 * t2 + x * t3) / 2

    return Activation(
        "gelu_tanh", 1.128994, 0.797885, 0.776692, 1.603668, math.inf, 0.0,
        lambda x: x * (1 + torch.tanh(slope * (x + cubic * x**3))) / 2,
        _clamped(40, d1), _clamped(40, d2), _clamped(40, d3),
    )  # fmt: skip


def _silu() -> Activation:
    """SiLU x sigma(x): s^(n) = n sigma^(n-1) + x sigma^(n).

    s'' = sigma' (2 - x tanh(x/2)) is largest at 0: 1/2; its zero x tanh(x/2) = 2, x = 2.39936, is the maximum of s':
    1.0998394. |s'''| is largest at x = 1.03196: 0.3081816; |s''''| at 0: 4 |sigma'''(0)| = 1/2.

    Returns:
        The activation.
    """
    return Activation(
        "silu", 1.099840, 0.5, 0.308182, 0.5, math.inf, 0.0,
        lambda x: x * torch.sigmoid(x),
        _clamped(800, lambda x: torch.sigmoid(x) + x * _sigmoid_d1(x)),
        _clamped(800, lambda x: 2 * _sigmoid_d1(x) + x * _sigmoid_d2(x)),
        _clamped(800, lambda x: 3 * _sigmoid_d2(x) + x * _sigmoid_d3(x)),
    )  # fmt: skip


def _sin() -> Activation:
    """Sine and all its derivatives lie in [-1, 1]."""
    return Activation(
        "sin", 1.0, 1.0, 1.0, 1.0, 1.0, 0.0,
        torch.sin, torch.cos, lambda x: -torch.sin(x), lambda x: -torch.cos(x),
    )  # fmt: skip


def _identity() -> Activation:
    """The identity: s' = 1, and nothing beyond."""
    return Activation(
        "identity", 1.0, 0.0, 0.0, 0.0, math.inf, 0.0,
        lambda x: x, torch.ones_like, torch.zeros_like, torch.zeros_like,
    )  # fmt: skip


def _celu(alpha: float = 1.0, name: str = "elu") -> Activation:
    """CELU: x above zero, alpha (e^(x/alpha) - 1) below; ELU is the case alpha = 1.

    s' = e^(x/alpha) <= 1 below and 1 above meet at zero; s'' = e^(x/alpha)/alpha below and 0 above do not, so s' is
    Lipschitz with 1/alpha and there is no third derivative at zero.

    Returns:
        The activation.

    Raises:
        UnboundedActivation: alpha is not a positive number.
    """
    if not 0 < alpha < math.inf:
        raise UnboundedActivation(f"{name} needs a positive, finite alpha, not {alpha}.")

    def below(scale: float) -> Elementwise:
        return lambda x: torch.where(x < 0, scale * torch.exp(x.clamp(max=0) / alpha), 0.0)

    return Activation(
        name, 1.0, _up(1 / alpha), math.inf, math.inf, math.inf, 0.0,
        lambda x: torch.where(x < 0, alpha * torch.expm1(x.clamp(max=0) / alpha), x),
        lambda x: torch.exp(x.clamp(max=0) / alpha), below(1 / alpha), below(1 / alpha**2),
    )  # fmt: skip


def _elu_of(module: nn.Module) -> Activation:
    """ELU of a module: only alpha = 1 has a continuous slope."""
    alpha = float(getattr(module, "alpha", 1.0))
    if alpha != 1:
        raise UnboundedActivation(
            f"ELU with alpha {alpha:g} has no bounded second derivative (its slope jumps from {alpha:g} to 1 at zero); "
            f"use alpha 1 for gradient and Hessian bounds, nn.CELU, or {SMOOTH}."
        )
    return _celu()


def _softsign() -> Activation:
    """Softsign x / (1 + |x|): s' = (1 + |x|)^-2 <= 1, |s''| = 2 (1 + |x|)^-3 <= 2 with a jump at zero."""
    return Activation(
        "softsign", 1.0, 2.0, math.inf, math.inf, 1.0, 0.0,
        lambda x: x / (1 + x.abs()), lambda x: (1 + x.abs()) ** -2.0,
        lambda x: -2 * x.sign() * (1 + x.abs()) ** -3.0, lambda x: 6 * (1 + x.abs()) ** -4.0,
    )  # fmt: skip


def _gelu_of(module: nn.Module) -> Activation:
    return _gelu_tanh() if getattr(module, "approximate", "none") == "tanh" else _gelu()


NAMED: dict[str, Callable[[], Activation]] = {
    "tanh": _tanh, "sigmoid": _sigmoid, "softplus": _softplus, "logsigmoid": _logsigmoid, "tanhshrink": _tanhshrink,
    "gelu": _gelu, "gelu_tanh": _gelu_tanh, "silu": _silu, "sin": _sin, "identity": _identity, "elu": _celu,
    "softsign": _softsign,
}  # fmt: skip
OF_MODULE: dict[type[nn.Module], Callable[[nn.Module], Activation]] = {
    nn.Tanh: lambda _: _tanh(),
    nn.Sigmoid: lambda _: _sigmoid(),
    nn.Softplus: _softplus_of,
    nn.LogSigmoid: lambda _: _logsigmoid(),
    nn.Tanhshrink: lambda _: _tanhshrink(),
    nn.GELU: _gelu_of,
    nn.SiLU: lambda _: _silu(),
    nn.Identity: lambda _: _identity(),
    nn.ELU: _elu_of,
    nn.CELU: lambda module: _celu(float(getattr(module, "alpha", 1.0)), "celu"),
    nn.Softsign: lambda _: _softsign(),
}
