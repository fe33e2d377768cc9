"""Gradients of single samples and Fisher diagonals beside backpack and `torch.func.vmap`, at equal chunks.

Peak memory is that of a process of its own for each. Peers that are not installed are left out; `make bench` installs
them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import nn

from tests.benchmarks.bench_derivatives import mlp
from tests.benchmarks.bench_report_pass import peak_memory
from tests.benchmarks.timing import Figure, markdown, paired, ratios
from tvgrad.problem.objective import Objective
from tvgrad.recipes.suite import VisionTransformer

CHUNK = 32


def convolutions() -> nn.Module:
    """Two convolutions and a linear layer: 20,000 parameters."""
    first = (nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    second = (nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(32 * 49, 10))


def vit() -> nn.Module:
    """The suite's vision transformer with a head: 61,000 parameters."""
    return nn.Sequential(VisionTransformer(), nn.Linear(VisionTransformer.WIDTH, 10))


MODELS = {"MLP": mlp, "convolutions": convolutions, "ViT": vit}


def gradients(name: str, samples: int) -> dict[str, Callable[[], object]]:
    """Every sample's gradient, by tvgrad, by vmap and, for modules that it knows, by backpack.

    Args:
        name: of `MODELS`.
        samples: how many.

    Returns:
        Competitor -> what it does.
    """
    torch.manual_seed(0)
    model = MODELS[name]()
    inputs, targets = torch.randn(samples, 1, 28, 28), torch.randint(10, (samples,))
    objective = Objective(model, nn.CrossEntropyLoss(), (inputs, targets), chunk_size=CHUNK)
    weights = {key: tensor.detach() for key, tensor in model.named_parameters()}

    def alone(point: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(torch.func.functional_call(model, point, (x[None],)), y[None])

    def mapped() -> None:
        derive = torch.func.vmap(torch.func.grad(alone), (None, 0, 0))
        for start in range(0, samples, CHUNK):
            derive(weights, inputs[start : start + CHUNK], targets[start : start + CHUNK])

    def ours() -> None:
        for _ in objective.sample_gradients(chunk_size=CHUNK):
            pass

    found: dict[str, Callable[[], object]] = {"tvgrad": ours, "vmap": mapped}
    if name == "ViT":
        return found
    try:
        from backpack import backpack, extend, extensions
    except ImportError:
        return found
    extended, loss = extend(MODELS[name]()), extend(nn.CrossEntropyLoss(reduction="sum"))

    def pack(extension: Callable[[], object], attribute: str) -> Callable[[], None]:
        def run() -> None:
            for start in range(0, samples, CHUNK):
                with backpack(extension()):
                    loss(extended(inputs[start : start + CHUNK]), targets[start : start + CHUNK]).backward()
                for parameter in extended.parameters():
                    parameter.grad = None
                    delattr(parameter, attribute)

        return run

    found["backpack"] = pack(extensions.BatchGrad, "grad_batch")
    found["tvgrad, exact Fisher"] = objective.fisher_diagonal
    # Of cross-entropy the diagonal of the Gauss-Newton matrix is that of Fisher's.
    found["backpack, exact Fisher"] = pack(extensions.DiagGGNExact, "diag_ggn_exact")
    return found


def peak(name: str, competitor: str) -> float:
    """Gigabytes of a process that does nothing else.

    Args:
        name: of `MODELS`.
        competitor: of `gradients`.

    Returns:
        Its peak.
    """
    command = [sys.executable, "-m", "tests.benchmarks.bench_samples", "--peak", name, competitor]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def figures(rounds: int, quick: bool = False) -> Iterator[Figure]:
    """Measure.

    Args:
        rounds: of each competitor.
        quick: on little data, to see that all runs; the figures mean nothing.

    Yields:
        Figures with their goals.
    """
    warnings.simplefilter("ignore")
    samples = CHUNK if quick else 8 * CHUNK
    for name in MODELS:
        competitors = gradients(name, samples)
        timings = paired(competitors, rounds)
        print(markdown(f"Gradients of {samples} samples, {name}, chunk {CHUNK}", timings), flush=True)
        for peer, goal in (("backpack", 1.5), ("vmap", None)):
            values = ratios(timings, "tvgrad", peer)
            if values is not None:
                yield Figure(f"gradients of single samples, {name}", peer, values, goal)
        fisher = ratios(timings, "tvgrad, exact Fisher", "backpack, exact Fisher")
        if fisher is not None:
            yield Figure(f"exact Fisher diagonal, {name}", "backpack", fisher)
        if "backpack" in competitors and not quick:
            values = [peak(name, "tvgrad") / peak(name, "backpack")]
            yield Figure(f"gradients of single samples, {name}, peak memory", "backpack", values)


def main() -> None:
    """Print the tables, or one competitor's peak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--peak", nargs=2)
    options = parser.parse_args()
    if options.peak:
        name, competitor = options.peak
        gradients(name, 8 * CHUNK)[competitor]()
        print(peak_memory())
        return
    for figure in figures(options.rounds, options.quick):
        print(*figure.row, sep="; ")


if __name__ == "__main__":
    main()
