"""Time and peak memory of merging large models, against reading and writing the same bytes.

Run by hand: `python -m tests.benchmarks.bench_merging [--models 10] [--parameters 86_000_000] [--repeat 3]`. It writes
4 bytes a parameter and model to a temporary folder and deletes them. Each repetition runs in a process of its own, so
that its peak memory is its own; the cache is warm. Processor time, which other programs disturb less, stands beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from tests.benchmarks.bench_report_pass import shapes
from tests.benchmarks.plain_files import read_files, write_and_delete
from tvgrad.files.tensors import TensorFile
from tvgrad.files.writing import write_tensors
from tvgrad.merging import METHODS, load_measurements, measure, merge_files
from tvgrad.merging.measured_functions import MEASURED_METHODS
from tvgrad.problem.objective import Objective

ELEMENTWISE = ("mean", "task_arithmetic", "dare", "median")
MEASURED = (*ELEMENTWISE, "ties")  # ties ranks each tensor's entries before it merges them: whole tensors, twice

DEPTH, SAMPLES, OUTPUTS, MEASUREMENTS = 5, 8, 4, "measurements.safetensors"


def every_method(models: int) -> list[str]:
    """Names of the methods that are defined for so many models."""
    return [
        name for name, kind in METHODS.items() if kind.least <= models and (kind.most is None or models <= kind.most)
    ]


def write_measured(folder: Path, models: int, parameters: int) -> None:
    """Write a multilayer perceptron, models near it, and what methods measure of as many tasks of a few samples."""
    generator, width = torch.Generator().manual_seed(0), round(math.sqrt(parameters / DEPTH))
    layers = [*(torch.nn.Linear(width, width) for _ in range(DEPTH)), torch.nn.Linear(width, OUTPUTS)]
    model = torch.nn.Sequential(*layers)
    start = {name: weight.detach() for name, weight in model.named_parameters()}
    write_tensors(start, folder / "pretrained.safetensors")
    objectives, tuned = [], []
    for number in range(models):
        tuned.append({name: w + torch.randn(w.shape, generator=generator) * 1e-3 for name, w in start.items()})
        write_tensors(tuned[-1], folder / f"tuned-{number}.safetensors")
        data = torch.randn(SAMPLES, width, generator=generator), torch.randn(SAMPLES, OUTPUTS, generator=generator)
        objectives.append(Objective(model, torch.nn.MSELoss(), data, device="cpu"))
    names, curved = [f"tuned-{number}" for number in range(models)], np.stack([np.eye(models)] * models)
    measure(names, objectives, tuned, slopes=-np.eye(models), pairs=curved).save(folder / MEASUREMENTS)


def write_models(folder: Path, models: int, parameters: int) -> None:
    """Write pretrained weights and models near them."""
    generator = torch.Generator().manual_seed(0)
    start = {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in shapes(parameters).items()}
    write_tensors(start, folder / "pretrained.safetensors")
    for number in range(models):
        tuned = {name: w + torch.randn(w.shape, generator=generator) * 1e-3 for name, w in start.items()}
        write_tensors(tuned, folder / f"tuned-{number}.safetensors")


def files_of(folder: Path) -> list[Path]:
    """The pretrained file, then the tuned ones."""
    return [folder / "pretrained.safetensors", *sorted(folder.glob("tuned-*.safetensors"))]


def copy_bytes(folder: Path) -> None:
    """Read every byte once, and write as many as one model has, flushed to the disk."""
    paths = files_of(folder)
    measured = folder / MEASUREMENTS
    read_files([*paths, measured] if measured.exists() else paths)
    write_and_delete(folder / "copy", paths[0].stat().st_size)


def merge(folder: Path, method: str) -> None:
    """Merge all models into one file."""
    pretrained, *tuned = (TensorFile(path) for path in files_of(folder))
    made = MEASURED_METHODS[method](load_measurements(folder / MEASUREMENTS)) if method in MEASURED_METHODS else None
    out = merge_files(made or METHODS[method](), pretrained, tuned, alpha=0.3, out=folder / "merged.safetensors")
    out.unlink()


def run_apart(case: str, folder: Path) -> dict[str, float]:
    """Run one case in a fresh process: seconds without its start, and peak resident memory in GB."""
    words = [sys.executable, "-m", "tests.benchmarks.bench_merging", "--case", case, "--folder", str(folder)]
    figures: dict[str, float] = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    return figures


def main() -> None:
    """Measure all cases, or one in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=10)
    parser.add_argument("--parameters", type=int, default=86_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--methods", default=",".join(MEASURED), help="names of methods, or all")
    parser.add_argument("--case")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.case in ("write", "write measured"):
        write = write_models if options.case == "write" else write_measured
        write(options.folder, options.models, options.parameters)
        return
    if options.case:
        start, cpu = time.perf_counter(), time.process_time()
        copy_bytes(options.folder) if options.case == "copy" else merge(options.folder, options.case)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        print(json.dumps({"seconds": seconds, "cpu": time.process_time() - cpu, "peak": peak}))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Not in this process: children are charged with the peak memory of the process that starts them.
        size = ["--models", str(options.models), "--parameters", str(options.parameters)]
        subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.bench_merging", "--case", "write", "--folder", name, *size],
            check=True,
        )
        chosen = every_method(options.models) if options.methods == "all" else options.methods.split(",")
        cases = ["copy", *chosen]
        runs = [{case: run_apart(case, folder) for case in cases} for _ in range(options.repeat)]
        total = sum(path.stat().st_size for path in folder.iterdir()) / 1e9
        print(f"{total:.2f} GB in {options.models + 1} files, {os.cpu_count()} cores, median of {options.repeat}")
        for case in cases:
            seconds = statistics.median(run[case]["seconds"] for run in runs)
            ratio = statistics.median(run[case]["seconds"] / run["copy"]["seconds"] for run in runs)
            peak = max(run[case]["peak"] for run in runs)
            cpu = min(run[case]["cpu"] for run in runs) / min(run["copy"]["cpu"] for run in runs)
            print(
                f"{case:20} {seconds:7.2f} s  {ratio:6.2f} x read and write ({cpu:5.2f} x in processor time)  "
                f"{peak:5.2f} GB peak"
            )


if __name__ == "__main__":
    main()
