"""What `tvgrad trace -- COMMAND` costs: wall time of a script with and without it, and how long one epoch's end stalls.

Run by hand: `python tests/benchmarks/bench_script_trace.py [--pairs 7] [--megabytes 343]`. Time is measured inside the
script, round its training loop, so that neither the import of torch nor the start of Python counts. Goals: at most 3 %
of wall time with weights and epoch gradients at every epoch, and stalls of at most 0.15 of a raw write. Processor time
is the steadier number on a busy machine; it counts the writing thread, which a free core would take.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 31)}
"""glibc moves these thresholds when large blocks are freed, and an import may do that: without this, a script can run
15 % faster because it is traced."""

SCRIPT = """
import sys, time
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
if sys.argv[1] == "mlp":
    data = TensorDataset(torch.randn(9600, 784), torch.randint(0, 10, (9600,)))
    model = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
else:
    data = TensorDataset(torch.randint(0, 100, (512, 64)), torch.randint(0, 10, (512,)))
    layer = nn.TransformerEncoderLayer(128, 4, 512, batch_first=True)
    model = nn.Sequential(
        nn.Embedding(100, 128), nn.TransformerEncoder(layer, 3), nn.Flatten(), nn.Linear(8192, 10)
    )
loader = DataLoader(data, batch_size=64 if sys.argv[1] == "mlp" else 32, shuffle=True)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
times = []
for epoch in range(5):
    began, cpu = time.perf_counter(), time.process_time()
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    times.append((time.perf_counter() - began, time.process_time() - cpu))
print(sum(wall for wall, _ in times[1:]), sum(cpu for _, cpu in times[1:]))
"""

STALL = """
import sys, time
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

size = int(float(sys.argv[1]) * 1e6 / 4 / 12)
class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(size)) for _ in range(12))
    def forward(self, x):
        return sum((w[:4] * x).sum() for w in self.weights)
model = Wide()
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
loader = DataLoader(TensorDataset(torch.randn(8, 4)), batch_size=4)
ends, steps = [], []
for epoch in range(5):
    for index, (x,) in enumerate(loader):
        if index == 1:
            time.sleep(float(sys.argv[2]))  # the epoch is longer than the writing of the one before
        optimizer.zero_grad()
        model(x).backward()
        began = time.perf_counter()
        optimizer.step()
        last = time.perf_counter()
        steps.append(last - began)
    ends.append(time.perf_counter() - last)
print(steps[0], *ends)
"""


def traced(arguments: list[str], folder: Path) -> list[str]:
    """A command, traced into a new run directory."""
    out = tempfile.mkdtemp(dir=folder)
    command = [str(Path(sys.executable).with_name("tvgrad"))]
    return [*command, "trace", "--quiet", "--out", out, "--", *arguments]


def numbers(command: list[str]) -> list[float]:
    """What a command prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **ALLOCATOR})
    return [float(line) for line in done.stdout.split()]


def overhead(folder: Path, kind: str, pairs: int) -> None:
    """Paired runs, in turn the one and the other first."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    plain = [sys.executable, str(script), kind]
    walls, cpus, seconds = [], [], []
    for pair in range(pairs):
        if pair % 2:
            with_it = numbers(traced(plain, folder))
            without = numbers(plain)
        else:
            without = numbers(plain)
            with_it = numbers(traced(plain, folder))
        walls.append(with_it[0] / without[0])
        cpus.append(with_it[1] / without[1])
        seconds.append(without[0] / 4)
    print(f"{kind}: epochs of {statistics.median(seconds):.2f} s; traced/untraced")
    for what, ratios in (("wall time", walls), ("processor time, the writing thread's too", cpus)):
        print(f"  {what}: {statistics.median(ratios):.4f} ({', '.join(f'{ratio:.3f}' for ratio in sorted(ratios))})")


def raw_write(folder: Path, megabytes: float) -> float:
    """Seconds of a plain write of so many bytes from memory."""
    content = memoryview(os.urandom(1 << 20) * int(megabytes))
    times = []
    for _ in range(5):
        began = time.perf_counter()
        with open(folder / "raw", "wb", buffering=0) as handle:
            written = 0
            while written < len(content):
                written += handle.write(content[written:])
        times.append(time.perf_counter() - began)
        (folder / "raw").unlink()
    return statistics.median(times)


def stalls(folder: Path, megabytes: float) -> None:
    """How long the end of an epoch, and the first step, hold up the script, in raw writes of the weights."""
    script = folder / "stall.py"
    script.write_text(STALL)
    raw = raw_write(folder, megabytes)
    first, *plain = numbers([sys.executable, str(script), str(megabytes), "0"])
    first_traced, *ends = numbers(traced([sys.executable, str(script), str(megabytes), "6"], folder))
    each = ", ".join(f"{end / raw:.3f}" for end in ends)
    print(f"{megabytes:g} MB: raw write {raw:.3f} s; goal: at most 0.15 of it at a time")
    print(f"  end of an epoch, in raw writes: median {statistics.median(ends) / raw:.3f} ({each})")
    print(f"  the same untraced: at most {max(plain) / raw:.4f}")
    print(
        f"  first step, which finds the model and copies theta_0: {(first_traced - first) / raw:.3f} more than untraced"
    )


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--megabytes", type=float, default=343)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        stalls(Path(name), given.megabytes)
        for kind in ("mlp", "transformer"):
            overhead(Path(name), kind, given.pairs)


if __name__ == "__main__":
    main()
