"""Certified spectral norms against torch.linalg.matrix_norm(ord=2): medians of paired runs, same thread count."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from tvgrad.bounds.network.spectral_norm import spectral_norm, spectral_norms

SHAPES = [(32, 64), (512, 784), (768, 3072), (3072, 768), (1024, 1024)]


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(matrix: torch.Tensor, runs: int) -> tuple[float, float, float]:
    """Median seconds of both, and the median of the paired ratios."""
    pairs = []
    for _ in range(runs + 1):
        ours = seconds(lambda: spectral_norm(matrix))
        theirs = seconds(lambda: torch.linalg.matrix_norm(matrix, ord=2))
        pairs.append((ours, theirs))
    pairs = pairs[1:]
    return (
        statistics.median(ours for ours, _ in pairs),
        statistics.median(theirs for _, theirs in pairs),
        statistics.median(theirs / ours for ours, theirs in pairs),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    print(f"threads: {torch.get_num_threads()}")
    print(f"{'shape':>12} {'dtype':>8} {'kind':>11} {'ours ms':>9} {'torch ms':>9} {'ratio':>6} {'excess':>9}  method")
    for shape in SHAPES:
        for dtype in (torch.float32, torch.float64):
            for kind in ("gaussian", "orthogonal"):
                generator = torch.Generator().manual_seed(0)
                matrix = torch.randn(shape, dtype=torch.float64, generator=generator)
                if kind == "orthogonal":
                    if max(shape) > 1024:
                        continue
                    matrix = torch.linalg.qr(matrix if shape[0] >= shape[1] else matrix.mT)[0]
                matrix = matrix.to(dtype)
                norm = spectral_norm(matrix)
                truth = float(torch.linalg.svdvals(matrix.double())[0])
                ours, theirs, ratio = compare(matrix, arguments.runs)
                print(
                    f"{shape[0]:>5}x{shape[1]:<6} {str(dtype)[6:]:>8} {kind:>11} {ours * 1e3:9.2f} {theirs * 1e3:9.2f} "
                    f"{ratio:6.1f} {norm.bound / truth - 1:9.1e}  {norm.method}"
                )
    batch = torch.randn(1797, 10, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bounds, truth_batch = spectral_norms(batch), torch.linalg.matrix_norm(batch, ord=2)
    ours = statistics.median(seconds(lambda: spectral_norms(batch)) for _ in range(arguments.runs))
    theirs = statistics.median(seconds(lambda: torch.linalg.matrix_norm(batch, ord=2)) for _ in range(arguments.runs))
    print(
        f"batch of 1797 10x32: {ours * 1e3:.1f} ms, matrix_norm {theirs * 1e3:.1f} ms, largest excess "
        f"{float((bounds / truth_batch).max()) - 1:.1e}"
    )


if __name__ == "__main__":
    main()
