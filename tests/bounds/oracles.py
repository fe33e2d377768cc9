"""Random networks, and lower bounds on their derivatives found by autograd: what every upper bound has to exceed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from tvgrad.bounds import Loss, activation_of, loss_of, register_activation


class Sine(nn.Module):
    """An activation of a user's own, registered below."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x)


register_activation(Sine, activation_of("sin"))

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": lambda: nn.Softplus(threshold=40),
    "softplus beta 3": lambda: nn.Softplus(beta=3.0, threshold=40),
    "gelu": nn.GELU,
    "gelu tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
    "logsigmoid": nn.LogSigmoid,
    "tanhshrink": nn.Tanhshrink,
    "sine": Sine,
    "identity": nn.Identity,
}
Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
LOSSES = (
    "cross_entropy", "smoothed", "weighted", "ignored", "probabilities", "weighted probabilities", "summed",
    "bce", "bce summed", "bce weighted", "mse", "mse half", "mse summed",
)  # fmt: skip


@dataclass
class Case:
    """A network with its data, as a function of one flat vector."""

    model: nn.Sequential
    inputs: torch.Tensor
    targets: torch.Tensor
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    label: str
    known: Loss | nn.Module | None = None

    @property
    def bounded(self) -> Loss | nn.Module:
        """The loss as the library is told about it."""
        known = self.loss if self.known is None else self.known
        assert isinstance(known, (Loss, nn.Module))
        return known

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
    loss, targets, known = draw_loss(kind, count, outputs, generator)
    label = f"seed {seed}: {widths} {activation} {kind} scale {scale:.2g} bias {biased}"
    return Case(nn.Sequential(*parts), inputs, targets, loss, label, known)


def draw_loss(
    kind: str, count: int, outputs: int, generator: torch.Generator
) -> tuple[Callable[[torch.Tensor, torch.Tensor], torch.Tensor], torch.Tensor, Loss | None]:
    """PyTorch's way to compute a loss, targets for it, and the library's loss where no module stands for it."""
    classes = torch.randint(0, outputs, (count,), generator=generator)
    weight = 0.2 + torch.rand(outputs, generator=generator, dtype=torch.float64)
    share = torch.rand(count, outputs, generator=generator, dtype=torch.float64)
    spread = torch.softmax(4 * share, dim=1)
    wanted = torch.randn(count, outputs, generator=generator, dtype=torch.float64)
    if kind == "ignored":
        classes[1:][share[1:, 0] < 0.3] = -100  # the first stays, so that one counts
    if kind == "bce summed":
        entropy = nn.functional.binary_cross_entropy_with_logits
        return lambda f, y: entropy(f, y, reduction="sum") / len(f), share, loss_of("bce", outputs="sum")
    if kind == "mse half":
        return lambda f, y: (f - y).square().sum() / 2 / len(f), wanted, loss_of("mse_half")
    loss, targets = {
        "cross_entropy": (nn.CrossEntropyLoss(), classes),
        "ignored": (nn.CrossEntropyLoss(), classes),
        "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.1), classes),
        "weighted": (nn.CrossEntropyLoss(weight=weight, label_smoothing=0.2), classes),
        "probabilities": (nn.CrossEntropyLoss(), spread),
        "weighted probabilities": (nn.CrossEntropyLoss(weight=weight), spread),
        "summed": (nn.CrossEntropyLoss(reduction="sum"), classes),
        "bce": (nn.BCEWithLogitsLoss(), share),
        "bce weighted": (nn.BCEWithLogitsLoss(weight=weight, pos_weight=3 * weight), share),
        "mse": (nn.MSELoss(), wanted),
        "mse summed": (nn.MSELoss(reduction="sum"), wanted),
    }[kind]
    return loss, targets, None


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


def _second(case: Case) -> Product:
    def product(theta: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        return grad(lambda at: direction @ grad(case.value)(at))(theta)

    return product


def _third(case: Case) -> Product:
    def product(theta: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        def once(at: torch.Tensor) -> torch.Tensor:
            return direction @ grad(lambda inner: direction @ grad(case.value)(inner))(at)

        return grad(once)(theta)

    return product


def hessian_norms(case: Case, points: torch.Tensor, iterations: int = 12, seed: int = 0) -> torch.Tensor:
    """Lower bounds of ||H|| at each point, by power iteration."""
    return _power(vmap(_second(case)), points, iterations, seed)[0]


def third_norms(case: Case, points: torch.Tensor, iterations: int = 12, seed: int = 0) -> torch.Tensor:
    """Lower bounds of the third derivative's norm at each point, by higher-order power iteration."""
    return _power(vmap(_third(case)), points, iterations, seed)[0]


def _power(product: Product, points: torch.Tensor, iterations: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest image of a unit direction that was met, and the last direction."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(points.shape, generator=generator, dtype=torch.float64)
    direction = direction / direction.norm(dim=1, keepdim=True)
    best = torch.zeros(len(points), dtype=torch.float64)
    for _ in range(iterations):
        image = product(points, direction)
        size = image.norm(dim=1)
        best = torch.maximum(best, size)
        direction = torch.where(size[:, None] > 0, image / size.clamp(min=1e-300)[:, None], direction)
    return best, direction


def climbed(case: Case, order: int, points: torch.Tensor, radius: float, seed: int, steps: int = 3) -> torch.Tensor:
    """Move points uphill within the ball on the norm of the first, second or third derivative of the loss.

    The slope of a norm is that of the form at its best direction (Danskin), which a few power iterations find.
    """
    for _ in range(steps):
        if order == 1:
            slope = vmap(grad(lambda at: grad(case.value)(at).norm()))(points)
        else:
            product = (_second if order == 2 else _third)(case)
            _, directions = _power(vmap(product), points, 3, seed)

            def form(at: torch.Tensor, direction: torch.Tensor, product: Product = product) -> torch.Tensor:
                return (direction @ product(at, direction)).abs()

            slope = vmap(grad(form))(points, directions)
        slope = torch.nan_to_num(slope, nan=0.0)
        size = slope.norm(dim=1, keepdim=True)
        step = radius * torch.where(size > 0, slope / size.clamp(min=1e-300), 0.0)
        points = into_ball(points + step, case.start, radius)
    return points
