"""Random networks, and lower bounds on their derivatives found by autograd: what every upper bound has to exceed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call, grad, vmap

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": lambda: nn.Softplus(threshold=40),
    "softplus beta 3": lambda: nn.Softplus(beta=3.0, threshold=40),
    "gelu": nn.GELU,
    "gelu tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
    "identity": nn.Identity,
}
LOSSES = ("cross_entropy", "smoothed", "weighted", "bce", "mse")


@dataclass
class Case:
    """A network with its data, as a function of one flat vector."""

    model: nn.Sequential
    inputs: torch.Tensor
    targets: torch.Tensor
    loss: nn.Module
    label: str

    @property
    def start(self) -> torch.Tensor:
        """The trainable parameters, flat, in the order of `named_parameters`."""
        return torch.cat([p.detach().flatten() for p in self.model.parameters() if p.requires_grad])

    def value(self, flat: torch.Tensor) -> torch.Tensor:
        """The mean loss."""
        state, begin = {}, 0
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                state[name] = flat[begin : begin + parameter.numel()].reshape(parameter.shape)
                begin += parameter.numel()
        result: torch.Tensor = self.loss(functional_call(self.model, state, (self.inputs,)), self.targets)
        return result


def random_case(seed: int, deepest: int = 6, widest: int = 64, samples: int = 12) -> Case:
    """Draw depth, widths, activation, loss, biases, frozen layers, scales and data."""
    generator = torch.Generator().manual_seed(seed)

    def pick(high: int, low: int = 0) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    depth = pick(deepest + 1, 1)
    limit = max(2, int(widest ** (0.2 + 0.8 * float(torch.rand((), generator=generator)))) + 1)
    widths = [pick(limit, 1) for _ in range(depth)] + [pick(6, 1)]
    activation = list(ACTIVATIONS)[pick(len(ACTIVATIONS))]
    kind = LOSSES[pick(len(LOSSES))]
    scale = 10 ** (1.5 * float(torch.rand((), generator=generator)) - 1)
    biased = pick(3) > 0
    parts: list[nn.Module] = []
    for index in range(depth):
        layer = nn.Linear(widths[index], widths[index + 1], bias=biased).double()
        with torch.no_grad():
            layer.weight.copy_(scale * normal(*layer.weight.shape) / widths[index] ** 0.5)
            if biased:
                layer.bias.copy_(scale * normal(widths[index + 1]))
        if depth > 1 and pick(6) == 0:
            layer.requires_grad_(False)
        parts.append(layer)
        if index < depth - 1:
            parts.append(ACTIVATIONS[activation]())
    if not any(p.requires_grad for part in parts for p in part.parameters()):
        parts[0].requires_grad_(True)
    count, outputs = pick(samples + 1, 1), widths[-1]
    inputs = normal(count, widths[0]) * 10 ** (float(torch.rand((), generator=generator)) - 0.5)
    classes = torch.randint(0, outputs, (count,), generator=generator)
    targets = classes
    loss: nn.Module = nn.CrossEntropyLoss()
    if kind == "smoothed":
        loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    elif kind == "weighted":
        loss = nn.CrossEntropyLoss(weight=0.2 + torch.rand(outputs, generator=generator, dtype=torch.float64))
    elif kind == "bce":
        loss, targets = nn.BCEWithLogitsLoss(), torch.rand(count, outputs, generator=generator, dtype=torch.float64)
    elif kind == "mse":
        loss, targets = nn.MSELoss(), normal(count, outputs)
    label = f"seed {seed}: {widths} {activation} {kind} scale {scale:.2g} bias {biased}"
    return Case(nn.Sequential(*parts), inputs, targets, loss, label)


def points_in_ball(case: Case, radius: float, count: int, seed: int) -> torch.Tensor:
    """Points anywhere in the ball, on its surface for the most part, the centre first."""
    generator = torch.Generator().manual_seed(seed)
    start = case.start
    steps = torch.randn(count, len(start), generator=generator, dtype=torch.float64)
    lengths = radius * torch.rand(count, 1, generator=generator, dtype=torch.float64) ** 0.2
    steps = steps / steps.norm(dim=1, keepdim=True) * lengths
    steps[0] = 0
    return start + steps


def into_ball(points: torch.Tensor, centre: torch.Tensor, radius: float) -> torch.Tensor:
    """The nearest points of the ball."""
    steps = points - centre
    return centre + steps * torch.clamp(radius / steps.norm(dim=1, keepdim=True).clamp(min=1e-300), max=1.0)


def gradient_norms(case: Case, points: torch.Tensor) -> torch.Tensor:
    """||grad L|| at each point."""
    return vmap(grad(case.value))(points).norm(dim=1)


def hessian_norms(case: Case, points: torch.Tensor, iterations: int = 12, seed: int = 0) -> torch.Tensor:
    """Lower bounds of ||H|| at each point, by power iteration."""

    def product(theta: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        return grad(lambda at: direction @ grad(case.value)(at))(theta)

    return _power(vmap(product), points, iterations, seed)


def third_norms(case: Case, points: torch.Tensor, iterations: int = 12, seed: int = 0) -> torch.Tensor:
    """Lower bounds of the third derivative's norm at each point, by higher-order power iteration."""

    def product(theta: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        def once(at: torch.Tensor) -> torch.Tensor:
            return direction @ grad(lambda inner: direction @ grad(case.value)(inner))(at)

        return grad(once)(theta)

    return _power(vmap(product), points, iterations, seed)


def _power(
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], points: torch.Tensor, iterations: int, seed: int
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(points.shape, generator=generator, dtype=torch.float64)
    direction = direction / direction.norm(dim=1, keepdim=True)
    best = torch.zeros(len(points), dtype=torch.float64)
    for _ in range(iterations):
        image = product(points, direction)
        size = image.norm(dim=1)
        best = torch.maximum(best, size)
        direction = torch.where(size[:, None] > 0, image / size.clamp(min=1e-300)[:, None], direction)
    return best


def ascend(
    quantity: Callable[[torch.Tensor], torch.Tensor], points: torch.Tensor, centre: torch.Tensor, radius: float
) -> torch.Tensor:
    """Move points uphill on a quantity within the ball, a few projected gradient steps."""
    for _ in range(4):
        slope = torch.autograd.functional.jacobian(lambda p: quantity(p).sum(), points)
        size = slope.norm(dim=1, keepdim=True)
        points = into_ball(points + radius * torch.where(size > 0, slope / size.clamp(min=1e-300), 0.0), centre, radius)
    return points
