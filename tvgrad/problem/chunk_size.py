"""Chunk size: how many samples are evaluated at once, found by timing a few sizes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import torch

from tvgrad.errors import TvgradError

Made = TypeVar("Made")

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
            if not means_no_memory(error):
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


def within_memory(work: Callable[[int], Made], size: int, shrinks: bool) -> tuple[Made, int]:
    """Do some work in chunks, and in chunks of half the size as long as memory runs out.

    Args:
        work: does all of it, with chunks of so many samples.
        size: to begin with.
        shrinks: whether the size may change.

    Returns:
        What came of it, and the size that it was done with.

    Raises:
        TvgradError: a chunk does not fit, and none smaller is possible.
        RuntimeError: the work failed for another reason.
    """  # noqa: DOC501 - a MemoryError is translated
    while True:
        try:
            return work(size), size
        except (RuntimeError, MemoryError) as error:
            if not means_no_memory(error):
                raise
            if size == 1:
                raise TvgradError(
                    "not even one sample at a time fits the memory: use a larger device, or fewer vectors at once"
                ) from error
            if not shrinks:
                raise TvgradError(
                    f"{size} samples at a time do not fit the memory: give a smaller chunk_size (--chunk-size)"
                ) from error
        size //= 2  # the error is gone by now, and with it what it held


def means_no_memory(error: Exception) -> bool:
    """Tell whether a computation did not fit.

    Args:
        error: that it raised.

    Returns:
        Whether memory ran out (the CPU's allocator raises a plain RuntimeError).
    """
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
