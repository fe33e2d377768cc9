"""Processor time of drawing a report, against the pass over the files that its tables come from.

Run by hand: `python -m tests.benchmarks.bench_drawing [--parameters 86_000_000] [--rounds 1]`. It traces ten epochs of
gradient descent on a quadratic loss, with full-batch gradients, in the shapes of a transformer: 88 bytes a parameter,
in a temporary folder that is deleted. Processor time, because other programs and the disk take no part in the ratio.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from tests.benchmarks.timing import Figure
from tvgrad.problem.recipe import Recipe
from tvgrad.record.options import TraceOptions
from tvgrad.record.training_loop import prepare, trace
from tvgrad.store.run import Run

EPOCHS = 10
WIDTH = 768
PER_BLOCK = 12 * WIDTH**2 + 13 * WIDTH


class Transformer(nn.Module):
    """Blocks of a transformer, of which only the shapes matter, up to about that many parameters."""

    def __init__(self, parameters: int) -> None:
        """Make the blocks.

        Args:
            parameters: how many numbers.
        """
        super().__init__()
        blocks = max(1, parameters // PER_BLOCK)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 12, 4 * WIDTH, dropout=0.0) for _ in range(blocks)
        )
        self.embed = nn.Parameter(0.05 * torch.randn(max(1, parameters - blocks * PER_BLOCK)))


def quadratic(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """A loss for each sample whose curvature differs from tensor to tensor, and whose gradient is quickly had."""
    sizes = enumerate(model.parameters())
    return batch[0] * torch.stack([(1 + place % 5) / 2 * (weights**2).sum() for place, weights in sizes]).sum()


def traced(folder: Path, parameters: int) -> Run:
    """Trace ten epochs.

    Args:
        folder: where to.
        parameters: how many numbers.

    Returns:
        The run.
    """
    torch.manual_seed(0)
    data = torch.ones(2), torch.zeros(2)
    recipe = Recipe(
        Transformer(parameters), lambda output, _: output.mean(), data, forward=quadratic, name="quadratic", lr=0.02,
        epochs=EPOCHS,
    )  # fmt: skip
    return trace(prepare(recipe, TraceOptions()), folder / "run")


def figures(rounds: int, quick: bool = False, parameters: int = 86_000_000) -> Iterator[Figure]:
    """Measure the pass and the drawing of one run, one after the other.

    Args:
        rounds: repetitions.
        quick: on a small model, to see that all runs; the figures mean nothing.
        parameters: how many numbers.

    Yields:
        The ratio with its goal, and the seconds of both.
    """
    from tvgrad.report.publishing import publish
    from tvgrad.report.tables import run_tables

    parameters = PER_BLOCK if quick else parameters
    passes, drawings = [], []
    with tempfile.TemporaryDirectory() as name:
        run = traced(Path(name), parameters)
        for number in range(rounds):
            start = time.process_time()
            made = run_tables([run])
            middle = time.process_time()
            publish(made, [run], Path(name) / f"report-{number}", ["csv", "md", "html"])
            passes.append(middle - start)
            drawings.append(time.process_time() - middle)
    what = f"{sum(weights.numel() for weights in Transformer(parameters).parameters()) / 1e6:.0f} M float32, ten epochs"
    ratios = [drawn / taken for drawn, taken in zip(drawings, passes, strict=True)]
    yield Figure(f"drawing all figures and the page, {what}", "Gram pass over the run's files", ratios, 1.0)
    yield Figure(f"Gram pass over a run, {what}", "seconds of processors", passes)
    yield Figure(f"drawing all figures and the page, {what}", "seconds of processors", drawings)


def main() -> None:
    """Measure by hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=int, default=86_000_000)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    for figure in figures(options.rounds, parameters=options.parameters):
        print(*figure.row, sep="; ")


if __name__ == "__main__":
    main()
