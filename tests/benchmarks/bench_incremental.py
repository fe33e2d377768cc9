"""What an epoch more costs a report, what twice the epochs cost it, and from a cold cache.

Run by hand: `python -m tests.benchmarks.bench_incremental [--parameters 86_000_000] [--rounds 1] [--epochs 10]`. It
traces twice the epochs of gradient descent on a quadratic loss, with full-batch gradients: 8 bytes a parameter and
epoch, in a temporary folder that is deleted. Reports are made in processes of their own, on the run as it was after
fewer epochs. For a cold cache the system is asked to forget the files' pages first.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.bench_drawing import PER_BLOCK, Transformer, quadratic
from tests.benchmarks.bench_report_pass import peak_memory
from tests.benchmarks.plain_files import read_files
from tests.benchmarks.timing import Figure
from tvgrad.problem.recipe import Recipe
from tvgrad.record.options import TraceOptions
from tvgrad.record.training_loop import prepare, trace

EXTENTS = ("tables", "figures")


def traced(folder: Path, parameters: int, epochs: int) -> Path:
    """Trace a run.

    Args:
        folder: where to.
        parameters: how many numbers.
        epochs: how many epochs.

    Returns:
        Its directory.
    """
    torch.manual_seed(0)
    data = torch.ones(2), torch.zeros(2)
    recipe = Recipe(
        Transformer(parameters), lambda output, _: output.mean(), data, forward=quadratic, name="quadratic", lr=0.02,
        epochs=epochs,
    )  # fmt: skip
    return trace(prepare(recipe, TraceOptions()), folder / "run").root


def shorten(root: Path, epochs: int) -> list[Path]:
    """Make run.json say what it said after so many epochs.

    Args:
        root: the run.
        epochs: how many.

    Returns:
        The tensor files that it lists then.
    """
    whole = root.parent / "whole.json"
    if not whole.exists():
        whole.write_bytes((root / "run.json").read_bytes())
    content: dict[str, Any] = json.loads(whole.read_text(encoding="utf-8"))
    content["points"] = [point for point in content["points"] if point["number"] <= epochs]
    (root / "run.json").write_text(json.dumps(content), encoding="utf-8")
    entries = [point["files"].get(kind) for point in content["points"] for kind in ("weights", "gradient")]
    return [root / path for entry in entries if entry for path, _, _ in entry["parts"]]


def forget(paths: list[Path]) -> None:
    """Ask the system to drop files from its cache.

    Args:
        paths: the files.
    """
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def report(root: Path, extent: str, kept: bool) -> dict[str, float]:
    """Make the tables of a run, in this process.

    Args:
        root: the run.
        extent: `tables` or `figures`.
        kept: whether products are kept.

    Returns:
        Seconds, seconds of processors, and peak memory in GB.
    """
    from tvgrad.report.tables import run_tables
    from tvgrad.report.wanted_products import kept_products
    from tvgrad.store.run import Run

    run = Run.open(root)
    start, busy = time.perf_counter(), time.process_time()
    run_tables([run], extent=extent, kept=kept_products([run]) if kept else None)  # type: ignore[arg-type]
    return {
        "seconds": time.perf_counter() - start,
        "processors": time.process_time() - busy,
        "peak": peak_memory(),
    }


def measure(root: Path, epochs: int, extent: str, cache: Path | None, cold: bool) -> dict[str, float]:
    """Report on a run after some epochs, in a fresh process.

    Args:
        root: the run.
        epochs: how many.
        extent: `tables` or `figures`.
        cache: where products are kept; None keeps none.
        cold: whether the files are dropped from the system's cache first, or read into it.

    Returns:
        As `report`.
    """
    files = shorten(root, epochs)
    if cold:
        forget(files)
    else:
        read_files(files)
    words = ["--case", str(root), "--extent", extent, *(["--kept"] if cache else [])]
    environment = {**os.environ, **({"TVGRAD_CACHE": str(cache)} if cache else {})}
    made = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.bench_incremental", *words],
        check=True, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    found: dict[str, float] = json.loads(made.stdout.splitlines()[-1])
    print(f"{epochs} epochs, {extent}, kept {cache is not None}, cold {cold}: {found}", flush=True)
    return found


def figures(
    rounds: int,
    quick: bool = False,
    parameters: int = 86_000_000,
    epochs: int = 10,
    colds: tuple[bool, ...] = (False, True),
) -> Iterator[Figure]:
    """Measure reports on one run.

    Args:
        rounds: repetitions.
        quick: on a small model, to see that all runs; the figures mean nothing.
        parameters: how many numbers.
        epochs: of the first report.
        colds: with which caches.

    Yields:
        The ratios, with their goals.
    """
    parameters = PER_BLOCK if quick else parameters
    with tempfile.TemporaryDirectory() as name:
        root = traced(Path(name), parameters, 2 * epochs)
        for cold in colds:
            for extent in EXTENTS:
                what = f"report for {extent}, {parameters / 1e6:.0f} M float32, {'cold' if cold else 'warm'} cache"
                first, more, plain, twice = [], [], [], []
                for number in range(rounds):
                    cache = Path(name) / f"cache-{cold}-{extent}-{number}"
                    first.append(measure(root, epochs, extent, cache, cold))
                    more.append(measure(root, epochs + 1, extent, cache, cold))
                    plain.append(measure(root, epochs, extent, None, cold))
                    twice.append(measure(root, 2 * epochs, extent, None, cold))
                for unit in ("seconds", "processors"):
                    ratios = [b[unit] / a[unit] for a, b in zip(first, more, strict=True)]
                    yield Figure(f"{what}: an epoch more, {unit}", "those of the first report", ratios, 0.15)
                    ratios = [b[unit] / a[unit] for a, b in zip(plain, twice, strict=True)]
                    yield Figure(f"{what}: twice the epochs, {unit}", "those of once", ratios, 2.1)
                ratios = [b["peak"] / a["peak"] for a, b in zip(plain, twice, strict=True)]
                yield Figure(f"{what}: twice the epochs, peak memory", "that of once", ratios, 1.1)


def main() -> None:
    """Measure by hand, or one report in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=int, default=86_000_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--case", type=Path)
    parser.add_argument("--extent", choices=EXTENTS, default="tables")
    parser.add_argument("--kept", action="store_true")
    parser.add_argument("--warm", action="store_true", help="not from a cold cache")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(report(options.case, options.extent, options.kept)))
        return
    colds = (False,) if options.warm else (False, True)
    for figure in figures(options.rounds, parameters=options.parameters, epochs=options.epochs, colds=colds):
        print(*figure.row, sep="; ")


if __name__ == "__main__":
    main()
