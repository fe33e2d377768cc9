"""A small tanh network with cross-entropy, its gradients and its trainings by SGD and Adam, in 50 digits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from mpmath import mp, mpf
from torch import nn

from tvgrad.update_rules.base import UpdateRule
from tvgrad.update_rules.linear import LinearRule
from tvgrad.update_rules.rules import Adam

DIGITS = 50
SAMPLES, FEATURES, HIDDEN, CLASSES = 6, 3, 3, 2
Vector = list[mpf]
GradientAt = Callable[[Vector, Sequence[int]], Vector]


def drawn(seed: int) -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    """A network with data, one of whose features is always zero for every third seed."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, CLASSES)).double()
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    inputs = torch.randn(SAMPLES, FEATURES, generator=generator, dtype=torch.float64)
    if seed % 3 == 0:
        inputs[:, 1] = 0.0
    return model, inputs, torch.randint(CLASSES, (SAMPLES,), generator=generator)


def batches_of(seed: int, epochs: int) -> list[list[torch.Tensor]]:
    """Shuffled batches of sizes that do not divide the samples."""
    generator = torch.Generator().manual_seed(seed)
    return [list(torch.randperm(SAMPLES, generator=generator).split(1 + seed % 4)) for _ in range(epochs)]


def start_of(model: nn.Sequential) -> Vector:
    return [mpf(number) for parameter in model.parameters() for number in parameter.flatten().tolist()]


def gradient_of(inputs: torch.Tensor, targets: torch.Tensor) -> GradientAt:
    """The gradient of the mean over some samples, written out."""
    rows = [[mpf(number) for number in row] for row in inputs.tolist()]
    labels = targets.tolist()

    def gradient(theta: Vector, used: Sequence[int]) -> Vector:
        w1, rest = theta[: HIDDEN * FEATURES], theta[HIDDEN * FEATURES :]
        b1, w2, b2 = rest[:HIDDEN], rest[HIDDEN : HIDDEN + CLASSES * HIDDEN], rest[HIDDEN + CLASSES * HIDDEN :]
        found = [mpf(0)] * len(theta)
        for sample in used:
            x = rows[sample]
            z = [mp.fdot(w1[j * FEATURES : (j + 1) * FEATURES], x) + b1[j] for j in range(HIDDEN)]
            h = [mp.tanh(one) for one in z]
            out = [mp.fdot(w2[o * HIDDEN : (o + 1) * HIDDEN], h) + b2[o] for o in range(CLASSES)]
            powers = [mp.exp(one) for one in out]
            p = [one / sum(powers) - (o == labels[sample]) for o, one in enumerate(powers)]
            q = [sum(p[o] * w2[o * HIDDEN + j] for o in range(CLASSES)) * (1 - h[j] ** 2) for j in range(HIDDEN)]
            parts = [q[j] * one for j in range(HIDDEN) for one in x] + q
            parts += [p[o] * one for o in range(CLASSES) for one in h] + p
            found = [a + b / len(used) for a, b in zip(found, parts, strict=True)]
        return found

    return gradient


def true_errors(
    gradient: GradientAt, start: Vector, rule: UpdateRule, steps: Sequence[Sequence[int]]
) -> tuple[list[mpf], list[Vector]]:
    """How far the training is from the rule followed on the gradient of all samples at theta_0, after every step.

    Args:
        gradient: of some samples.
        start: theta_0.
        rule: SGD with momentum, Nesterov or decay, or Adam, as PyTorch writes them.
        steps: positions of each step's samples.

    Returns:
        The distances after 1, 2, ... steps, and the weights there.
    """
    decay = mpf(rule.coupled_decay)

    def own(theta: Vector, used: Sequence[int]) -> Vector:
        return [g + decay * t for g, t in zip(gradient(theta, used), theta, strict=True)]

    reached = followed(rule, start, steps, own)
    predicted = followed(rule, start, steps, constant(own(start, range(SAMPLES))))
    return [distance(a, b) for a, b in zip(reached, predicted, strict=True)], reached


def distance(a: Vector, b: Vector) -> mpf:
    return mp.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def constant(vector: Vector) -> GradientAt:
    return lambda *_: vector


def followed(rule: UpdateRule, start: Vector, steps: Sequence[Sequence[int]], gradient: GradientAt) -> list[Vector]:
    """The weights after every step."""
    return list((_adam if isinstance(rule, Adam) else _sgd)(rule, start, steps, gradient))


def _sgd(rule: UpdateRule, start: Vector, steps: Sequence[Sequence[int]], gradient: GradientAt) -> Iterator[Vector]:
    assert isinstance(rule, LinearRule)
    mu, d = mpf(rule.average.momentum), mpf(rule.average.dampening)
    theta, buffer = list(start), None
    for number, used in enumerate(steps):
        rate, g = mpf(rule.rate(number)), gradient(theta, used)
        buffer = g if buffer is None else [mu * b + (1 - d) * x for b, x in zip(buffer, g, strict=True)]
        way = [x + mu * b for x, b in zip(g, buffer, strict=True)] if rule.average.lookahead else buffer
        kept = 1 - rate * mpf(rule.decoupled_decay)
        theta = [kept * t - rate * w for t, w in zip(theta, way if mu else g, strict=True)]
        yield theta


def _adam(rule: UpdateRule, start: Vector, steps: Sequence[Sequence[int]], gradient: GradientAt) -> Iterator[Vector]:
    assert isinstance(rule, Adam)
    (b1, b2), eps = (mpf(beta) for beta in rule.betas), mpf(rule.eps)
    theta, m, v = list(start), [mpf(0)] * len(start), [mpf(0)] * len(start)
    for number, used in enumerate(steps):
        rate, g = mpf(rule.rate(number)), gradient(theta, used)
        m = [b1 * a + (1 - b1) * x for a, x in zip(m, g, strict=True)]
        v = [b2 * a + (1 - b2) * x**2 for a, x in zip(v, g, strict=True)]
        whole = 1 - b1 ** (number + 1), 1 - b2 ** (number + 1)
        kept = 1 - rate * mpf(rule.decoupled_decay)
        ways = [a / whole[0] / (mp.sqrt(b / whole[1]) + eps) for a, b in zip(m, v, strict=True)]
        theta = [kept * t - rate * w for t, w in zip(theta, ways, strict=True)]
        yield theta
