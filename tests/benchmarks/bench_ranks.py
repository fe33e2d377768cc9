"""A full-batch gradient and a Hessian-vector product on one, two and four processes, each with one thread.

Run by hand: `python -m tests.benchmarks.bench_ranks [--rounds 5]`. Processes talk by gloo, as they do on CPUs. Seconds
are those between two barriers; those of processors are added up over all processes, so that what they exceed those of
one process by is the price of sharing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch import distributed, nn

from tests.benchmarks.bench_derivatives import SIZES, mlp
from tests.benchmarks.timing import Figure, figures_table

COUNTS = (1, 2, 4)
CHUNK = 1000
CORES = os.cpu_count() or 1


def timed(work: Callable[[], object], rounds: int) -> dict[str, list[float]]:
    """Time what all processes do together; of every process.

    Args:
        work: what each does.
        rounds: repetitions, after one that is not counted.

    Returns:
        Seconds by the clock, and those of processors of all processes, a round each.
    """
    found: dict[str, list[float]] = {"seconds": [], "processors": []}
    for number in range(1 + rounds):
        distributed.barrier()
        start, busy = time.perf_counter(), time.process_time()
        work()
        spent = torch.tensor(time.process_time() - busy, dtype=torch.float64)
        distributed.barrier()
        seconds = time.perf_counter() - start
        distributed.all_reduce(spent)
        if number:
            found["seconds"].append(seconds)
            found["processors"].append(float(spent))
    return found


def measure(samples: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Measure in one of several processes.

    Args:
        samples: of the data.
        rounds: repetitions.

    Returns:
        What was measured -> seconds.
    """
    from torch.distributed.fsdp import fully_shard

    import tvgrad

    distributed.init_process_group("gloo")
    torch.manual_seed(0)
    model, loss = mlp(), nn.CrossEntropyLoss()
    data = torch.randn(samples, SIZES[0]), torch.randint(SIZES[-1], (samples,))
    shared = tvgrad.Objective(model, loss, data, chunk_size=CHUNK, group=distributed.group.WORLD)
    vector = {name: torch.randn_like(weight) for name, weight in shared.initial.items()}
    found = {
        "full-batch gradient": timed(shared.gradient, rounds),
        "Hessian-vector product": timed(lambda: shared.hvp(vector), rounds),
    }
    fully_shard(model)
    spread = tvgrad.SpreadObjective(model, loss, data, chunk_size=CHUNK)
    found["gradient of spread parameters (FSDP2)"] = timed(spread.gradient, rounds)
    return found


def on_processes(count: int, samples: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Measure on so many processes.

    Args:
        count: of processes.
        samples: of the data.
        rounds: repetitions.

    Returns:
        As `measure`.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    words = ["-m", "tests.benchmarks.bench_ranks", "--case", "--samples", str(samples), "--rounds", str(rounds)]
    made = subprocess.run(
        [sys.executable, *launcher, *words],
        check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    line = next(line for line in made.stdout.splitlines() if line.startswith("{"))
    found: dict[str, dict[str, list[float]]] = json.loads(line)
    return found


def figures(rounds: int, quick: bool = False) -> Iterator[Figure]:
    """Measure on one, two and four processes.

    Args:
        rounds: repetitions.
        quick: on few samples, to see that all runs; the figures mean nothing.

    Yields:
        Ratios to one process.
    """
    found = {count: on_processes(count, 2 * CHUNK if quick else 20 * CHUNK, rounds) for count in COUNTS}
    for what, alone in found[1].items():
        one = {unit: statistics.median(values) for unit, values in alone.items()}
        yield Figure(f"{what}, MLP, one process", "seconds of processors", alone["processors"])
        for count in COUNTS[1:]:
            several = found[count][what]
            for unit, name in (("seconds", f"seconds by the clock of one process, {CORES} cores"),
                               ("processors", "seconds of processors of one process")):  # fmt: skip
                yield Figure(f"{what}, MLP, {count} processes", name, [value / one[unit] for value in several[unit]])


def main() -> None:
    """Measure by hand, or in one of several processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=20 * CHUNK)
    parser.add_argument("--case", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.case:
        print(figures_table(list(figures(options.rounds))))
        return
    found = measure(options.samples, options.rounds)
    if distributed.get_rank() == 0:
        print(json.dumps(found), flush=True)
    distributed.barrier()
    os._exit(0)  # gloo sometimes aborts a process that takes its leave the usual way after its peers


if __name__ == "__main__":
    main()
