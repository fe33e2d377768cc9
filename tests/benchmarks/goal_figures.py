"""Figures with goals of the benchmarks that print reports of their own when they are run by hand."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.benchmarks import bench_certificate, bench_merging, bench_script_trace, bench_spectral
from tests.benchmarks.timing import Figure, paired, ratios
from tests.bounds.reference import reference_tasks
from tvgrad.bounds import FeedForward
from tvgrad.merging.measured_functions import MEASURED_METHODS
from tvgrad.problem.objective import Objective


def spectral(rounds: int, quick: bool) -> Iterator[Figure]:
    """Certified spectral norms beside `torch.linalg.matrix_norm`.

    Yields:
        A speed-up for each shape, and how far the certified value is above the norm.
    """
    from tvgrad.bounds.network.spectral_norm import spectral_norm

    excess = []
    for shape in bench_spectral.SHAPES[:2] if quick else bench_spectral.SHAPES:
        matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        excess.append(spectral_norm(matrix).bound / float(torch.linalg.svdvals(matrix)[0]) - 1)
        speed_ups = [bench_spectral.compare(matrix, 1)[2] for _ in range(rounds)]
        goal = 2.0 if max(shape) == 3072 else None
        what = f"certified spectral norm, {shape[0]}x{shape[1]} float64, speed-up"
        yield Figure(what, "torch.linalg.matrix_norm", speed_ups, goal, least=True)
    yield Figure("certified spectral norm, largest excess", "relative to the norm", [max(excess)], 1e-6)


def certificate(rounds: int, quick: bool) -> Iterator[Figure]:
    """Time of a certificate for all digits, in full-batch gradients.

    Yields:
        One figure a learning rate.
    """
    task = next(iter(reference_tasks()))
    copies = 1 if quick else -(-bench_certificate.SAMPLES // len(task.inputs))
    inputs, targets = task.inputs.repeat(copies, 1), task.targets.repeat(copies)
    inputs, targets = inputs[: bench_certificate.SAMPLES], targets[: bench_certificate.SAMPLES]
    objective = Objective(task.model, torch.nn.CrossEntropyLoss(), (inputs, targets))
    for rate in (1e-4, 1e-2):

        def certify(rate: float = rate) -> object:
            return FeedForward(task.model, inputs, targets).certificate(rate, bench_certificate.EPOCHS)

        timings = paired({"gradient": objective.gradient, "certificate": certify}, rounds)
        values = ratios(timings, "certificate", "gradient") or []
        what = f"a priori certificate, {len(inputs)} samples, rate {rate:g}"
        yield Figure(what, "one full-batch gradient", values, 300)


def script_trace(rounds: int, quick: bool) -> Iterator[Figure]:
    """Wall time of scripts with and without `tvgrad trace`, and the stall at the end of an epoch.

    Yields:
        The ratio and what is paid once for each script, and the stall. Scripts whose epochs take seconds have a goal.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in ("mlp",) if quick else bench_script_trace.KINDS:
            costs = bench_script_trace.overhead(folder, kind, rounds)
            what = f"unchanged script, traced, {kind}, epochs of {statistics.median(costs.epochs):.1f} s"
            goal = None if kind.startswith("mlp") else 1.03
            yield Figure(f"{what}: wall time", "the same untraced", costs.walls, goal)
            yield Figure(f"{what}: once", "seconds", costs.once)
        megabytes = 8 if quick else 343
        ends, _, raw, _ = bench_script_trace.stalls(folder, megabytes, 1 if quick else 6)
        what = f"unchanged script stands still at the end of an epoch, {megabytes} MB"
        yield Figure(what, "raw write, flushed", [end / raw for end in ends], 0.15)


def every_merge(rounds: int, quick: bool) -> Iterator[Figure]:
    """Every method that sees files alone, on models of few enough parameters for those that decompose matrices.

    Yields:
        Processor time over that of reading and writing as many bytes, measurements included.
    """
    models, parameters = (4, 200_000) if quick else (4, 5_000_000)
    kinds = {"write": bench_merging.every_method(models), "write measured": list(MEASURED_METHODS)}
    for written, chosen in kinds.items():
        with tempfile.TemporaryDirectory() as name:
            words = ["--models", str(models), "--parameters", str(parameters), "--case", written, "--folder", name]
            subprocess.run([sys.executable, "-m", bench_merging.__name__, *words], check=True)
            cases = ["copy", *chosen]
            runs = [{case: bench_merging.run_apart(case, Path(name)) for case in cases} for _ in range(rounds)]
        for method in chosen:
            values = [run[method]["cpu"] / run["copy"]["cpu"] for run in runs]
            print(
                f"{method:20} {statistics.median(run[method]['cpu'] for run in runs):7.2f} s of processors", flush=True
            )
            yield Figure(
                f"merge by {method}, {models} models of {parameters / 1e6:.2g} M float32",
                "processor time of reading and writing the bytes",
                values,
            )


def merging(rounds: int, quick: bool) -> Iterator[Figure]:
    """Merging ten models, beside reading and writing as many bytes.

    Yields:
        Time of each method, with a goal for the elementwise ones, and the largest peak memory.
    """
    models, parameters = (3, 500_000) if quick else (10, 86_000_000)
    cases = ["copy", *bench_merging.MEASURED]
    with tempfile.TemporaryDirectory() as name:
        words = ["--models", str(models), "--parameters", str(parameters), "--case", "write", "--folder", name]
        subprocess.run([sys.executable, "-m", bench_merging.__name__, *words], check=True)
        runs = [{case: bench_merging.run_apart(case, Path(name)) for case in cases} for _ in range(rounds)]
    size = f"{models} models of {parameters / 1e6:.2g} M float32"
    for method in bench_merging.MEASURED:
        values = [run[method]["seconds"] / run["copy"]["seconds"] for run in runs]
        print(f"{method:16} {statistics.median(run[method]['seconds'] for run in runs):7.2f} s", flush=True)
        goal = 2.5 if method in bench_merging.ELEMENTWISE else None
        yield Figure(f"merge by {method}, {size}", "read and write of the bytes", values, goal)
    peaks = [max(run[method]["peak"] for method in bench_merging.MEASURED) for run in runs]
    yield Figure(f"peak memory of a merge, {size}", "GB", peaks, 1.5)
