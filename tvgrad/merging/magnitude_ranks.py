"""Magnitudes by rank: from which magnitude on an entry is among the largest, without a tensor in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tvgrad.merging.rank_search import PIECES, IntervalCounts, RankSearch, in_pieces, look, magnitude_of
from tvgrad.merging.stack import Stack
from tvgrad.merging.workers import in_order

READ = 1 << 16
"""Coordinates that are ranked at once."""
PIECE = 512
"""Entries of each piece of a tensor that is looked at first."""
STEP = 61
"""One in so many entries is kept of each pass, for the next one; no length that rows have is a multiple of it."""
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
    while opened:
        intervals = {key: searches[key].interval(sample[key[0]]) for key in opened}
        seen, samples = _pass(stack, name, intervals)
        for key, (low, high) in intervals.items():
            searches[key].learn(low, high, seen[key])
        sample, opened = samples, [key for key in opened if searches[key].found is None]
    return [
        tuple(searches[task, rank].found or 0.0 if rank < numel else 0.0 for rank in ranks)
        for task in range(stack.tasks)
    ]


def _sample(stack: Stack, name: str) -> NDArray[np.float64]:
    """Magnitudes of some pieces of a large tensor, shape (tasks, pieces, entries)."""
    last = stack.numel(name) - PIECE
    starts = [last * piece // (PIECES - 1) for piece in range(PIECES)]
    return np.stack([np.abs(stack.rows(name, start, PIECE).numpy()) for start in starts], axis=1)


def _pass(
    stack: Stack, name: str, intervals: dict[tuple[int, int], tuple[float, float]]
) -> tuple[dict[tuple[int, int], list[IntervalCounts]], NDArray[np.float64]]:
    """Look into intervals in every block; what was seen for each, and magnitudes of some entries of each task."""
    numel = stack.numel(name)

    def work(start: int) -> tuple[list[IntervalCounts], NDArray[np.float64]]:
        rows = stack.rows(name, start, min(READ, numel - start)).abs_().numpy()
        return [look(rows[task], *ends) for (task, _), ends in intervals.items()], rows[:, ::STEP].copy()

    seen: dict[tuple[int, int], list[IntervalCounts]] = {key: [] for key in intervals}
    samples = []
    for found, some in in_order(work, range(0, numel, READ)):
        samples.append(some)
        for key, one in zip(intervals, found, strict=True):
            seen[key].append(one)
    return seen, in_pieces(np.concatenate(samples, axis=1))


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
