"""TIES: trim small entries, elect a sign for each coordinate, average the tasks that agree (arXiv 2306.01708)."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import override

from tvgrad.errors import TvgradError
from tvgrad.merging.method import Method, checked_share
from tvgrad.merging.stack import Stack, all_finite
from tvgrad.merging.workers import in_order
from tvgrad.streaming.blocks import at_least

IN_CACHE, LEAST_BLOCK = 1 << 17, 1 << 13
"""Numbers of all tasks that are merged at once: a core's cache holds about so many. Fewer coordinates would leave more
time to the calls than to the work."""
READ = 1 << 16
"""Coordinates of one task that are ranked at once."""
FEW = 16
"""Share of a block, one in so many, that may be kept in float64 because float32 does not hold it."""
NONE = np.empty(0)
IN_TURN = 1 << 25
"""Elements of a tensor from which on tasks are ranked one after another, for the memory's sake."""


@dataclass(frozen=True)
class Ties(Method):
    """Trim, elect sign, merge.

    Each task keeps the largest `density` of each tensor's entries; the elected sign of a coordinate is that of the sum
    of what was kept (plus where the sum is zero); the result is the mean over the tasks whose kept entry has it.
    """

    density: float = 0.2

    name: ClassVar[str] = "ties"
    least: ClassVar[int] = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "density", checked_share(self.density, "density"))

    @override
    def for_tensor(self, stack: Stack, name: str) -> Method:
        every = range(stack.tasks)
        if stack.numel(name) >= IN_TURN:  # the magnitudes of one task at a time
            return TrimmedTies(tuple(smallest_kept_of(stack, task, name, self.density, in_order) for task in every))
        return TrimmedTies(tuple(in_order(lambda task: smallest_kept_of(stack, task, name, self.density), every)))

    @override
    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        return TrimmedTies(tuple(smallest_kept(row, self.density) for row in rows)).combine(rows, name, start)


@dataclass(frozen=True)
class TrimmedTies(Method):
    """TIES of one tensor, where it is known from which magnitude on each task keeps entries."""

    edges: tuple[float, ...]

    name: ClassVar[str] = "ties"
    least: ClassVar[int] = 2
    elementwise: ClassVar[bool] = True

    @override
    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        flat = rows.reshape(len(rows), -1)
        # hardshrink keeps what is larger, not what is as large
        below = [math.nextafter(edge, 0.0) for edge in self.edges]
        size = max(LEAST_BLOCK, min(flat.shape[1], IN_CACHE // len(flat)))
        for begin in range(0, flat.shape[1], size):
            _merge(flat[:, begin : begin + size], below)
        return flat[0].reshape(rows.shape[1:])


class _Scratch(threading.local):
    """Memory that a thread works in: taken anew for each block, it would cost more than the work."""

    def __init__(self) -> None:
        self._held, self._ones = torch.empty(0, dtype=torch.float64), torch.ones(0, dtype=torch.float64)

    def rows(self, length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Three rows to write to, and one of ones."""
        self._held = at_least(self._held, 3 * length)
        if self._ones.numel() < length:
            self._ones = torch.ones(length, dtype=torch.float64)
        first, second, third = self._held[: 3 * length].view(3, length)
        return first, second, third, self._ones[:length]


_SCRATCH = _Scratch()


def _merge(block: torch.Tensor, below: Sequence[float]) -> None:
    """Merge a block of rows into its first one."""
    sign, count, one_count, ones = _SCRATCH.rows(block.shape[1])
    for row, edge in zip(block, below, strict=True):
        torch.ops.aten.hardshrink.out(row, edge, out=row)
    first, others = block[0], block[1:]
    sign.copy_(first)
    for row in others:
        sign.add_(row)
    torch.copysign(ones, sign, out=sign)  # a sum that is zero is +0, never -0: what was dropped is +0
    # Turned to the elected sign, an entry is above zero where its row agrees.
    block.mul_(sign).clamp_(min=0)
    torch.sign(first, out=count)
    for row in others:
        count.add_(torch.sign(row, out=one_count))
        first.add_(row)
    first.mul_(sign).div_(count.clamp_(min=1))


def smallest_kept_of(
    stack: Stack, task: int, name: str, density: float, mapped: Callable[..., Iterable[Any]] = map
) -> float:
    """Find the magnitude that `smallest_kept` finds, without the tensor in memory in float64.

    Args:
        stack: the task vectors.
        task: which one.
        name: the tensor.
        density: share of the entries that are among the largest.
        mapped: calls a function for each block, in the order of `map`.

    Returns:
        The smallest of their magnitudes; 0 where they are all.

    Raises:
        TvgradError: a value is an infinity or a NaN.
    """  # noqa: DOC502 - raised by magnitudes_of_ranks
    return magnitudes_of_ranks(stack, task, name, [max(1, int(density * stack.numel(name)))], mapped)[0]


def magnitudes_of_ranks(
    stack: Stack, task: int, name: str, ranks: Sequence[int], mapped: Callable[..., Iterable[Any]] = map
) -> list[float]:
    """Find the magnitudes of some ranks of a tensor's entries, without the tensor in memory in float64.

    Magnitudes are kept in float32. Rounding keeps their order, so that the value looked for is one of those that round
    to the float32 number of its rank; magnitudes that were rounded are kept where they are few, or read again.

    Args:
        stack: the task vectors.
        task: which one.
        name: the tensor.
        ranks: 1 is the largest magnitude, 2 the next.
        mapped: calls a function for each block, in the order of `map`.

    Returns:
        The magnitude of each rank; 0 for a rank that is the last, or behind it.

    Raises:
        TvgradError: a value is an infinity or a NaN.
    """
    numel = stack.numel(name)
    inner = sorted({numel - rank for rank in ranks if rank < numel})
    if not inner:
        return [0.0] * len(ranks)
    narrow = np.empty(numel, dtype=np.float32)

    def magnitudes(start: int) -> NDArray[np.float64]:
        block = torch.empty(min(READ, numel - start), dtype=torch.float64)
        stack.read_row(task, name, start, block)
        if not all_finite(block):
            raise TvgradError(f"{name!r} of {stack.labels[task]} holds a NaN or an infinity: leave that model out")
        return block.abs_().numpy()

    def narrowed(start: int) -> NDArray[np.float64] | None:
        block = magnitudes(start)
        part = narrow[start : start + block.size]
        with np.errstate(over="ignore"):
            part[:] = block
        if np.array_equal(part, block):  # differences of bfloat16 numbers, most often
            return NONE
        rounded: NDArray[np.float64] = block[part != block]
        return rounded if rounded.size <= block.size // FEW else None

    rounded = list(mapped(narrowed, range(0, numel, READ)))
    narrow.partition(inner)  # an order of magnitude quicker than torch.kthvalue
    edges = {float(narrow[place]) for place in inner}

    def close_to(start: int) -> NDArray[np.float64]:
        block = magnitudes(start)
        with np.errstate(over="ignore"):
            near: NDArray[np.float64] = block[np.isin(block.astype(np.float32), [*edges])]
        return near

    exact = not any(block is None for block in rounded)
    again = rounded if exact else mapped(close_to, range(0, numel, READ))
    few = np.concatenate([block for block in again if block is not None])
    found = {numel: 0.0}
    for place in inner:
        edge = narrow[place]
        with np.errstate(over="ignore"):
            close = few[few.astype(np.float32) == edge]
        if exact and not close.size:  # all that are as large are float32 numbers
            found[numel - place] = float(edge)
            continue
        if exact:
            same = int((narrow == edge).sum()) - close.size
            close = np.concatenate([close, np.full(same, edge, dtype=np.float64)])
        larger = int((narrow[place:] > edge).sum())
        found[numel - place] = float(np.sort(close)[larger - (numel - place)])
    return [found[min(rank, numel)] for rank in ranks]


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
    magnitudes = np.abs(tensor.reshape(-1).numpy())
    place = magnitudes.size - count
    magnitudes.partition(place)  # an order of magnitude quicker than torch.kthvalue
    return float(magnitudes[place])


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
