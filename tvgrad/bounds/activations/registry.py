"""Find the activation of a name or a module, or say why it has no bounds; let users register their own."""

from __future__ import annotations

import math

import torch
from torch import nn

from tvgrad.bounds.activations.smooth import (
    NAMED,
    OF_MODULE,
    SMOOTH,
    WIDER,
    Activation,
    OutsideValidity,
    UnboundedActivation,
)
from tvgrad.numerics.floats import FEW_OPERATIONS_MARGIN

_SLOPE_JUMPS = "its slope jumps at a kink"
_KINKED = {
    **dict.fromkeys(
        ("relu", "leakyrelu", "leaky_relu", "relu6", "prelu", "rrelu", "hardtanh", "hardswish", "hardsigmoid"),
        _SLOPE_JUMPS,
    ),
    **dict.fromkeys(("softshrink", "selu"), _SLOPE_JUMPS),
    **dict.fromkeys(("hardshrink", "threshold"), "it jumps itself"),
}
_registered: dict[str | type[nn.Module], Activation] = {}


def activation_of(activation: str | nn.Module, order: int = 3, *, partly: bool = False) -> Activation:
    """The activation of a name or a module, with its constants.

    Args:
        activation: "tanh", "sigmoid", "softplus", "logsigmoid", "tanhshrink", "gelu", "gelu_tanh", "silu", "sin",
            "identity", "elu", a registered name, or a module (`nn.Tanh()`, `nn.Softplus(beta=2, threshold=40)`, ...).
        order: the highest derivative that has to be bounded. 2 (gradient and Hessian) also admits functions whose
            first derivative is Lipschitz but has kinks: ELU with alpha 1, CELU and Softsign, with b3 = b4 = infinity.
        partly: also admit modules that compute a smooth function below a number alone (`Activation.below`):
            `nn.Softplus` with its default threshold. Whoever asks has to keep the arguments below.

    Returns:
        The activation.

    Raises:
        UnboundedActivation: there are no such bounds, or none are known here; says why and what to use.
        OutsideValidity: the module is another function from some number on, and `partly` is not set.

    Examples:
        >>> from torch import nn
        >>> from tvgrad.bounds import activation_of
        >>> tanh = activation_of(nn.Tanh())
        >>> tanh.b1, tanh.b2, tanh.b3
        (1.0, 0.769801, 2.0)
    """
    if not isinstance(activation, (str, nn.Module)):
        raise UnboundedActivation(f"An activation is a name or a module, not {type(activation).__name__}.")
    if isinstance(activation, str):
        label, key = activation, activation.lower().replace("-", "_")
        found = _registered.get(key) or (NAMED[key]() if key in NAMED else None)
    else:
        label = repr(activation)
        key = type(activation).__name__.lower()
        builder = OF_MODULE.get(type(activation))
        found = _registered.get(type(activation)) or (builder(activation) if builder else None)
    if found is None:
        if key in _KINKED:
            raise UnboundedActivation(
                f"{label} has no bounded second derivative ({_KINKED[key]}), so the gradient of the loss is not "
                f"Lipschitz and no such bound exists; use {SMOOTH}, tvgrad.bounds.Program, which has certificates as "
                "long as no argument reaches a kink, or the estimates, which need no bound."
            )
        raise UnboundedActivation(
            f"{label} is not an activation with known derivative bounds; use {', '.join(sorted(NAMED))}, or give "
            "its constants with tvgrad.bounds.register_activation."
        )
    if not partly and found.below < math.inf:
        raise OutsideValidity(_cut_off(label, found, isinstance(activation, nn.Softplus)))
    if order >= 3 and not math.isfinite(found.b3 + found.b4):
        raise UnboundedActivation(
            f"{label} has a second derivative with jumps, so no third derivative is bounded: the gradient and Hessian "
            f"bounds exist (order=2), the Hessian-Lipschitz ones do not; use {SMOOTH} for those."
        )
    return found


def _cut_off(label: str, found: Activation, softplus: bool) -> str:
    """Why a module that computes a smooth function below a number alone has no bounds on the whole line."""
    if not softplus:
        return f"{label} is another function from x = {found.below:g} on: nothing is bounded there."
    jump = float(found.value(torch.tensor(found.below, dtype=torch.float64))) - found.below
    return (
        f"{label} is replaced by x beyond its threshold, with a jump of {jump:.1e} at x = {found.below:g} where it has "
        f"no derivative; {WIDER}."
    )


def is_registered(kind: type[nn.Module]) -> bool:
    """Whether a class of modules was registered as an activation.

    Args:
        kind: the class.

    Returns:
        Whether `activation_of` takes its instances.
    """
    return kind in _registered


def register_activation(key: str | type[nn.Module], activation: Activation, span: float = 40.0) -> None:
    """Make an activation known to `activation_of`, after a check of its constants on a grid.

    The check refuses constants that are too small anywhere on the grid, and derivatives that do not fit together:
    between neighbours at distance h, `|s(x+h) - s(x) - h s'(x)| <= b2 h^2 / 2` and so on up to b4, so that a kink or a
    wrong formula shows. It is a check of the numbers given, not a proof: that stays with whoever registers.

    Args:
        key: a name, or a module type (instances of exactly this type, whose forward must be `value`).
        activation: the activation with its constants.
        span: the grid reaches from -span to span in steps of span / 40,000, and sparsely to 1000 span.

    Raises:
        UnboundedActivation: the class is built in, or a constant is too small; names the derivative, the place and the
            value there.

    Examples:
        >>> import dataclasses, torch
        >>> from tvgrad.bounds import activation_of, register_activation
        >>> class Sine(torch.nn.Module):
        ...     def forward(self, x):
        ...         return torch.sin(x)
        >>> register_activation(Sine, dataclasses.replace(activation_of("sin"), name="Sine"))
        >>> activation_of(Sine()).name
        'Sine'
    """
    if key in OF_MODULE:
        raise UnboundedActivation(f"{key} is built in: register a name or a class of your own")
    _check_on_grid(activation, span)
    _registered[key.lower().replace("-", "_") if isinstance(key, str) else key] = activation


def check_forward(module: nn.Module, activation: Activation) -> None:
    """Compare a registered module with the activation that it is known as, on a grid.

    Args:
        module: the module, on the CPU in float64.
        activation: what stands for it.

    Raises:
        UnboundedActivation: values or slopes differ.
    """
    grid = torch.cat([torch.linspace(-8, 8, 161, dtype=torch.float64), torch.tensor([-100.0, 100.0]).double()])
    grid = grid[grid < activation.below]
    with torch.enable_grad():
        at = grid[:, None].clone().requires_grad_()
        made = module(at)
        if made.shape == at.shape:
            (slope,) = torch.autograd.grad(made.sum(), at, materialize_grads=True)
            if torch.allclose(made[:, 0], activation.value(grid), 1e-9, 1e-9) and torch.allclose(
                slope[:, 0], activation.d1(grid), 1e-7, 1e-7
            ):
                return
    raise UnboundedActivation(
        f"{type(module).__name__} was registered as {activation.name} and computes something else: register its own "
        "values and derivatives"
    )


def _check_on_grid(activation: Activation, span: float) -> None:
    """Raise where a constant is too small on the grid, or two derivatives do not fit together."""
    fine = torch.linspace(-span, span, 80_001, dtype=torch.float64)
    far = span * torch.logspace(0, 3, 301, dtype=torch.float64)
    functions = (activation.value, activation.d1, activation.d2, activation.d3)
    limits = (activation.supremum, activation.b1, activation.b2, activation.b3, activation.b4)
    names = ("s", "s'", "s''", "s'''", "s''''")
    grid = torch.cat([-far.flip(0), fine, far])
    for index, function in enumerate(functions):
        found = function(grid).abs()
        # what float64 may add to the computed value of a function whose exact maximum is the constant
        excess = found - limits[index] * (1 + FEW_OPERATIONS_MARGIN) - 1e-13
        bad = (excess > 0) | ~torch.isfinite(found)
        if bool(bad.any()):
            at = int(torch.where(bad, found.nan_to_num(nan=math.inf), -1.0).argmax())
            raise UnboundedActivation(
                f"{activation.name}: |{names[index]}| is {found[at].item():.9g} at x = {grid[at].item():.9g}, more "
                f"than the given {limits[index]:.9g}; give a larger constant."
            )
    start = abs(float(activation.value(torch.zeros(1, dtype=torch.float64))))
    if start > activation.at_zero * (1 + FEW_OPERATIONS_MARGIN):
        raise UnboundedActivation(
            f"{activation.name}: |s| is {start:.9g} at x = 0, more than at_zero = {activation.at_zero:.9g}; "
            "give a larger constant."
        )
    step = torch.diff(fine)
    values = [function(fine) for function in functions]
    for index in range(4):
        change = torch.diff(values[index])
        rounding = 1e-14 * (1 + values[index][1:].abs())
        slope = limits[index + 1]
        _refuse_first(activation, names[index + 1], change.abs() - slope * step - rounding, change / step, fine, slope)
        if index < 3:
            curvature = limits[index + 2]
            rest = change - step * values[index + 1][:-1]
            excess = rest.abs() - curvature * step**2 / 2 - rounding
            _refuse_first(activation, names[index + 2], excess, 2 * rest / step**2, fine, curvature)


def _refuse_first(
    activation: Activation, name: str, excess: torch.Tensor, implied: torch.Tensor, grid: torch.Tensor, limit: float
) -> None:
    """Raise at the worst pair of neighbours whose difference needs a larger derivative than the constant admits."""
    if bool((excess > 0).any()):
        at = int(excess.argmax())
        raise UnboundedActivation(
            f"{activation.name}: between x = {grid[at].item():.9g} and {grid[at + 1].item():.9g} |{name}| would have "
            f"to be {abs(implied[at].item()):.9g}, more than the given {limit:.9g}; give a larger constant, or correct "
            "the derivatives (a kink has no bounded second derivative)."
        )
