"""Rounding of an optimizer step: how far, coordinate by coordinate, stored weights may lie from the formula.

Notation: p is the parameter dtype, u its unit roundoff, ulp(y) the spacing of p just above |y|, omega its smallest
subnormal. The bounds are on `|theta' - theta - predicted|` for stored theta', theta and g, the learning rate being
known in float64, for PyTorch's single-tensor and foreach kernels on the CPU.
"""

from __future__ import annotations

import torch

from tvgrad.numerics.floats import smallest_subnormal, ulp, unit_roundoff


def gradient_step_rounding_bound(
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
    bound = 0.5 * (1 + wide) * ulp(after, dtype) + relative * step.abs()
    bound += smallest_subnormal(dtype) * (1 + gradient.abs())
    if dtype == torch.float64:
        bound += u * torch.where(_exact_difference(after, before), 0.0, (after - before).abs())
    return bound


def direction_rounding_bound(
    gradient: torch.Tensor, before: torch.Tensor, momentum: float, decay: float, dtype: torch.dtype
) -> torch.Tensor:
    """Bound the rounding of what the first step moves along, where that is not the gradient itself.

    Coupled decay moves along `h = g + lambda theta`, Nesterov's first step along `h + mu h`. Each sum rounds the
    factor to the kernel's type, the product (or fuses it) and the result: `(2u + u^2) |product| + u |sum|`, and an
    error in h is carried into `h + mu h` at most `(1 + mu)(1 + u)` times. Subnormal results add omega each, and a
    factor that is itself subnormal in the kernel's type (a decay of 1e-5 in float16) omega times what it multiplies.

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
        error = (2 * u + u * u) * (decay * before).abs() + u * along.abs() + tiny * (1 + before.abs())
        error *= 1 + 4 * u
    if momentum:
        size = along.abs()
        rounding = (2 * u + u * u) * momentum * size + u * (1 + momentum) * size + tiny * (1 + size)
        error = (error * (1 + momentum) * (1 + u) + rounding) * (1 + 4 * u)
    return error


def adam_rounding_bound(
    after: torch.Tensor,
    before: torch.Tensor,
    along: torch.Tensor,
    dtype: torch.dtype,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    decoupled_decay: bool,
) -> torch.Tensor:
    """Bound the rounding of Adam's first step `-eta h / (|h| + eps)`.

    `1/2 ulp(theta') + 12 u |predicted|`; AdamW multiplies the weights by `1 - eta lambda` first, which adds
    `1/2 ulp(theta) + u |theta|`. The same allowance for the float64 difference as in gradient descent.

    Relative errors do not hold below the normal numbers. The moments `(1 - b1) h` and `(1 - b2) h^2` are off by omega
    at the most, and the first once more when it is multiplied by the rate. The second moves |h| under the root by
    `min(sqrt(e), e / |h|)`, `e = omega / (1 - b2)`. For float32 that is nothing beside eps = 1e-8; in float16 the
    second moment of |h| = 0.01 is a subnormal number, and where it may be lost altogether the bound is infinite.

    Args:
        after: stored theta', widened to float64.
        before: stored theta, widened to float64.
        along: h, the gradient with coupled decay, in float64.
        dtype: of the parameters.
        lr: eta.
        betas: b1 and b2.
        eps: what is added to the root.
        decoupled_decay: whether the rule decays the weights themselves.

    Returns:
        Float64 bounds, coordinate by coordinate.
    """
    u, omega = unit_roundoff(dtype), smallest_subnormal(dtype)
    size = along.abs()
    root = size + eps
    e = omega / (1 - betas[1])
    off = (torch.minimum(e / size, torch.full_like(size, e**0.5)) + 2 * omega) / root
    quotient = torch.where(root > 0, lr * size / root, 0.0)
    below = torch.where(off < 1, (quotient * off + omega * (1 + lr / (1 - betas[0])) / root) / (1 - off), torch.inf)
    bound = 0.5 * ulp(after, dtype) + 12 * u * quotient + omega + below
    if decoupled_decay:
        bound += shrinkage_rounding_bound(before, dtype)
    if dtype == torch.float64:
        bound += u * torch.where(_exact_difference(after, before), 0.0, (after - before).abs())
    return bound


def shrinkage_rounding_bound(before: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Bound the rounding of decoupled decay's `theta (1 - eta lambda)`: of the factor and of the product.

    Args:
        before: stored theta, widened to float64.
        dtype: of the parameters.

    Returns:
        `1/2 ulp(theta) + u |theta|`, coordinate by coordinate.
    """
    return 0.5 * ulp(before, dtype) + unit_roundoff(dtype) * before.abs()


def _exact_difference(after: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Where the difference of two numbers is a number of the format itself (Sterbenz)."""
    return (after <= 2 * before) & (before <= 2 * after) & (before > 0) | (
        (after >= 2 * before) & (before >= 2 * after) & (before < 0)
    )
