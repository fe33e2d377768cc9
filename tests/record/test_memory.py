"""The memory of a trace, in copies of the weights: a copy more than docs/concepts/trust.md states fails here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import sys, tempfile
from pathlib import Path
import torch
import tvgrad
from torch import nn
from tvgrad.problem import count
from tvgrad.record.options import TraceOptions
from tvgrad.record.training_loop import prepare, trace


class Bag(nn.Module):
    def __init__(self, rows):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.out = nn.Embedding(rows, 1000), nn.Linear(1000, 3)

    def forward(self, words):
        return self.out(self.words(words).mean(1))


def bytes_of(what):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(what))


def traced(rows, **options):
    data = torch.arange(48).reshape(12, 4) % 20, torch.arange(12) % 3
    recipe = tvgrad.Recipe(Bag(rows), nn.CrossEntropyLoss(), data, name="bag", lr=0.1)
    with tempfile.TemporaryDirectory() as folder:
        trace(prepare(recipe, TraceOptions(epochs=2, **options)), Path(folder, "run"), lambda progress: None)


def plain(rows):
    model = Bag(rows)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.arange(48).reshape(12, 4) % 20).square().mean().backward()
        optimizer.step()


case = {
    "plain": plain,
    "one chunk": lambda rows: traced(rows, chunk_size=12),
    "chunks": lambda rows: traced(rows, chunk_size=4),
    "wide": lambda rows: (setattr(count, "WIDEST", 0), traced(rows, chunk_size=4)),
}[sys.argv[1]]
# Weights of 80 MB: memory of over 32 MiB goes back to the system at once, so that a peak tells what is held.
case(20)  # what is imported and allocated once
before = bytes_of("VmRSS")
case(20_000)
print((bytes_of("VmHWM") - before) / 80e6)
"""

LAW = {"plain": 2, "one chunk": 6, "chunks": 6, "wide": 5}
"""Copies in float32. With more parameters than a float64 copy is made of ("wide"): the recipe's and the trained
weights, a gradient, and two for the float64 sum of the chunks. Else the checks before it hold the most: the two, a
float64 copy and a float64 gradient (two each)."""


def peak(case: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, case], capture_output=True, text=True, timeout=300, check=True
    )
    return float(done.stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.slow
@pytest.mark.parametrize("case", LAW)
def test_the_copies_that_a_trace_holds(case: str) -> None:
    assert LAW[case] - 0.5 < peak(case) < LAW[case] + 0.5


def test_an_autograd_that_gives_one_tensor_twice_makes_two_gradients() -> None:
    """The single chunk's gradient is handed on without a copy, and an optimizer may change one of them in place."""
    import torch
    from torch import nn

    import tvgrad

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.a + self.b) * x

    objective = tvgrad.Objective(Sum(), nn.MSELoss(), (torch.ones(4, 3), torch.zeros(4, 3)), chunk_size=4)
    gradient = objective.gradient()
    gradient["a"].zero_()
    assert gradient["b"].tolist() == pytest.approx([4 / 3] * 3)
