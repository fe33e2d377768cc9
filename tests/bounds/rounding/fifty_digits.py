"""Small networks with frozen BatchNorm before and after the activation, and their derivatives in 50 digits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mpmath import mp, mpf
from torch import nn

DIGITS = 50


class Jet:
    """A number that moves, `a + b t + c t^2` up to higher powers of t."""

    def __init__(self, start: mpf, first: mpf = 0, second: mpf = 0) -> None:
        self.terms = mpf(start), mpf(first), mpf(second)

    def __add__(self, other: Number) -> Jet:
        return Jet(*(a + b for a, b in zip(self.terms, of(other), strict=True)))

    def __sub__(self, other: Number) -> Jet:
        return self + -1 * other

    def __mul__(self, other: Number) -> Jet:
        (a, b, c), (x, y, z) = self.terms, of(other)
        return Jet(a * x, a * y + b * x, a * z + b * y + c * x)

    def __truediv__(self, other: int) -> Jet:
        return self * (mpf(1) / other)

    __radd__, __rmul__ = __add__, __mul__

    def through(self, value: mpf, slope: mpf, second: mpf) -> Jet:
        """A function with this value and these derivatives at the start."""
        _, b, c = self.terms
        return Jet(value, slope * b, slope * c + second * b**2 / 2)


Number = mpf | Jet


def of(number: Number) -> tuple[mpf, mpf, mpf]:
    return number.terms if isinstance(number, Jet) else (mpf(number), mpf(0), mpf(0))


def bent(tanh: bool, z: Number) -> tuple[Number, Number]:
    """Value and slope of tanh or sigmoid; the derivatives of both are polynomials in them."""
    at = of(z)[0]
    if tanh:
        value, slope = mp.tanh(at), mp.sech(at) ** 2
        second, third = -2 * value * slope, slope * (6 * value**2 - 2)
    else:
        small = mp.exp(-abs(at))
        value, slope = 1 / (1 + mp.exp(-at)), small / (1 + small) ** 2
        second, third = slope * (1 - 2 * value), slope * (1 - 6 * slope)
    if not isinstance(z, Jet):
        return value, slope
    return z.through(value, slope, second), z.through(slope, second, third)


def norm(width: int, generator: torch.Generator, cancelling: bool) -> nn.BatchNorm1d:
    """A frozen BatchNorm with numbers over ten decades, whose shift may nearly cancel."""

    def numbers() -> torch.Tensor:
        size = 10 ** (10 * torch.rand(width, generator=generator, dtype=torch.float64) - 5)
        return size * torch.randn(width, generator=generator, dtype=torch.float64).sign()

    made = nn.BatchNorm1d(width).double().eval().requires_grad_(False)
    for tensor in (made.running_mean, made.weight, made.bias):
        tensor.data.copy_(numbers())
    made.running_var.copy_(numbers().abs())
    if cancelling:
        near = made.weight.data * made.running_mean / (made.running_var + made.eps).sqrt()
        made.bias.data.copy_(near * (1 + 1e-3 * torch.randn(width, generator=generator, dtype=torch.float64)))
    return made


def drawn(seed: int) -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, last = nn.Linear(2, 3), nn.Linear(3, 2)
    norms = [norm(3, generator, bool(seed >> bit & 1)) for bit in (1, 2)]
    activation = nn.Tanh() if seed % 2 else nn.Sigmoid()
    model = nn.Sequential(first, norms[0], activation, norms[1], last).double().eval()
    for parameter in (*first.parameters(), *last.parameters()):
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    inputs, targets = torch.randn(2, 2, 2, generator=generator, dtype=torch.float64)
    return model, inputs, targets


def exact_gradient(
    model: nn.Sequential, inputs: torch.Tensor, targets: torch.Tensor, direction: Sequence[float] | None = None
) -> list[Number]:
    """That of the mean of half the squared distance, written out in numbers of 50 digits; along a direction, Jets."""
    first, before, activation, after, last = model

    def rows(tensor: torch.Tensor) -> list[list[mpf]]:
        return [[mpf(x) for x in row] for row in tensor.tolist()]

    def folded(of: nn.BatchNorm1d) -> tuple[list[mpf], list[mpf]]:
        numbers = zip(
            of.running_var.tolist(), of.running_mean.tolist(), of.weight.tolist(), of.bias.tolist(), strict=True
        )
        pairs = [(mpf(w) / mp.sqrt(mpf(v) + mpf(of.eps)), mpf(m), mpf(b)) for v, m, w, b in numbers]
        return [g for g, _, _ in pairs], [b - g * m for g, m, b in pairs]

    def bend(z: Number) -> tuple[Number, Number]:
        return bent(isinstance(activation, nn.Tanh), z)

    ways = None if direction is None else iter(direction)

    def moving(tensor: torch.Tensor) -> list[Number]:
        return [mpf(x) if ways is None else Jet(mpf(x), mpf(next(ways))) for x in tensor.flatten().tolist()]

    w1, b1, w2, b2 = (moving(part) for layer in (first, last) for part in (layer.weight, layer.bias))
    w1, w2 = [w1[2 * j : 2 * j + 2] for j in range(3)], [w2[3 * o : 3 * o + 3] for o in range(2)]
    (g1, t1), (g2, t2) = folded(before), folded(after)
    units, outputs, n = range(3), range(2), len(inputs)
    parts = [[mpf(0)] * 6, [mpf(0)] * 3, [mpf(0)] * 6, [mpf(0)] * 2]
    for x, y in zip(rows(inputs), rows(targets), strict=True):
        curved = [bend(g1[j] * (sum(w * v for w, v in zip(w1[j], x, strict=True)) + b1[j]) + t1[j]) for j in units]
        h = [g2[j] * curved[j][0] + t2[j] for j in units]
        r = [sum(w * v for w, v in zip(w2[o], h, strict=True)) + b2[o] - y[o] for o in outputs]
        p = [sum(w2[o][j] * r[o] for o in outputs) * g2[j] * curved[j][1] * g1[j] for j in units]
        for part, one in zip(parts, ([a * b for a in p for b in x], p, [a * b for a in r for b in h], r), strict=True):
            part[:] = [old + new / n for old, new in zip(part, one, strict=True)]
    return [number for part in parts for number in part]


def size(numbers: list[mpf]) -> mpf:
    return mp.sqrt(sum(number**2 for number in numbers))
