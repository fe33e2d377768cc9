"""Time and memory of the report's pass over weight and gradient files, against a plain read and the naive script.

Run by hand: `python -m tests.benchmarks.bench_report_pass [--parameters 86_000_000] [--naive]`. It writes about 40
bytes a parameter to a temporary folder and deletes them. Each repetition runs in a process of its own, so that its
peak memory is its own; the cache is warm. The naive script needs 8 GB and minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.benchmarks.plain_files import read_files
from tests.benchmarks.timing import Figure
from tvgrad.files.tensors import TensorFile
from tvgrad.files.writing import write_tensors
from tvgrad.streaming.gram import gram_of
from tvgrad.streaming.rows import Vector
from tvgrad.vectors.parameters import group_names

EPOCHS = 5
WIDTH = 768


def shapes(parameters: int) -> dict[str, tuple[int, ...]]:
    """A transformer's blocks up to about that many parameters: matrices of several sizes, and small tensors."""
    block = {
        "attn.qkv.weight": (3 * WIDTH, WIDTH),
        "attn.qkv.bias": (3 * WIDTH,),
        "attn.proj.weight": (WIDTH, WIDTH),
        "attn.proj.bias": (WIDTH,),
        "norm1.weight": (WIDTH,),
        "norm1.bias": (WIDTH,),
        "norm2.weight": (WIDTH,),
        "norm2.bias": (WIDTH,),
        "mlp.fc1.weight": (4 * WIDTH, WIDTH),
        "mlp.fc1.bias": (4 * WIDTH,),
        "mlp.fc2.weight": (WIDTH, 4 * WIDTH),
        "mlp.fc2.bias": (WIDTH,),
    }
    per_block = 12 * WIDTH**2 + 13 * WIDTH
    blocks = max(1, parameters // per_block)
    return {f"blocks.{number}.{name}": shape for number in range(blocks) for name, shape in block.items()} | {
        "embed.weight": (max(1, parameters - blocks * per_block),)
    }


def write_files(folder: Path, parameters: int) -> None:
    """Write weights and gradients of epochs 0 .. 4: gradients decay, weights follow them with noise."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in shapes(parameters).items()}
    gradients = {name: torch.randn(w.shape, generator=generator) * 1e-3 for name, w in weights.items()}
    for epoch in range(EPOCHS):
        write_tensors(weights, folder / f"weights-{epoch}.safetensors")
        write_tensors(gradients, folder / f"gradient-{epoch}.safetensors")
        for name, gradient in gradients.items():
            weights[name] -= 0.1 * gradient
            gradient.mul_(0.8).add_(torch.randn(gradient.shape, generator=generator), alpha=2e-4)


def files_of(folder: Path) -> tuple[list[TensorFile], list[TensorFile]]:
    """The weight files and the gradient files."""
    kinds = ("weights", "gradient")
    weights, gradients = (
        [TensorFile(folder / f"{kind}-{epoch}.safetensors") for epoch in range(EPOCHS)] for kind in kinds
    )
    return weights, gradients


def plain_read(folder: Path) -> None:
    """Read every byte once."""
    read_files(sorted(folder.iterdir()))


def load(folder: Path) -> None:
    """Read one file after the other into fresh memory."""
    for path in sorted(folder.iterdir()):
        path.read_bytes()


def report(folder: Path) -> None:
    """What a report needs: gradients, task vectors, displacements, and projections on the first gradient."""
    weights, gradients = files_of(folder)
    later = range(1, EPOCHS)
    vectors = [Vector(f"g{epoch}", file) for epoch, file in enumerate(gradients)]
    vectors += [Vector(f"tau{epoch}", weights[epoch], weights[0]) for epoch in later]
    vectors += [Vector(f"d{epoch}", weights[epoch], weights[epoch - 1]) for epoch in later]
    gram_of(vectors, group_names(weights[0].names), projections=[(EPOCHS + epoch - 1, 0) for epoch in later])


def plain_vectors(folder: Path) -> None:
    """Ten vectors that lie in files as they are."""
    weights, gradients = files_of(folder)
    vectors = [Vector(file.path.name, file) for file in weights + gradients]
    gram_of(vectors, group_names(weights[0].names))


def naive(folder: Path) -> None:
    """Load everything, form task vectors, and compare all pairs of flat vectors."""
    weights, gradients = (
        [torch.cat([tensor.flatten() for tensor in file.read_all().values()]) for file in files]
        for files in files_of(folder)
    )
    vectors = [*gradients, *(later - weights[0] for later in weights[1:])]
    for left in vectors:
        left.norm()
        for right in vectors:
            torch.nn.functional.cosine_similarity(left, right, dim=0)


CASES = {"read": plain_read, "load": load, "report": report, "vectors": plain_vectors, "naive": naive}


def peak_memory() -> float:
    """Largest resident memory of this process so far, in GB.

    The kernel's own count where it tells: `getrusage` charges a process with the peak of the one that started it.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))) * 1024 / 1e9
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measure(case: str, folder: Path) -> dict[str, float]:
    """Run one case in a fresh process.

    Returns:
        Seconds without the start of the process, and peak resident memory in GB.
    """
    output = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.bench_report_pass", "--case", case, "--folder", str(folder)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    figures: dict[str, float] = json.loads(output)
    return figures


def figures(
    rounds: int, quick: bool = False, parameters: int = 86_000_000, with_naive: bool = True
) -> Iterator[Figure]:
    """Measure the pass on ten files.

    Args:
        rounds: repetitions of each case; the naive script runs once.
        quick: on small files, to see that all runs; the figures mean nothing.
        parameters: numbers in a file.
        with_naive: also the naive script.

    Yields:
        Figures with their goals.
    """
    parameters = 2_000_000 if quick else parameters
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Not in this process: children are charged with the peak memory of the process that starts them.
        arguments = ["--write", "--folder", name, "--parameters", str(parameters)]
        subprocess.run([sys.executable, "-m", "tests.benchmarks.bench_report_pass", *arguments], check=True)
        size = sum(path.stat().st_size for path in folder.iterdir()) / 1e9
        print(f"{size:.2f} GB in {2 * EPOCHS} files, {os.cpu_count()} cores, {rounds} rounds", flush=True)
        cases = ["read", "load", "report", "vectors"]
        # Cases take turns, so that a slow minute of the machine falls on all of them.
        runs = [{case: measure(case, folder) for case in cases} for _ in range(rounds)]
        if with_naive:
            cases.append("naive")
            once = measure("naive", folder)
            for run in runs:
                run["naive"] = once
    for case in cases:
        seconds = statistics.median(run[case]["seconds"] for run in runs)
        ratio = statistics.median(run[case]["seconds"] / run["read"]["seconds"] for run in runs)
        peak = max(run[case]["peak"] for run in runs)
        print(f"{case:8} {seconds:7.2f} s  {ratio:6.2f} x read  {peak:5.2f} GB peak", flush=True)
    size_words = f"10 files of {parameters / 1e6:.0f} M float32"

    def over(above: str, below: str) -> list[float]:
        return [run[above]["seconds"] / run[below]["seconds"] for run in runs]

    yield Figure(f"report pass, {size_words}", "plain read of the bytes", over("report", "read"), 2.5)
    yield Figure(f"inner products alone, {size_words}", "plain read of the bytes", over("vectors", "read"))
    yield Figure(f"peak memory of the report pass, {size_words}", "GB", [run["report"]["peak"] for run in runs], 0.3)
    if with_naive:
        yield Figure("load all and compare pairwise", "report pass", over("naive", "report"), 20, least=True)
        yield Figure("peak memory of load all and compare", "GB", [once["peak"]])


def main() -> None:
    """Measure all cases, or one in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=int, default=86_000_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--naive", action="store_true", help="also the naive script (minutes, 8 GB)")
    parser.add_argument("--case", choices=list(CASES))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--write", action="store_true", help="only write the files to --folder")
    options = parser.parse_args()
    if options.write:
        write_files(options.folder, options.parameters)
        return
    if options.case:
        start = time.perf_counter()
        CASES[options.case](options.folder)
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "peak": peak_memory()}))
        return
    for figure in figures(options.repeat, parameters=options.parameters, with_naive=options.naive):
        print(*figure.row, sep="; ")


if __name__ == "__main__":
    main()
