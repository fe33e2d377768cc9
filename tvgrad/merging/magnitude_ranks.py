"""Magnitudes by rank: from which magnitude on an entry is among the largest, without a tensor in memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from tvgrad.merging.narrow_block import NarrowBlock
from tvgrad.merging.rank_search import (
    PIECES,
    IntervalCounts,
    RankSearch,
    in_pieces,
    look,
    look_narrow,
    magnitude_of,
    to_float32,
)
from tvgrad.merging.stack import Stack
from tvgrad.merging.workers import in_order

Intervals: TypeAlias = dict[tuple[int, int], tuple[float, float]]
"""Task and rank -> ends; those of a task follow each other."""
Looked: TypeAlias = tuple[list[IntervalCounts], NDArray[np.float64]]
"""What a block says of each interval, and magnitudes of some entries of each task, shape (tasks, some)."""

READ = 1 << 17
"""Coordinates that are ranked at once."""
PIECE, LONGEST_PIECE, PIECE_SHARE = 1024, 4096, 512
"""Entries of each piece of a tensor that is looked at first: one in so many, between these two lengths."""
STEP = 61
"""One in so many entries is kept of each pass, for the next one; no length that rows have is a multiple of it."""
NARROW_PASSES = 2
"""Passes in float32, where that holds the stored values: it may not tell the entries that are left apart."""
KEPT = 4
"""Share of a tensor, one in so many entries, that may be in memory."""


def magnitudes_of_ranks(stack: Stack, name: str, ranks: Sequence[int]) -> list[tuple[float, ...]]:
    """Find the magnitudes of some ranks of a tensor's entries, for every task, in one pass most often.

    Args:
        stack: the task vectors.
        name: the tensor.
        ranks: 1 is the largest magnitude, 2 the next.

    Returns:
        For each task the magnitude of each rank; 0 for a rank that is the last, or behind it.

    Raises:
        TvgradError: a value is an infinity or a NaN.
    """  # noqa: DOC502 - raised by the stack
    numel = stack.numel(name)
    inner = [rank for rank in dict.fromkeys(ranks) if rank < numel]
    most = max(READ, numel // KEPT)
    searches = {(task, rank): RankSearch(rank, numel, most) for task in range(stack.tasks) for rank in inner}
    opened = list(searches)
    sample = _sample(stack, name) if opened and numel > most else np.empty((stack.tasks, 0, 0))
    narrow, passes = bool(opened) and stack.narrow(name, 0, 0) is not None, 0
    while opened:
        narrow, passes = narrow and passes < NARROW_PASSES, passes + 1
        intervals = {key: searches[key].interval(sample[key[0]]) for key in opened}
        if narrow:
            intervals = {key: to_float32(*ends) for key, ends in intervals.items()}
        seen, samples = _pass(stack, name, intervals, narrow=narrow)
        for key, (low, high) in intervals.items():
            searches[key].learn(low, high, seen[key], narrow=narrow)
        sample, opened = samples, [key for key in opened if searches[key].found is None]
    return [
        tuple(searches[task, rank].found or 0.0 if rank < numel else 0.0 for rank in ranks)
        for task in range(stack.tasks)
    ]


def _sample(stack: Stack, name: str) -> NDArray[np.float64]:
    """Magnitudes of some pieces of a large tensor, shape (tasks, pieces, entries)."""
    length = min(max(PIECE, stack.numel(name) // PIECE_SHARE), LONGEST_PIECE)
    sample = np.empty((stack.tasks, PIECES, length))
    for piece in range(PIECES):
        start = (stack.numel(name) - length) * piece // (PIECES - 1)
        np.abs(stack.rows(name, start, length).numpy(), out=sample[:, piece])
    return sample


def _pass(
    stack: Stack, name: str, intervals: Intervals, *, narrow: bool
) -> tuple[dict[tuple[int, int], list[IntervalCounts]], NDArray[np.float64]]:
    """Look into intervals in every block; what was seen for each, and magnitudes of some entries of each task."""
    numel = stack.numel(name)
    seen: dict[tuple[int, int], list[IntervalCounts]] = {key: [] for key in intervals}
    samples = []

    def work(start: int) -> Looked:
        length = min(READ, numel - start)
        block = stack.narrow(name, start, length) if narrow else None
        if block is not None:
            return _look_narrow(block, intervals)
        rows = stack.rows(name, start, length).abs_().numpy()
        return [look(rows[task], *ends) for (task, _), ends in intervals.items()], rows[:, ::STEP].copy()

    for found, some in in_order(work, range(0, numel, READ)):
        samples.append(some)
        for key, one in zip(intervals, found, strict=True):
            seen[key].append(one)
    return seen, in_pieces(np.concatenate(samples, axis=1))


def _look_narrow(block: NarrowBlock, intervals: Intervals) -> Looked:
    """Look into intervals in one block in float32."""
    tasks, length = block.values.shape
    some, seen = np.arange(0, length, STEP), []
    samples = np.zeros((tasks, some.size))
    for task, of_task in groupby(intervals.items(), key=lambda item: item[0][0]):
        rounded = block.magnitudes(task)
        samples[task] = block.exact(task, some)
        seen += [look_narrow(rounded, *ends, exact=partial(block.exact, task)) for _, ends in of_task]
    return seen, samples


def smallest_kept(tensor: torch.Tensor, density: float) -> float:
    """Find the magnitude from which on entries are among the largest.

    Args:
        tensor: any shape, on the CPU.
        density: share of the entries that are among them, rounded down to a number of entries but to no less than one.

    Returns:
        The smallest of their magnitudes; 0 where they are all.
    """
    count = max(1, int(density * tensor.numel()))
    if count >= tensor.numel():
        return 0.0
    return magnitude_of(np.abs(tensor.reshape(-1).numpy()), count)


def largest(tensor: torch.Tensor, density: float) -> torch.Tensor:
    """Mark the entries of largest magnitude.

    Args:
        tensor: any shape.
        density: share of the entries to mark, rounded down to a number of entries but to no less than one. Entries as
            large as the smallest of these are marked too, so that the choice never depends on the order of a sort.

    Returns:
        A boolean tensor of the same shape.
    """
    return tensor.abs() >= smallest_kept(tensor, density)
