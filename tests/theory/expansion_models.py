"""Small objectives, training without tvgrad's own machinery, and fitted orders, for the tests of predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from tvgrad import Objective
from tvgrad.update_rules.linear import LinearRule
from tvgrad.vectors.parameters import Weights, norm

SAMPLES, CLASSES = 30, 3


class Attention(nn.Module):
    """Two blocks of a pre-norm transformer on four tokens of three numbers each."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Linear(3, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(4)])
        self.qkv = nn.ModuleList([nn.Linear(width, 3 * width) for _ in range(2)])
        self.mlp = nn.ModuleList([
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) for _ in range(2)
        ])
        self.head = nn.Linear(width, CLASSES)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        x = self.embed(inputs.reshape(len(inputs), 4, 3))
        for block in range(2):
            q, k, v = self.qkv[block](self.norms[2 * block](x)).reshape(len(x), 4, 3, 2, -1).permute(2, 0, 3, 1, 4)
            x = x + nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
            x = x + self.mlp[block](self.norms[2 * block + 1](x))
        return self.head(x.mean(1))


def data(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(SAMPLES, 12, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(0, CLASSES, (SAMPLES,), generator=generator)


def model(kind: str, activation: Callable[[], nn.Module] = nn.Tanh) -> nn.Module:
    torch.manual_seed(7)
    if kind == "vit":
        return Attention().double()
    return nn.Sequential(nn.Linear(12, 8), activation(), nn.Linear(8, CLASSES)).double()


def objective(kind: str = "mlp", seed: int = 0, activation: Callable[[], nn.Module] = nn.Tanh) -> Objective:
    return Objective(model(kind, activation), nn.CrossEntropyLoss(), data(seed), chunk_size=13)


def linear_regression(seed: int = 0) -> Objective:
    torch.manual_seed(3)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(20, 2, generator=generator, dtype=torch.float64)
    return Objective(nn.Linear(5, 2).double(), nn.MSELoss(), (x, y), chunk_size=7)


def trained(one: Objective, rule: LinearRule, steps: int, batches: Sequence[torch.Tensor] | None = None) -> Weights:
    """A task vector by `torch.optim` (decoupled decay, which it lacks, by hand before each step)."""
    theta = {name: tensor.clone().requires_grad_() for name, tensor in one.initial.items()}
    decay = rule.decoupled_decay
    plain = rule.without_decay() if decay else rule
    optimizer = plain.make_optimizer(list(theta.values()))
    for step in range(steps):
        gradient = (one if batches is None else one.subset(batches[step])).gradient(theta)
        for name, tensor in theta.items():
            tensor.grad = gradient[name]
            tensor.data.mul_(1 - rule.rate(step) * decay)
        plain.set_rate(optimizer, step)
        optimizer.step()
    return {name: (tensor - one.initial[name]).detach() for name, tensor in theta.items()}


def distance(left: Weights, right: Weights) -> float:
    return norm({name: tensor - right[name] for name, tensor in left.items()})


def order(rates: Sequence[float], errors: Sequence[float]) -> float:
    return float(np.polyfit(np.log(rates), np.log(errors), 1)[0])
