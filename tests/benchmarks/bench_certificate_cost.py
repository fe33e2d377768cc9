"""What certificates cost in gradients: processor time over that of a full-batch float64 gradient of the same problem.

Run by hand: `python -m tests.benchmarks.bench_certificate_cost [--laws] [--only NAME]`. It prints, as Markdown, the
cost of a certificate of five epochs for a few networks (all forms of `FeedForward`, and its tube alone; the tube of
`Program`), and with `--laws` how it grows with depth, width, samples and tokens. Processor time of one thread, so that
other programs enter little; building the problem is included, what PyTorch loads at its first call is not.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from tests.bounds.program.programs import LanguageModel, Transformer
from tests.bounds.reference import reference_tasks
from tests.bounds.residual_cases import Block
from tvgrad.bounds import FeedForward, NoCertificate, Program
from tvgrad.recipes.catalogue import load_recipes

EPOCHS = 5


@dataclass(frozen=True)
class Problem:
    """A model with data, and the rate of its certificate."""

    name: str
    model: nn.Module
    inputs: torch.Tensor
    targets: torch.Tensor
    lr: float
    kind: type[FeedForward | Program] = FeedForward

    @property
    def parameters(self) -> int:
        """How many are trained."""
        return sum(one.numel() for one in self.model.parameters() if one.requires_grad)

    def gradient(self) -> None:
        """One full-batch gradient."""
        loss = nn.functional.cross_entropy(self.model(self.inputs), self.targets)
        torch.autograd.grad(loss, [one for one in self.model.parameters() if one.requires_grad])

    def certificate(self) -> str:
        """Build the problem and bound five epochs; how far the bounds are apart, or the form that won."""
        program = self.kind is Program
        data = ("cross_entropy", self.inputs, self.targets) if program else (self.inputs, self.targets)
        try:
            found = self.kind(self.model, *data).certificate(self.lr, EPOCHS)  # type: ignore[arg-type]
        except NoCertificate:
            return "none"
        return f"{found.error_bound / found.lower_bound - 1:.1g}"

    def tube(self) -> None:
        """The tube of a network alone."""
        FeedForward(self.model, self.inputs, self.targets).certificate(self.lr, EPOCHS, forms=["tube"])


def chain(widths: list[int], samples: int, lr: float, seed: int = 0) -> Problem:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inner, outer in itertools.pairwise(widths):
        layers += [nn.Linear(inner, outer), nn.Tanh()]
    inputs = torch.rand(samples, widths[0], dtype=torch.float64)
    name = f"chain {'-'.join(map(str, widths))}, {samples} samples"
    return Problem(name, nn.Sequential(*layers[:-1]).double(), inputs, torch.arange(samples) % widths[-1], lr)


def residual(samples: int) -> Problem:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3, padding=1))
    stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Tanh())
    model = nn.Sequential(*stem, Block(body), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(128, 10)).double()
    inputs = torch.rand(samples, 1, 8, 8, dtype=torch.float64)
    return Problem(f"residual convolutions, {samples} samples", model, inputs, torch.arange(samples) % 10, 1e-4)


def convolution(samples: int) -> Problem:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 10)
    inputs = torch.rand(samples, 1, 8, 8, dtype=torch.float64)
    name = f"two convolutions, {samples} samples"
    return Problem(name, nn.Sequential(*layers).double(), inputs, torch.arange(samples) % 10, 1e-3)


def language(samples: int, width: int = 16, length: int = 8, depth: int = 2) -> Problem:
    torch.manual_seed(0)
    tokens = torch.randint(27, (samples, length + 1))
    model = LanguageModel(27, width, length, depth).double()
    name = f"GPT, {depth} blocks of {width}, {length} tokens, {samples} samples"
    return Problem(name, model, tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), 0.01, Program)


def vision(samples: int, width: int = 8, tokens: int = 8, depth: int = 1) -> Problem:
    torch.manual_seed(0)
    inputs = torch.randn(samples, tokens, width, dtype=torch.float64)
    name = f"transformer, {depth} blocks of {width}, {tokens} tokens, {samples} samples"
    return Problem(name, Transformer(width, 2, depth).double(), inputs, torch.arange(samples) % 3, 0.01, Program)


def suite_vit(samples: int) -> Problem:
    (recipe,) = load_recipes("suite-vit", ("digits",))
    inputs, targets = recipe.train.batch(0, samples)
    return Problem(f"suite-vit, {samples} sample", recipe.model.double(), inputs.double(), targets, 2e-3, Program)


def reference() -> Problem:
    task = reference_tasks()[0]
    return Problem(f"digits MLP, {len(task.inputs)} samples", task.model, task.inputs, task.targets, 1e-3)


CASES: dict[str, Callable[[], Problem]] = {
    "digits": reference,
    "chain": lambda: chain([784, 256, 128, 10], 200, 1e-3),
    "residual": lambda: residual(100),
    "convolution": lambda: convolution(100),
    "transformer": lambda: vision(8),
    "language": lambda: language(8),
    "suite-vit": lambda: suite_vit(1),
}


def laws() -> Iterator[Problem]:
    for samples in (50, 200):
        yield chain([64, 32, 32, 10], samples, 1e-3)
    for depth in (3, 6, 12):
        yield chain([64, *[32] * (depth - 1), 10], 100, 1e-4)
    for width in (32, 128):
        yield chain([64, width, width, 10], 100, 1e-3)
    for samples in (2, 8):
        yield vision(samples)
    for depth in (1, 2):
        yield vision(4, depth=depth)
    for width in (8, 16):
        yield vision(4, width=width)
    for tokens in (4, 16):
        yield vision(4, tokens=tokens)


def processor_time(work: Callable[[], object], least: float = 0.0) -> float:
    """Seconds of the processor, of one call; of the best of as many as fill the least time."""
    best, begin = float("inf"), time.process_time()
    while best == float("inf") or time.process_time() - begin < least:
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


def row(problem: Problem) -> str:
    """One line of the table."""
    gradient = processor_time(problem.gradient, 0.5)
    told: list[str] = []
    seconds = processor_time(lambda: told.append(problem.certificate()))
    alone = processor_time(problem.tube) / gradient if problem.kind is FeedForward else seconds / gradient
    numbers = f"{problem.parameters}", f"{1e3 * gradient:.2f}", f"{seconds / gradient:.0f}", f"{alone:.0f}"
    return f"| {' | '.join([problem.name, *numbers, told[-1]])} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=CASES, action="append", help="some of the networks")
    parser.add_argument("--laws", action="store_true", help="how the cost grows")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for warm in (chain([4, 4, 2], 4, 0.1), vision(1, width=4, tokens=2)):
        warm.certificate()
    print("| problem | parameters | gradient, ms | all forms | tube alone | upper / lower - 1 |")
    print("| --- | --- | --- | --- | --- | --- |")
    for problem in laws() if given.laws else (CASES[name]() for name in given.only or CASES):
        print(row(problem), flush=True)


if __name__ == "__main__":
    main()
