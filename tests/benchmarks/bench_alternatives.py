"""What tvgrad does not do, and what it would bring: gradients of several tasks by one vmap, and compiled gradients.

Run by hand: `OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_alternatives [--rounds 5]`. Compiling needs a C++
compiler, and takes half a minute.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.benchmarks.bench_derivatives import mlp, vit
from tests.benchmarks.timing import Figure, figures_table

Gradient = Callable[[], list[torch.Tensor]]


def convolutions() -> nn.Module:
    """Two layers of convolutions: 5,000 parameters."""
    layers = (nn.Conv2d(1, 16, 3), nn.Tanh(), nn.Conv2d(16, 32, 3), nn.Tanh())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


TASKS = {
    "MLP of 670,000 parameters, 6 tasks of 16 samples": (mlp, (784,), 6, 16),
    "MLP of 670,000 parameters, 6 tasks of 1,000 samples": (mlp, (784,), 6, 1000),
    "convolutions, 6 tasks of 64 samples": (convolutions, (1, 28, 28), 6, 64),
    "ViT of 4.7 M parameters, 4 tasks of 16 samples": (vit, (1, 28, 28), 4, 16),
}
COMPILED = {
    "MLP, 10,000 samples, chunk 1000": (mlp, (784,), 10_000, 1000),
    "ViT, 256 samples, chunk 64": (vit, (1, 28, 28), 256, 64),
}


def processor_seconds(run: Callable[[], object]) -> float:
    """Seconds of processors that something takes."""
    start = time.process_time()
    run()
    return time.process_time() - start


def paired(base: Gradient, other: Gradient, rounds: int) -> list[float]:
    """Time two in turns, after one call of each.

    Args:
        base: the unit.
        other: what is compared with it.
        rounds: how often.

    Returns:
        A ratio of seconds of processors each round.
    """
    for run in (base, other):
        run()
    return [processor_seconds(other) / processor_seconds(base) for _ in range(rounds)]


def of_tasks(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> tuple[Gradient, Gradient]:
    """Gradients of tasks at the same weights, one after the other and at once.

    Args:
        model: it.
        inputs: tasks x samples x ...
        labels: tasks x samples.

    Returns:
        The two.
    """
    weights = {name: one.detach() for name, one in model.named_parameters()}
    parameters = list(model.parameters())

    def loss(weights: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(functional_call(model, weights, (x,)), y)

    at_once = vmap(grad(loss), in_dims=(None, 0, 0))

    def in_turn() -> list[torch.Tensor]:
        losses = (nn.functional.cross_entropy(model(x), y) for x, y in zip(inputs, labels, strict=True))
        return [one for value in losses for one in torch.autograd.grad(value, parameters)]

    return in_turn, lambda: list(at_once(weights, inputs, labels).values())


def of_chunks(
    model: nn.Module, loss: Callable[..., torch.Tensor], inputs: torch.Tensor, labels: torch.Tensor, chunk: int
) -> Gradient:
    """A full-batch gradient whose chunks are added up in float64.

    Args:
        model: it.
        loss: of inputs and labels.
        inputs: samples x ...
        labels: samples.
        chunk: how many at a time.

    Returns:
        What computes it.
    """
    parameters = list(model.parameters())

    def run() -> list[torch.Tensor]:
        total = [torch.zeros_like(one, dtype=torch.float64) for one in parameters]
        for x, y in zip(inputs.split(chunk), labels.split(chunk), strict=True):
            for sum_so_far, part in zip(total, torch.autograd.grad(loss(x, y), parameters), strict=True):
                sum_so_far.add_(part)
        return total

    return run


def compiled(
    make: Callable[[], nn.Module], shape: tuple[int, ...], count: int, chunk: int
) -> tuple[Gradient, Gradient]:
    """A full-batch gradient, and one with a loss that torch.compile has compiled.

    Args:
        make: the model.
        shape: of a sample.
        count: of samples.
        chunk: how many at a time.

    Returns:
        The two.
    """
    model, inputs, labels = make(), torch.randn(count, *shape), torch.randint(10, (count,))

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(x), y)

    return (
        of_chunks(model, loss, inputs, labels, chunk),
        of_chunks(model, torch.compile(loss), inputs, labels, chunk),
    )


def figures(rounds: int, quick: bool = False) -> Iterator[Figure]:
    """Measure both.

    Args:
        rounds: repetitions.
        quick: the first case alone, and nothing compiled.

    Yields:
        Ratios, and how far compiled gradients are from others.
    """
    torch.manual_seed(0)
    for name, (make, shape, tasks, count) in list(TASKS.items())[: 1 if quick else None]:
        data = torch.randn(tasks, count, *shape), torch.randint(10, (tasks, count))
        with sdpa_kernel(SDPBackend.MATH):
            ratios = paired(*of_tasks(make(), *data), rounds)
        yield Figure(f"gradients by one vmap, {name}", "one after the other", ratios)
    for name, (make, shape, count, chunk) in {} if quick else COMPILED.items():
        plain, fast = compiled(make, shape, count, chunk)
        start = time.perf_counter()
        found = fast()
        yield Figure(f"compiling a gradient, {name}", "seconds", [time.perf_counter() - start])
        truth = plain()
        apart = [float((a - b).norm() / b.norm()) for a, b in zip(found, truth, strict=True)]
        yield Figure(f"compiled gradient, {name}", "eager one", paired(plain, fast, rounds))
        yield Figure(f"how far it is from the eager one, {name}", "its norm", [max(apart)])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    print(figures_table(list(figures(parser.parse_args().rounds))))


if __name__ == "__main__":
    main()
