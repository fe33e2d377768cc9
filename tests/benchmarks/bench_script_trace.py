"""What `tvgrad trace -- COMMAND` costs: wall time of scripts with and without it, and how long one epoch's end stalls.

Run by hand, on a quiet machine: `python -m tests.benchmarks.bench_script_trace [--pairs 7] [--megabytes 343]`. Time is
measured inside the script, epoch by epoch, so that neither the import of torch nor the start of Python counts. The
first epoch holds what is paid once (imports, finding the model, the copy of theta_0) and is told apart. Goals: at most
3 % of the wall time of epochs that take seconds, with weights and epoch gradients at every epoch, and stalls of at most
0.15 of a raw write to the disk. The multilayer perceptron with small batches is the worst case: each weight is used in
64 multiplications a step, hardly more than the optimizer moves bytes of it, and the sum of the gradients is one more
pass over them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.bench_recording import raw_write, seconds

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 31)}
"""glibc moves these thresholds when large blocks are freed, and an import may do that: without this, a script can run
15 % faster because it is traced."""

SCRIPT = """
import sys, time
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
kind, batch_size = sys.argv[1], 64
if kind.startswith("mlp"):
    batch_size = 64 if kind == "mlp" else 512
    data = TensorDataset(torch.randn(24000, 784), torch.randint(0, 10, (24000,)))
    model = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
elif kind == "convolutions":
    data = TensorDataset(torch.randn(2048, 3, 32, 32), torch.randint(0, 10, (2048,)))
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10),
    )
else:
    batch_size = 32
    data = TensorDataset(torch.randint(0, 100, (512, 64)), torch.randint(0, 10, (512,)))
    layer = nn.TransformerEncoderLayer(128, 4, 512, batch_first=True)
    model = nn.Sequential(
        nn.Embedding(100, 128), nn.TransformerEncoder(layer, 3), nn.Flatten(), nn.Linear(8192, 10)
    )
loader = DataLoader(data, batch_size=batch_size, shuffle=True)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
times = []
for epoch in range(5):
    began, cpu = time.perf_counter(), time.process_time()
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    times.append((time.perf_counter() - began, time.process_time() - cpu))
print(times[0][0], sum(wall for wall, _ in times[1:]), sum(cpu for _, cpu in times[1:]))
"""
LATER = 4  # epochs after the first
KINDS = ("transformer", "convolutions", "mlp, batches of 512", "mlp")

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


@dataclass(frozen=True)
class Costs:
    """What tracing a script costs, one number a pair of runs.

    Attributes:
        walls: wall time of the epochs after the first, traced over untraced.
        cpus: processor time likewise, the writing thread's too.
        once: seconds that the first epoch alone pays for.
        epochs: seconds of an untraced epoch.
    """

    walls: list[float]
    cpus: list[float]
    once: list[float]
    epochs: list[float]


def overhead(folder: Path, kind: str, pairs: int) -> Costs:
    """Run pairs, in turn the one and the other first.

    Args:
        folder: for the script and its runs.
        kind: one of KINDS.
        pairs: how many.

    Returns:
        The costs.
    """
    script = folder / "script.py"
    script.write_text(SCRIPT)
    plain = [sys.executable, str(script), kind]
    costs = Costs([], [], [], [])
    for pair in range(pairs):
        if pair % 2:
            with_it = numbers(traced(plain, folder))
            without = numbers(plain)
        else:
            without = numbers(plain)
            with_it = numbers(traced(plain, folder))
        costs.walls.append(with_it[1] / without[1])
        costs.cpus.append(with_it[2] / without[2])
        # A later epoch stands for what the first would take without what is paid once.
        costs.once.append((with_it[0] - with_it[1] / LATER) - (without[0] - without[1] / LATER))
        costs.epochs.append(without[1] / LATER)
    return costs


def stalls(folder: Path, megabytes: float, pause: float) -> tuple[list[float], float, float, float]:
    """Measure how long tracing holds up a script that has large weights.

    Args:
        folder: for the script and its run.
        megabytes: of weights.
        pause: seconds of an epoch, in which the weights of the one before are written.

    Returns:
        Seconds of each epoch's end, seconds that the first step takes longer, and seconds of a raw write, flushed to
        the disk and to the system's cache.
    """
    script = folder / "stall.py"
    script.write_text(STALL)
    content = memoryview(os.urandom(1 << 20) * int(megabytes))
    path = folder / "raw"
    raw = statistics.median(seconds(lambda: raw_write(content, path, flush=True)) for _ in range(5))
    cached = statistics.median(seconds(lambda: raw_write(content, path)) for _ in range(5))
    path.unlink()
    first, *_ = numbers([sys.executable, str(script), str(megabytes), "0"])
    first_traced, *ends = numbers(traced([sys.executable, str(script), str(megabytes), str(pause)], folder))
    return ends, first_traced - first, raw, cached


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--megabytes", type=float, default=343)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ends, first, raw, cached = stalls(folder, given.megabytes, 6)
        each = ", ".join(f"{end / raw:.3f}" for end in ends)
        print(f"{given.megabytes:g} MB: raw write, flushed, {raw:.3f} s ({cached:.3f} s to the system's cache)")
        print(f"  end of an epoch, in raw writes: median {statistics.median(ends) / raw:.3f} ({each}); goal 0.15")
        print(f"  the same in writes to the cache: {statistics.median(ends) / cached:.3f}")
        print(f"  first step, which finds the model and copies theta_0: {first:.2f} s more than untraced", flush=True)
        for kind in KINDS:
            costs = overhead(folder, kind, given.pairs)
            print(f"{kind}: epochs of {statistics.median(costs.epochs):.2f} s; traced/untraced")
            for what, ratios in (("wall time", costs.walls), ("processor time", costs.cpus)):
                listed = ", ".join(f"{ratio:.3f}" for ratio in sorted(ratios))
                print(f"  {what}: {statistics.median(ratios):.4f} ({listed})")
            print(f"  once, in the first epoch: {statistics.median(costs.once):.2f} s", flush=True)


if __name__ == "__main__":
    main()
