"""Workers: threads for numpy work that lets go of the interpreter's lock, and for blocks that are merged side by side.

A block is merged by one thread, with kernels that start no threads of their own: kernels that share a block wait for
each other at every operation, for longer than they work as soon as other programs use the processor too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from typing import TypeVar

import torch

MOST = 4
AHEAD = 3
"""Blocks for each thread that may be finished before they are asked for."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@cache
def workers() -> ThreadPoolExecutor:
    """Start the threads, once: as many as torch computes with, and no more than four.

    Returns:
        The pool.
    """
    return ThreadPoolExecutor(max_workers=_count())


@cache
def _block_workers() -> ThreadPoolExecutor:
    """Threads whose kernels are single-threaded; others than `workers()`, for which they may wait."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(max_workers=_count(), initializer=partial(torch.set_num_threads, 1))
    for started in [pool.submit(torch.get_num_threads) for _ in range(_count())]:
        started.result()
    torch.set_num_threads(before)  # the setting of new threads, too, was changed
    return pool


def in_order(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Work on items side by side, a few ahead of the one that is asked for.

    Args:
        work: what is done to each; it may be called in a thread.
        items: the items.

    Yields:
        The results, in the order of the items.
    """
    if _count() == 1 or len(items) < 2:
        yield from map(work, items)
        return
    pool, waiting = _block_workers(), deque[Future[Result]]()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > AHEAD * _count():
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _count() -> int:
    return max(1, min(MOST, torch.get_num_threads()))
