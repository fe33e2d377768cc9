"""What recording costs: seconds that training stands still, and seconds until all is on the disk, in raw writes.

Run by hand: `python -m tests.benchmarks.bench_recording [--megabytes 343]`. It writes a few times that to a temporary
folder and deletes it. A raw write is one file from memory, flushed to the disk, as every recorded file is; without the
flush it is a copy in memory, faster or slower by what else the system has in its cache, and stands beside. Competitors
take turns; between points the writer thread has time to finish, as it has while a real epoch is trained.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.benchmarks.bench_report_pass import shapes
from tests.benchmarks.timing import Figure
from tvgrad.files.writing import write_tensors
from tvgrad.store.background import BackgroundWriter
from tvgrad.store.manifest import Manifest, Parameter
from tvgrad.store.writer import RunWriter

BUFFER = 1 << 24


def seconds(work: object) -> float:
    """Time of one call."""
    began = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - began


def raw_write(content: memoryview, path: Path, flush: bool = False) -> None:
    """Write bytes from memory."""
    with open(path, "wb", buffering=0) as handle:
        for start in range(0, len(content), BUFFER):
            handle.write(content[start : start + BUFFER])
        if flush:
            os.fsync(handle.fileno())


def opened(directory: Path, weights: dict[str, torch.Tensor]) -> BackgroundWriter:
    """A run with a writer thread."""
    parameters = {name: Parameter(tuple(tensor.shape), "float32", "all") for name, tensor in weights.items()}
    manifest = Manifest({"name": "benchmark"}, "epoch", parameters)
    return BackgroundWriter(lambda: RunWriter.create(directory, manifest, {}))


def figures(rounds: int, quick: bool = False, megabytes: float = 343) -> Iterator[Figure]:
    """Measure.

    Args:
        rounds: points that are counted.
        quick: few bytes, to see that all runs; the figures mean nothing.
        megabytes: of weights.

    Yields:
        Figures with their goals.
    """
    megabytes = 8 if quick else megabytes
    generator = torch.Generator().manual_seed(0)
    wanted = shapes(int(megabytes * 1e6 / 4))
    weights = {name: torch.randn(shape, generator=generator) for name, shape in wanted.items()}
    # As many bytes that no file system can compress, in one piece.
    content = memoryview(torch.cat([tensor.flatten() for tensor in weights.values()]).numpy()).cast("B")
    taken: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        writer = opened(folder / "run", weights)
        for number in range(rounds + 1):  # the first allocates buffers and is not counted
            one = {
                "raw write": seconds(lambda: raw_write(content, folder / "raw")),
                "raw write, flushed": seconds(lambda: raw_write(content, folder / "raw", flush=True)),
                "torch.save": seconds(lambda: torch.save(weights, folder / "saved.pt")),
                "safetensors, flushed": seconds(lambda: write_tensors(weights, folder / "saved.safetensors")),
            }

            def record(number: int = number) -> None:
                copied = writer.copied("weights", weights)
                writer.add(number, number, {"weights": copied}, {})

            one["stall"] = seconds(record)
            one["in all"] = one["stall"] + seconds(writer.wait)
            for path in ("raw", "saved.pt", "saved.safetensors", f"run/weights/epoch-{number:04d}.safetensors"):
                (folder / path).unlink()
            if number:
                for what, value in one.items():
                    taken.setdefault(what, []).append(value)
        writer.close()
    for what, values in taken.items():
        print(f"{what:22} {statistics.median(values):7.3f} s", flush=True)
    size = f"{megabytes:g} MB"

    def over(above: str, below: str) -> list[float]:
        return [one / base for one, base in zip(taken[above], taken[below], strict=True)]

    flushed = "raw write, flushed"
    yield Figure(f"stall of training by a point, {size}", flushed, over("stall", flushed), 0.15)
    yield Figure(f"stall of training by a point, {size}", "copy to the system's cache", over("stall", "raw write"))
    yield Figure(f"point on the disk, with checksum, {size}", flushed, over("in all", flushed), 1.4)
    yield Figure(f"point on the disk, with checksum, {size}", "torch.save, not flushed", over("in all", "torch.save"))
    yield Figure(f"safetensors file, flushed, {size}", flushed, over("safetensors, flushed", flushed))


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--megabytes", type=float, default=343)
    options = parser.parse_args()
    for figure in figures(options.rounds, megabytes=options.megabytes):
        print(*figure.row, sep="; ")


if __name__ == "__main__":
    main()
