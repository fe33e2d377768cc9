"""Rounding of an optimizer step: how far, coordinate by coordinate, stored weights may lie from the formula.

Notation: p is the parameter dtype, u its unit roundoff, ulp(y) the spacing of p just above |y|, omega its smallest
subnormal. The budgets bound `|theta' - theta - predicted|` for stored theta', theta and g, the learning rate being
known in float64, for PyTorch's single-tensor and foreach kernels on the CPU.
"""

from __future__ import annotations

import numpy as np
import torch

__all__ = [
    "adam_budget",
    "direction_budget",
    "gradient_step_budget",
    "precision_of",
    "smallest_subnormal",
    "ulp",
    "unit_roundoff",
]

# significand bits, and the exponent of the smallest normal number
_FORMATS = {
    torch.float64: (53, -1022),
    torch.float32: (24, -126),
    torch.bfloat16: (8, -126),
    torch.float16: (11, -14),
}


def precision_of(dtype: torch.dtype) -> tuple[int, int]:
    """Significand bits and exponent of the smallest normal number.

    Args:
        dtype: a floating-point dtype.

    Returns:
        (bits, exponent), (53, -1022) for float64.
    """
    return _FORMATS[dtype]


def unit_roundoff(dtype: torch.dtype) -> float:
    """Half the spacing of the dtype at 1: 2^-53, 2^-24, 2^-8, 2^-11 for float64, float32, bfloat16, float16.

    Args:
        dtype: a floating-point dtype.

    Returns:
        The unit roundoff u.
    """
    return float(2.0 ** -precision_of(dtype)[0])


def smallest_subnormal(dtype: torch.dtype) -> float:
    """The smallest positive number of the dtype.

    Args:
        dtype: a floating-point dtype.

    Returns:
        omega.
    """
    bits, smallest = precision_of(dtype)
    return float(2.0 ** (smallest - bits + 1))


def ulp(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Spacing of a dtype's numbers just above |y|.

    Args:
        values: float64 tensor of numbers y of the dtype.
        dtype: the format whose spacing is meant.

    Returns:
        Float64 tensor of spacings; at 0 the smallest subnormal.
    """
    bits, smallest = precision_of(dtype)
    # frexp writes |y| = m 2^e with m in [1/2, 1), so that |y| lies in the binade of spacing 2^(e - bits).
    magnitudes = values.abs().numpy()
    exponents = np.where(magnitudes == 0, smallest + 1, np.frexp(magnitudes)[1])
    # numpy's ldexp is exact down to the subnormals; torch's goes through a float32 power.
    return torch.from_numpy(np.ldexp(1.0, np.maximum(exponents, smallest + 1) - bits))


def gradient_step_budget(
    after: torch.Tensor, before: torch.Tensor, step: torch.Tensor, gradient: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Bound the rounding of one step of gradient descent.

    `1/2 ulp(theta') (1 + d) + a |eta g| + omega (1 + |g|)`: the result is rounded once; the product may be rounded
    too, or fused; the rate is rounded to float32 by the float32 kernel (a = 2u + u^2) and to the dtype itself by the
    bfloat16 and float16 kernels, where arithmetic in float32 adds d = 2^-13 to the half ulp. For float64, a = u, plus
    u |tau| where theta'/theta lies outside [1/2, 2]: only there is the float64 difference itself rounded.

    Args:
        after: stored theta', widened to float64.
        before: stored theta, widened to float64.
        step: eta g in float64.
        gradient: g, widened to float64.
        dtype: of the parameters.

    Returns:
        Float64 bounds, coordinate by coordinate.
    """
    u = unit_roundoff(dtype)
    wide = 2.0**-13 if dtype in {torch.bfloat16, torch.float16} else 0.0
    relative = u if dtype == torch.float64 else 2 * u + u * u
    budget = 0.5 * (1 + wide) * ulp(after, dtype) + relative * step.abs()
    budget += smallest_subnormal(dtype) * (1 + gradient.abs())
    if dtype == torch.float64:
        budget += u * torch.where(_exact_difference(after, before), 0.0, (after - before).abs())
    return budget


def direction_budget(
    gradient: torch.Tensor, before: torch.Tensor, momentum: float, decay: float, dtype: torch.dtype
) -> torch.Tensor:
    """Bound the rounding of what the first step moves along, where that is not the gradient itself.

    Coupled decay moves along `h = g + lambda theta`, Nesterov's first step along `h + mu h`. Each sum rounds the
    factor to the kernel's type, the product (or fuses it) and the result: `(2u + u^2) |product| + u |sum|`, and an
    error in h is carried into `h + mu h` at most `(1 + mu)(1 + u)` times. Subnormal results add omega each.

    Args:
        gradient: g, widened to float64.
        before: stored theta, widened to float64.
        momentum: Nesterov's mu; 0 for other rules.
        decay: lambda of coupled decay.
        dtype: of the parameters.

    Returns:
        Float64 bounds on the error of the direction, coordinate by coordinate; zero where both factors are.
    """
    u = unit_roundoff(dtype)
    tiny = 2 * smallest_subnormal(dtype)
    error = torch.zeros_like(gradient)
    along = gradient
    if decay:
        along = gradient + decay * before
        error = (2 * u + u * u) * (decay * before).abs() + u * along.abs() + tiny
        error *= 1 + 4 * u
    if momentum:
        rounding = (2 * u + u * u) * momentum * along.abs() + u * (1 + momentum) * along.abs() + tiny
        error = (error * (1 + momentum) * (1 + u) + rounding) * (1 + 4 * u)
    return error


def adam_budget(
    after: torch.Tensor,
    before: torch.Tensor,
    predicted: torch.Tensor,
    dtype: torch.dtype,
    decoupled_decay: bool,
) -> torch.Tensor:
    """Bound the rounding of Adam's first step.

    `1/2 ulp(theta') + 12 u |predicted|`; AdamW multiplies the weights by `1 - eta lambda` first, which adds
    `1/2 ulp(theta) + u |theta|`. The same allowance for the float64 difference as in gradient descent.

    Args:
        after: stored theta', widened to float64.
        before: stored theta, widened to float64.
        predicted: the formula's task vector in float64.
        dtype: of the parameters.
        decoupled_decay: whether the rule decays the weights themselves.

    Returns:
        Float64 bounds, coordinate by coordinate.
    """
    u = unit_roundoff(dtype)
    budget = 0.5 * ulp(after, dtype) + 12 * u * predicted.abs()
    if decoupled_decay:
        budget += 0.5 * ulp(before, dtype) + u * before.abs()
    if dtype == torch.float64:
        budget += u * torch.where(_exact_difference(after, before), 0.0, (after - before).abs())
    return budget


def _exact_difference(after: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Where the difference of two numbers is a number of the format itself (Sterbenz)."""
    return (after <= 2 * before) & (before <= 2 * after) & (before > 0) | (
        (after >= 2 * before) & (before >= 2 * after) & (before < 0)
    )
