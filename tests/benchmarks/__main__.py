"""All benchmarks, or some by name, with a table of figures, peers, spread and goals at the end.

    python -m tests.benchmarks                          all
    python -m tests.benchmarks derivatives recording    some
    python -m tests.benchmarks --docs                   all, and the table as a page of the documentation
    python -m tests.benchmarks --quick                  on little data: whether all runs, not how fast

Each benchmark can also be run by itself, with more options: `python -m tests.benchmarks.bench_derivatives --help`.
Nothing here is a test: timings belong to a machine, and the page says to which.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

import torch  # noqa: E402

from tests.benchmarks.timing import Figure, figures_table  # noqa: E402

PAGE = ROOT / "docs" / "reference" / "benchmarks.md"
BENCHES = {
    "derivatives": ("bench_derivatives", "figures", 7),
    "ranks": ("bench_ranks", "figures", 5),
    "alternatives": ("bench_alternatives", "figures", 5),
    "samples": ("bench_samples", "figures", 5),
    "recording": ("bench_recording", "figures", 7),
    "report_pass": ("bench_report_pass", "figures", 3),
    "drawing": ("bench_drawing", "figures", 1),
    "incremental": ("bench_incremental", "figures", 1),
    "sketches": ("bench_sketches", "figures", 3),
    "spectral": ("goal_figures", "spectral", 5),
    "certificate": ("goal_figures", "certificate", 3),
    "script_trace": ("goal_figures", "script_trace", 5),
    "merging": ("goal_figures", "merging", 3),
    "merge_methods": ("goal_figures", "every_merge", 1),
    "checkpoints": ("bench_checkpoints", "figures", 3),
    "laboratory": ("bench_laboratory", "figures", 1),
    "gpu": ("bench_gpu", "figures", 5),
}
"""Name -> module, its function of `(rounds, quick)`, and how many rounds it takes."""

PEERS = ("pyhessian", "curvlinops-for-pytorch", "hessian-eigenthings", "backpack-for-pytorch")
PAGE_HEAD = """# Benchmarks

Made by `make bench ARGS=--docs`; `python -m tests.benchmarks NAME ...` runs some. Competitors take turns in one
process, or in processes of their own where memory is measured; a ratio is taken round by round, and its median, least
and largest value are shown. A verdict compares the median with the goal. Peers that are not installed have no line.

"""


def machine() -> str:
    """Where and with what the figures were measured."""
    versions = [f"torch {torch.__version__}"]
    for peer in PEERS:
        try:
            versions.append(f"{peer} {importlib.metadata.version(peer)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{peer} not installed")
    cpu = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    return (
        f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; Python {platform.python_version()}, "
        f"{', '.join(versions)}."
    )


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def measured(names: list[str], rounds: int | None, quick: bool) -> Iterator[Figure]:
    """Run benchmarks one after the other.

    Args:
        names: of `BENCHES`.
        rounds: of each; by default its own number.
        quick: on little data.

    Yields:
        Their figures.
    """
    for name in names:
        began = time.perf_counter()
        print(f"\n== {name}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            found = Path(folder) / "figures.json"
            words = [name, "--json", str(found), *(["--quick"] if quick else [])]
            words += ["--rounds", str(rounds)] if rounds else []
            # In a process of its own: what one benchmark leaves in memory is neither time nor memory of the next.
            subprocess.run([sys.executable, "-m", "tests.benchmarks", *words], check=True, cwd=ROOT)
            yield from (Figure(**fields) for fields in json.loads(found.read_text(encoding="utf-8")))
        print(f"== {name}: {time.perf_counter() - began:.0f} s", flush=True)


def measure_here(name: str, rounds: int | None, quick: bool, out: Path) -> None:
    """Run one benchmark in this process.

    Args:
        name: of `BENCHES`.
        rounds: by default its own number.
        quick: on little data.
        out: where its figures go, as JSON.
    """
    module, function, usual = BENCHES[name]
    figures = getattr(importlib.import_module(f"tests.benchmarks.{module}"), function)(
        rounds or (1 if quick else usual), quick
    )
    out.write_text(json.dumps([dataclasses.asdict(figure) for figure in figures]), encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Run benchmarks and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHES)} (default: all)")
    parser.add_argument("--rounds", type=int, help="rounds of each (default: its own number)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: torch's own choice)")
    parser.add_argument("--quick", action="store_true", help="on little data; the figures mean nothing")
    parser.add_argument(
        "--docs",
        nargs="?",
        type=Path,
        const=PAGE,
        metavar="FILE",
        help=f"write the page (default: {PAGE.name} in docs)",
    )
    parser.add_argument("--json", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in BENCHES]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}: choose among {', '.join(BENCHES)}")
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds is a count: give 1 or more")
    if options.threads:
        torch.set_num_threads(options.threads)
        os.environ["OMP_NUM_THREADS"] = str(options.threads)  # for processes that are started
    if options.json:
        measure_here(options.names[0], options.rounds, options.quick, options.json)
        return
    figures = list(measured(options.names or list(BENCHES), options.rounds, options.quick))
    table = figures_table(figures)
    missed = sum(figure.met is False for figure in figures)
    goals = sum(figure.met is not None for figure in figures)
    tail = f"{goals - missed} of {goals} goals met."
    if options.quick:
        tail += " Made with --quick: the figures mean nothing."
    print(f"\n{table}\n{tail}\n{machine()}")
    if options.docs:
        options.docs.write_text(f"{PAGE_HEAD}{table}\n{tail}\n\n{machine()}\n", encoding="utf-8")
        print(f"Page: {options.docs}")


if __name__ == "__main__":
    main()
