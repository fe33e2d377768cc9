"""Chunk size: how many samples are evaluated at once, found by timing a few sizes."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

CANDIDATES = (16, 64, 256, 1024, 4096)
MOST_SECONDS = 0.25
"""A chunk that takes longer is the last one tried, so that a search takes about a second."""


def fastest_chunk_size(evaluate: Callable[[int], float], samples: int) -> int:
    """Find the smallest chunk within 5 % of the fastest.

    Larger chunks are tried while they pay; a chunk that does not fit the memory ends the search.

    Args:
        evaluate: evaluates the first so many samples, and gives the seconds that it took.
        samples: how many there are.

    Returns:
        The chunk size; 1 where not even the smallest fits the memory.

    Raises:
        RuntimeError: an evaluation failed for another reason.
    """  # noqa: DOC501 - a MemoryError ends the search
    costs: dict[int, float] = {}
    for size in CANDIDATES:
        size = min(size, samples)
        try:
            seconds = min(evaluate(size) for _ in range(2))
        except (RuntimeError, MemoryError) as error:
            if not _means_no_memory(error):
                raise
            break
        costs[size] = seconds / size
        if size == samples or seconds > MOST_SECONDS or costs[size] > 1.2 * min(costs.values()):
            break
    return min((size for size, cost in costs.items() if cost <= 1.05 * min(costs.values())), default=1)


def timed(evaluate: Callable[[], torch.Tensor]) -> float:
    """Time an evaluation, and wait for the device that it runs on.

    Args:
        evaluate: gives a scalar.

    Returns:
        Seconds.
    """
    begin = time.perf_counter()
    evaluate().item()
    return time.perf_counter() - begin


def _means_no_memory(error: Exception) -> bool:
    """Whether a computation did not fit (the CPU's allocator raises a plain RuntimeError)."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
