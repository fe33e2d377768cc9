"""Residual networks as users write them, and random ones: what bounds with skips are tried on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from tests.bounds.oracles import ACTIVATIONS, LOSSES, Case, draw_loss


class Block(nn.Module):
    """`skip(x) + body(x)`, in one of the ways to write a sum, and an activation or nothing after it."""

    def __init__(
        self, body: nn.Module, skip: nn.Module | None = None, after: nn.Module | None = None, style: str = "+"
    ) -> None:
        super().__init__()
        # registered in another order than they run: parameters keep the module's order
        self.after, self.skip, self.body, self.style = after, skip, body, style

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        way = x if self.skip is None else self.skip(x)
        if self.style == "+":
            out = way + self.body(x)
        elif self.style == "torch.add":
            out = torch.add(self.body(x), way)
        elif self.style == "method":
            out = self.body(x).add(way)
        else:
            out = self.body(x)
            out += way
        return out if self.after is None else self.after(out)


STYLES = ("+", "torch.add", "method", "+=")


class Functional(nn.Module):
    """Two blocks in one forward, activations as functions; the second looks at the activated stream."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.last = nn.Linear(width, outputs)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.flatten(x, 1)
        h = x + torch.tanh(self.first(x))
        g = F.gelu(h, approximate="tanh")
        h = self.second(g) + h + g
        return self.last(torch.sigmoid(h))


def random_residual_case(seed: int, blocks: int = 3, widest: int = 12, samples: int = 8) -> Case:
    """Draw blocks, their bodies and skips, widths, activations, loss, biases, frozen layers, scales and data."""
    generator = torch.Generator().manual_seed(seed)

    def pick(high: int, low: int = 0) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    kind, activation = LOSSES[pick(len(LOSSES))], ACTIVATIONS[list(ACTIVATIONS)[pick(len(ACTIVATIONS))]]
    scale = 10 ** (float(torch.rand((), generator=generator)) - 0.8)
    biased = pick(3) > 0

    def linear(entering: int, leaving: int) -> nn.Linear:
        layer = nn.Linear(entering, leaving, bias=biased).double()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(scale * normal(*parameter.shape) / entering**0.5)
        if pick(6) == 0:
            layer.requires_grad_(False)
        return layer

    def block(entering: int, leaving: int, nested: bool) -> nn.Module:
        width = pick(widest + 1, 1)
        body: list[nn.Module] = [activation()] if pick(2) else []
        body += [linear(entering, width), activation()]
        if nested and pick(3) == 0:
            body.append(block(width, width, False))
        body.append(linear(width, leaving))
        style = STYLES[pick(4)]
        if pick(4) == 0 and style != "+=":  # PyTorch has no gradient of an activation whose output changes in place
            body.append(activation())
        skip = linear(entering, leaving) if entering != leaving or pick(4) == 0 else None
        return Block(nn.Sequential(*body), skip, activation() if pick(2) else None, style)

    width = pick(widest + 1, 1)
    parts: list[nn.Module] = [linear(width, width), activation()] if pick(2) else []
    inputs = normal(pick(samples + 1, 1), width) * 10 ** (float(torch.rand((), generator=generator)) - 0.5)
    for _ in range(pick(blocks + 1, 1)):
        leaving = width if pick(3) else pick(widest + 1, 1)
        parts.append(block(width, leaving, True))
        width = leaving
    outputs = pick(6, 1)
    parts.append(linear(width, outputs).requires_grad_(True))
    loss, targets, known = draw_loss(kind, len(inputs), outputs, generator)
    label = f"residual seed {seed}: {kind} scale {scale:.2g} bias {biased}"
    return Case(nn.Sequential(*parts), inputs, targets, loss, label, known)


def images() -> dict[str, Callable[[], nn.Sequential]]:
    """Convolutional residual networks on images of 2 x 5 x 5."""

    def normalised() -> nn.BatchNorm2d:
        norm = nn.BatchNorm2d(3)
        with torch.no_grad():
            norm.running_mean.copy_(torch.tensor([0.1, -0.2, 0.3]))
            norm.running_var.copy_(torch.tensor([0.5, 2.0, 1.0]))
            norm.weight.copy_(torch.tensor([1.5, -0.5, 1.0]))
        return norm.requires_grad_(False)

    def basic() -> nn.Sequential:
        body = nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1, bias=False), normalised(), nn.SiLU(),
            nn.Conv2d(3, 3, 3, padding=1, bias=False), normalised(),
        )  # fmt: skip
        skip = nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), normalised())
        block = Block(body, skip, nn.Tanh())
        return nn.Sequential(block, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 3)).eval()

    def activated_first() -> nn.Sequential:
        body = nn.Sequential(normalised(), nn.Softplus(threshold=40), nn.Conv2d(3, 3, 3, padding=1))
        return nn.Sequential(nn.Conv2d(2, 3, 2, stride=2), Block(body), nn.Flatten(), nn.Linear(12, 3)).eval()

    return {"basic block": basic, "activated first": activated_first}
