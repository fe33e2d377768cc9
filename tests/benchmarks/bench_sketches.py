"""Time of sketches, in seconds of processors for each hundred million entries.

Run by hand: `python -m tests.benchmarks.bench_sketches [--rounds 3]`. It holds 40 MB of numbers, which are read again
and again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import torch

from tests.benchmarks.timing import Figure, figures_table
from tvgrad.sketching.sketches import PIECE, sketch_of

ENTRIES = 10_000_000
WIDTHS = (1 << 16, 1 << 20)


def figures(rounds: int, quick: bool = False) -> Iterator[Figure]:
    """Measure sketches of two widths and two formats, with those of single tensors and without.

    Args:
        rounds: repetitions.
        quick: on few entries, to see that all runs; the figures mean nothing.

    Yields:
        Seconds.
    """
    count = PIECE if quick else ENTRIES
    scale = 100_000_000 / count
    for dtype in (torch.float32, torch.bfloat16):
        vector = torch.randn(count).to(dtype)
        kind = str(dtype).removeprefix("torch.")
        pieces = vector.split(PIECE)
        for width in WIDTHS:
            for split in (False, True):
                seconds = []
                for _ in range(rounds):
                    start = time.process_time()
                    sketch_of({"x": count}, {"x": pieces}.__getitem__, width, split=split)
                    seconds.append((time.process_time() - start) * scale)
                more = ", single tensors too" if split else ""
                yield Figure(f"sketch of 100 M {kind} in {width:,} numbers{more}", "seconds of processors", seconds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    print(figures_table(list(figures(rounds))))


if __name__ == "__main__":
    main()
